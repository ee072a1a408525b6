"""Attention: over a sliding window (a layer of the hybrid), and over everything (the baseline).

Positions are rotary and relative; no absolute position enters anywhere in the window form, so its
cost and its state do not depend on how long the sequence is. Read `window_attention` first.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.array_typing import Array, Float
from spectral_dist.mesh import local
from spectral_dist.model.layers import RMSNorm, fan_in, parameter
from spectral_dist.settings import ModelConfig

ROTARY_BASE = 10_000.0


class WindowState(NamedTuple):
    """The last W keys and values, before rotation.

    Attributes:
      keys, values: [B, W, G, E], compute dtype.
      filled: how many of the W are real, int32 for each row, [B].
    """

    keys: jax.Array
    values: jax.Array
    filled: jax.Array


def rotate(x: Float[Array, "B S H E"], start: int) -> Float[Array, "B S H E"]:
    """Turn the pairs (x[e], x[e + E/2]) by angles position * base^(-2 e / E), in float32.

    Args:
      x: queries or keys at positions start, start + 1, ...
      start: position of the first one, in tokens.

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    half = x.shape[-1] // 2
    positions = jnp.arange(start, start + x.shape[1], dtype=jnp.float32)
    frequencies = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (positions[:, None] * frequencies[None, :])[None, :, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def attend(
    query: Float[Array, "B Q H E"],
    key: Float[Array, "B S G E"],
    value: Float[Array, "B S G E"],
    visible: jax.Array,
) -> Float[Array, "B Q H E"]:
    """Softmax attention with grouped keys; scores and softmax in float32.

    Args:
      query: queries, rotated.
      key: keys, rotated; H / G heads of queries share one.
      value: values.
      visible: bool, [B or 1, Q, S]; what each query may see, never nothing.
    """
    batch, queries, heads, size = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, queries, groups, heads // groups, size)
    scores = jnp.einsum("bqgre,bsge->bgrqs", grouped, key, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores / math.sqrt(size), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bgrqs,bsge->bqgre", weights, value).reshape(query.shape)


def full_attention(
    query: Float[Array, "B T H E"], key: Float[Array, "B T G E"], value: Float[Array, "B T G E"]
) -> Float[Array, "B T H E"]:
    """Every query attends to all tokens up to its own."""
    time = query.shape[1]
    visible = jnp.tril(jnp.ones((1, time, time), bool))
    return attend(rotate(query, 0), rotate(key, 0), value, visible)


def window_attention(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    state: WindowState,
) -> tuple[Float[Array, "B T H E"], WindowState]:
    """Every query attends to the last W tokens, its own among them.

    Works in blocks of Q = min(T, W) queries over W + Q keys, with rotary positions counted from the
    first key of the block, so that the cost is linear in T and the angles stay small.

    Returns:
      the attended values, and the last W keys and values as the new state.
    """
    batch, time, heads, size = query.shape
    reach = state.keys.shape[1]
    keys = jnp.concatenate([state.keys, key], axis=1)
    values = jnp.concatenate([state.values, value], axis=1)
    after = WindowState(keys[:, time:], values[:, time:], jnp.minimum(state.filled + time, reach))

    block = min(time, reach)
    blocks = -(-time // block)
    missing = blocks * block - time
    query = jnp.pad(query, ((0, 0), (0, missing), (0, 0), (0, 0)))

    def windows(x: jax.Array) -> jax.Array:  # [B M W+Q G E]: overlapping slices
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
        return jnp.stack([x[:, m * block : m * block + reach + block] for m in range(blocks)], 1)

    at_query = jnp.arange(reach, reach + block)[:, None]
    at_key = jnp.arange(reach + block)[None, :]
    in_reach = (at_key <= at_query) & (at_key > at_query - reach)
    # The first keys of the first blocks are the state's, and real only if it was filled.
    absolute = jnp.arange(blocks)[:, None] * block + at_key
    real = absolute[None] >= (reach - state.filled)[:, None, None]
    visible = in_reach[None, None] & real[:, :, None, :]

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(batch * blocks, *x.shape[2:])

    mixed = attend(
        rotate(query.reshape(batch * blocks, block, heads, size), reach),
        rotate(flat(windows(keys)), 0),
        flat(windows(values)),
        flat(visible),
    )
    return mixed.reshape(batch, blocks * block, heads, size)[:, :time], after


class Attention(nnx.Module):
    """Attention with QK-norm and grouped keys, over a window or, with window None, over everything.

    Sharding: heads over tensor; the one reduction comes after w_out.
    """

    def __init__(self, config: ModelConfig, window: int | None, rngs: nnx.Rngs) -> None:
        """Declare w_query [D, H E], w_key_value [D, 2, G E], two norms [E] and w_out [H E, D]."""
        dim, size, kv_heads = config.hidden_dim, config.head_dim, config.num_kv_heads
        assert kv_heads is not None
        self.window = window
        self.shape = (dim // size, kv_heads, size)
        kv_axes = ("embed", "branches", "kv_heads")
        self.w_query = parameter(rngs, (dim, dim), ("embed", "heads"), fan_in(dim))
        self.w_key_value = parameter(rngs, (dim, 2, kv_heads * size), kv_axes, fan_in(dim))
        self.query_norm = RMSNorm(size, "head", rngs)
        self.key_norm = RMSNorm(size, "head", rngs)
        self.w_out = parameter(rngs, (dim, dim), ("heads", "embed"), fan_in(dim, config.num_layers))

    def init_state(self, batch: int, dtype: jnp.dtype) -> WindowState | None:
        """Return the state before the first token; None for full attention: it would grow."""
        return None if self.window is None else self._empty(batch, self.window, dtype)

    def _empty(self, batch: int, window: int, dtype: jnp.dtype) -> WindowState:
        _, kv_heads, size = self.shape
        empty = jnp.zeros((batch, window, kv_heads, size), dtype)
        return WindowState(empty, empty, jnp.zeros((batch,), jnp.int32))

    def __call__(
        self, x_BTD: Float[Array, "B T D"], state: WindowState | None
    ) -> tuple[Float[Array, "B T D"], WindowState | None]:
        """Mix along time; operands in x's dtype, softmax in float32.

        Args:
          x_BTD: normalised input.
          state: what came before, or None at the start of a sequence.
        """
        dtype = x_BTD.dtype
        batch, time, _ = x_BTD.shape
        heads, kv_heads, size = self.shape
        query = (x_BTD @ self.w_query[...].astype(dtype)).reshape(batch, time, heads, size)
        both = jnp.einsum("btd,dkg->btkg", x_BTD, self.w_key_value[...].astype(dtype))
        key, value = (both[:, :, i].reshape(batch, time, kv_heads, size) for i in range(2))
        query, key = self.query_norm(query), self.key_norm(key)

        at_query = ("batch", "time", "heads", "head")
        at_key = ("batch", "time", "kv_heads", "head")
        if self.window is None:
            assert state is None
            mixed = local(full_attention, (at_query, at_key, at_key), at_query)(query, key, value)
        else:
            state = self._empty(batch, self.window, dtype) if state is None else state
            at_state = WindowState._make((at_key, at_key, ("batch",)))
            mixed, state = local(
                window_attention, (at_query, at_key, at_key, at_state), (at_query, at_state)
            )(query, key, value, state)
        return mixed.reshape(batch, time, -1) @ self.w_out[...].astype(dtype), state
