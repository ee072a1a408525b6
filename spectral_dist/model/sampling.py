"""Text from the model, byte by byte, by the recurrent form: constant memory, constant time."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.model.lm import Params, SpectralLM, State, define
from spectral_dist.settings import Config


def sample(
    config: Config,
    params: Params,
    prompt: bytes,
    *,
    max_new_tokens: int,
    temperature: float,
    key: jax.Array,
    rows: int = 1,
) -> Iterator[int]:
    """Yield the bytes that follow a prompt, until byte 0 (the document's end) or the limit.

    Args:
      config: the model.
      params: its parameters.
      prompt: text in UTF-8, read after a document's end, as a document's start is in training.
      max_new_tokens: limit, in bytes.
      temperature: of the softmax; 0 takes the likeliest byte.
      key: of the draws; the same key, prompt and parameters give the same text.
      rows: copies computed side by side, of which the first is returned: a mesh with several shards
        of the batch needs one row for each.

    Raises:
      ValueError: if the model has full attention, whose state would grow.
    """
    definition = define(config)

    @jax.jit
    def advance(
        params: Params, tokens_BT: jax.Array, state: State, index: jax.Array
    ) -> tuple[jax.Array, State]:
        model: SpectralLM = nnx.merge(definition, nnx.State(params))
        logits_BTV, state = model(tokens_BT, state)
        last_V = logits_BTV[0, -1]
        if temperature == 0:
            choice = jnp.argmax(last_V)
        else:
            draw = jax.random.fold_in(key, index)
            choice = jax.random.categorical(draw, last_V / temperature)
        return jnp.full((rows, 1), choice, jnp.int32), state

    model: SpectralLM = nnx.merge(definition, nnx.State(params))
    state = model.init_state(rows)
    tokens_BT = jnp.tile(jnp.asarray([[0, *prompt]], jnp.int32), (rows, 1))
    for index in range(max_new_tokens):
        tokens_BT, state = advance(params, tokens_BT, state, jnp.int32(index))
        byte = int(tokens_BT[0, 0])
        if byte == 0:
            return
        yield byte
