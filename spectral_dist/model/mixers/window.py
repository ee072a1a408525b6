"""Sliding window attention: each token attends to the last W tokens, its own among them.

The cost of a token and the size of the state (a KV cache of W tokens) do not depend on the length
of the sequence, and no absolute position enters. Read `window_attention` first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.array_typing import Array, Float
from spectral_dist.mesh import local
from spectral_dist.model.mixers.attention import (
    AT_KEY,
    AT_QUERY,
    GroupedQueryAttention,
    attend,
    rotate,
)
from spectral_dist.settings import ModelConfig, WindowConfig


class WindowState(NamedTuple):
    """The KV cache of window attention: the last W keys and values, before rotation.

    Attributes:
      keys, values: [B, W, G, E], compute dtype.
      filled: how many of the W hold a token, int32 for each sequence, [B].
    """

    keys: jax.Array
    values: jax.Array
    filled: jax.Array


def window_attention(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    state: WindowState,
) -> tuple[Float[Array, "B T H E"], WindowState]:
    """Sliding window attention: every query attends to the last W tokens, its own among them.

    Works in blocks of Q = min(T, W) queries over W + Q keys, so that the cost is linear in T.

    Returns:
      the attended values, and the last W keys and values as the new state.
    """
    batch, time, heads, size = query.shape
    window = state.keys.shape[1]
    keys = jnp.concatenate([state.keys, key], axis=1)
    values = jnp.concatenate([state.values, value], axis=1)
    after = WindowState(keys[:, time:], values[:, time:], jnp.minimum(state.filled + time, window))

    block = min(time, window)
    blocks = -(-time // block)
    # Zeros fill the last block; their results are cut off at the end.
    padding = blocks * block - time
    query = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))

    def overlapping(x: jax.Array) -> jax.Array:  # [B M W+Q G E]: the keys that each block may see
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
        return jnp.stack([x[:, m * block : m * block + window + block] for m in range(blocks)], 1)

    at_query = jnp.arange(window, window + block)[:, None]
    at_key = jnp.arange(window + block)[None, :]
    in_window = (at_key <= at_query) & (at_key > at_query - window)
    # The first W keys come from the state. At the start of a sequence it is not filled yet: those
    # keys are zeros, which must not take part in the softmax.
    absolute = jnp.arange(blocks)[:, None] * block + at_key
    real = absolute[None] >= (window - state.filled)[:, None, None]
    visible = in_window[None, None] & real[:, :, None, :]

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(batch * blocks, *x.shape[2:])

    # Positions are counted from the first key of each block: RoPE depends on differences only, and
    # small angles stay accurate in float32 however long the sequence is.
    mixed = attend(
        rotate(query.reshape(batch * blocks, block, heads, size), window),
        rotate(flat(overlapping(keys)), 0),
        flat(overlapping(values)),
        flat(visible),
    )
    return mixed.reshape(batch, blocks * block, heads, size)[:, :time], after


class WindowAttention(GroupedQueryAttention):
    """Sliding window attention, a mixer of the hybrid pattern."""

    def __init__(self, model: ModelConfig, settings: WindowConfig, rngs: nnx.Rngs) -> None:
        """Declare the parameters of attention; the window adds none."""
        super().__init__(model, rngs)
        self.window = settings.window

    def flops(self, seq_len: int) -> float:
        """Return forward FLOPs for a token of a sequence of T tokens."""
        # By the definition, W keys for each query; the blocks compute W + Q and mask the rest.
        return self.attention_flops(min(self.window, seq_len))

    def init_state(self, batch: int, dtype: jnp.dtype) -> WindowState:
        """Return the state before the first token: an empty KV cache."""
        _, kv_heads, size = self.shape
        empty = jnp.zeros((batch, self.window, kv_heads, size), dtype)
        return WindowState(empty, empty, jnp.zeros((batch,), jnp.int32))

    def __call__(
        self, x_BTD: Float[Array, "B T D"], state: WindowState | None
    ) -> tuple[Float[Array, "B T D"], WindowState]:
        """Mix along time; operands in x's dtype, softmax in float32.

        Args:
          x_BTD: normalised input.
          state: what came before, or None at the start of a sequence.
        """
        state = self.init_state(x_BTD.shape[0], x_BTD.dtype) if state is None else state
        query, key, value = self.project(x_BTD)
        at_state = WindowState._make((AT_KEY, AT_KEY, ("batch",)))
        mixed, state = local(
            window_attention, (AT_QUERY, AT_KEY, AT_KEY, at_state), (AT_QUERY, at_state)
        )(query, key, value, state)
        return self.project_out(mixed), state
