"""Generation: sample token by token with the recurrent form, in constant memory and time."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_dist.mesh import whole
from spectral_dist.model.lm import SpectralLM, State
from spectral_dist.params import ModelSpec, Params

# A prompt is read in pieces of these lengths, so that no other length is ever compiled.
_PIECES = (256, 16, 1)


def _pieces(tokens_BT: np.ndarray) -> list[np.ndarray]:
    """Cut tokens [B, T] along time into pieces of the lengths above, the longest ones first."""
    ends = [0]
    for length in _PIECES:
        ends += range(ends[-1] + length, tokens_BT.shape[1] + 1, length)
    return [tokens_BT[:, a:b] for a, b in itertools.pairwise(ends)]


@functools.cache
def _advance(spec: ModelSpec[SpectralLM]) -> Any:
    """Return the compiled step of a model, which every later call shares.

    (params, tokens_BT, state, key, index, temperature) -> the next token [B, 1] int32, the state.
    """

    @jax.jit
    def advance(
        params: Params,
        tokens_BT: jax.Array,
        state: State,
        key: jax.Array,
        index: jax.Array,
        temperature: jax.Array,
    ) -> tuple[jax.Array, State]:
        # A single token has no time to divide.
        def last(params: Params, *inputs: Any) -> tuple[jax.Array, State]:
            model = spec.bind(params)
            hidden_BTD, state = model.hidden(*inputs)
            return model.logits(hidden_BTD[:, -1:]), state

        logits_B1V, state = whole(last, "time")(params, tokens_BT, state)
        last_V = logits_B1V[0, -1]
        # Without fold_in every draw would use the same noise.
        draw = jax.random.fold_in(key, index)
        # Of a temperature of 0 the quotient is not used.
        drawn = jax.random.categorical(draw, last_V / jnp.where(temperature > 0, temperature, 1))
        choice = jnp.where(temperature > 0, drawn, jnp.argmax(last_V))
        return jnp.full((tokens_BT.shape[0], 1), choice, jnp.int32), state

    return advance


def sample(
    spec: ModelSpec[SpectralLM],
    params: Params,
    prompt: Iterable[int],
    *,
    end: int,
    max_new_tokens: int,
    temperature: float,
    key: jax.Array,
    copies: int = 1,
) -> Iterator[int]:
    """Yield sampled tokens after a prompt, until the end of the document or the limit.

    Args:
      spec: the model.
      params: its parameters.
      prompt: tokens.
      end: the token that ends a document.
      max_new_tokens: limit.
      temperature: of the softmax; 0 takes the most likely token.
      key: of the draws; the same key, prompt and parameters give the same text.
      copies: how many times the same sequence is computed; the first is returned. A mesh with
        several shards of the batch needs one for each.

    Raises:
      ValueError: if the model has full attention, whose state would grow.
    """
    # Compiled whole: by itself each of its arrays would be a program of its own.
    state = jax.jit(lambda params: spec.bind(params).init_state(copies))(params)
    # The end token first: in training, too, a document begins after the end of another.
    *pieces, tokens_BT = _pieces(np.tile(np.asarray([[end, *prompt]], np.int32), (copies, 1)))
    advance, heat = _advance(spec), jnp.float32(temperature)
    for piece_BT in pieces:
        _, state = advance(params, piece_BT, state, key, jnp.int32(0), heat)
    for index in range(max_new_tokens):
        tokens_BT, state = advance(params, tokens_BT, state, key, jnp.int32(index), heat)
        token = int(tokens_BT[0, 0])  # waits for the device: the caller wants to print it
        if token == end:
            return
        yield token
