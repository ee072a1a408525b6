"""Generation: sample token by token with the recurrent form, in constant memory and time."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp

from spectral_dist.model.lm import SpectralLM, State
from spectral_dist.params import ModelSpec, Params


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

    @jax.jit
    def advance(
        params: Params, tokens_BT: jax.Array, state: State, index: jax.Array
    ) -> tuple[jax.Array, State]:
        logits_BTV, state = spec.bind(params)(tokens_BT, state)
        last_V = logits_BTV[0, -1]
        if temperature == 0:
            choice = jnp.argmax(last_V)
        else:
            # Without fold_in every draw would use the same noise.
            draw = jax.random.fold_in(key, index)
            choice = jax.random.categorical(draw, last_V / temperature)
        return jnp.full((copies, 1), choice, jnp.int32), state

    state = spec.bind(params).init_state(copies)
    # The end token first: in training, too, a document begins after the end of another.
    tokens_BT = jnp.tile(jnp.asarray([[end, *prompt]], jnp.int32), (copies, 1))
    for index in range(max_new_tokens):
        tokens_BT, state = advance(params, tokens_BT, state, jnp.int32(index))
        token = int(tokens_BT[0, 0])  # waits for the device: the caller wants to print it
        if token == end:
            return
        yield token
