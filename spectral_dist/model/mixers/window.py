"""Sliding window attention: each token attends to the last W tokens, its own among them.

The cost of a token and the size of the state (a KV cache of W tokens) do not depend on the length
of the sequence, and no absolute position enters. Read `window_attention` first.
On a GPU kernels compute the same (kernels/window.py).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectral_dist.array_typing import Array, Float, Int32
from spectral_dist.mesh import local, platform
from spectral_dist.model.kernels import kernels_run
from spectral_dist.model.mixers.attention import (
    AT_KEY,
    AT_QUERY,
    AT_REACH,
    GroupedQueryAttention,
    attend,
    rotate,
)
from spectral_dist.model.sequence import TimeShards, time_shards
from spectral_dist.settings import ModelConfig, WindowConfig

# Queries of a block, by platform; W on others. Small blocks see fewer keys in vain.
_BLOCKS = {"cpu": 128}

Form = Callable[..., tuple[jax.Array, "WindowState"]]


class WindowState(NamedTuple):
    """The KV cache of window attention: the last W keys and values, before rotation.

    Attributes:
      keys, values: [B, W, G, E], compute dtype.
      filled: how many of the W hold a token, int32 for each sequence, [B].
    """

    keys: jax.Array
    values: jax.Array
    filled: jax.Array


def _empty(key: Float[Array, "B T G E"], window: int) -> WindowState:
    """Return the state at the start of a sequence with such keys."""
    empty = jnp.zeros((key.shape[0], window, *key.shape[2:]), key.dtype)
    return WindowState(empty, empty, jnp.zeros((key.shape[0],), jnp.int32))


def following_state(
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    state: WindowState | None,
    window: int,
    reach_BT: Int32[Array, "B T"] | None = None,
) -> WindowState:
    """Return the state after T more keys and values."""
    time = key.shape[1]
    state = _empty(key, window) if state is None else state
    filled = jnp.minimum(state.filled + time, window)
    return WindowState(
        jnp.concatenate([state.keys, key], axis=1)[:, time:],
        jnp.concatenate([state.values, value], axis=1)[:, time:],
        # Keys of earlier documents stay where they are, and count as empty.
        filled if reach_BT is None else jnp.minimum(filled, reach_BT[:, -1] + 1),
    )


def window_attention(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    state: WindowState | None,
    reach_BT: Int32[Array, "B T"] | None = None,
    *,
    window: int,
    block_size: int,
) -> tuple[Float[Array, "B T H E"], WindowState]:
    """Sliding window attention: every query attends to the last W tokens, its own among them.

    Works in blocks of Q queries over W + Q - 1 keys, so that the cost is linear in T. The first
    blocks of a sequence see fewer.

    Args:
      query: queries, before rotation.
      key: keys, before rotation; H / G heads of queries share one.
      value: values.
      state: what came before; None at the start of a sequence.
      reach_BT: how many tokens before its own each sees (documents.py); all, if it is None.
      window: W.
      block_size: Q.

    Returns:
      the attended values, and the last W keys and values as the new state.
    """
    time = query.shape[1]
    after = following_state(key, value, state, window, reach_BT)
    first = None
    if state is not None:
        key = jnp.concatenate([state.keys, key], axis=1)
        value = jnp.concatenate([state.values, value], axis=1)
        # The state is not filled yet at the start of a sequence: those keys are zeros, which must
        # not take part in the softmax.
        first = window - state.filled
    before = key.shape[1] - time
    block = min(block_size, time)
    # Queries that see W keys in front of their block; those of the first blocks see fewer.
    early = min(time, -(-max(0, window - 1 - before) // block) * block)
    query, key = rotate(query, before), rotate(key, 0)
    blocks = partial(_attend_blocks, query, key, value, first, reach_BT, block, window)
    mixed = [blocks(start, start + block) for start in range(0, early, block)]
    if early < time:
        mixed.append(blocks(early, time))
    return jnp.concatenate(mixed, axis=1), after


def _attend_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    first: jax.Array | None,
    reach_BT: jax.Array | None,
    block: int,
    window: int,
    start: int,
    stop: int,
) -> jax.Array:
    """Return what queries [start, stop) attend to, in blocks; all see as many keys.

    Args:
      query: rotated.
      key: rotated.
      value: values.
      first: the first key of each sequence that holds a token, int32 [B]; None if all do.
      reach_BT: how many tokens before its own each query sees; None if all.
      block: Q.
      window: W.
      start: first query.
      stop: end of the queries; the last block may be shorter than the others.
    """
    batch, time, heads, size = query.shape
    stop = min(stop, time)
    before = key.shape[1] - time
    low = max(0, before + start - window + 1)  # the first key that the first query sees
    span = before + start - low
    blocks = -(-(stop - start) // block)
    if blocks > 1:  # whole blocks in front, which no query sees the whole of
        span = -(-span // block) * block
        low = before + start - span
    # Zeros fill the last block, and what would lie before the first key: nothing sees them, or
    # their results are cut off at the end.
    late = start + blocks * block - stop
    query = jnp.pad(query[:, start:stop], ((0, 0), (0, late), (0, 0), (0, 0)))

    def overlapping(x: jax.Array) -> jax.Array:  # [B M, span + Q, G, E]: what each block may see
        ends = ((0, 0), (max(0, -low), late), (0, 0), (0, 0))
        x = jnp.pad(x[:, max(0, low) : before + stop], ends)
        if blocks == 1:
            return x
        cut = x.reshape(batch, -1, block, *x.shape[2:])
        # A few slices of all blocks, however many there are: one of each would compile for minutes.
        joined = [cut[:, i : i + blocks] for i in range(span // block + 1)]
        return jnp.concatenate(joined, 2).reshape(batch * blocks, span + block, *x.shape[2:])

    if reach_BT is not None:
        reach_BT = jnp.pad(reach_BT[:, start:stop], ((0, 0), (0, late)))
    visible = _visible(first, reach_BT, span, low, blocks, block, window)
    mixed = attend(
        query.reshape(batch * blocks, block, heads, size),
        overlapping(key),
        overlapping(value),
        visible,
    )
    return mixed.reshape(batch, blocks * block, heads, size)[:, : stop - start]


def _visible(
    first: jax.Array | None,
    reach: jax.Array | None,
    span: int,
    low: int,
    blocks: int,
    block: int,
    window: int,
) -> jax.Array:
    """Return which keys each query of the blocks sees: bool [B M or 1, Q, span + Q].

    Args:
      first: the first key of each sequence that holds a token, int32 [B]; None if all do.
      reach: how many tokens before its own each query sees, int32 [B, M Q]; None if all.
      span: keys in front of a block.
      low: number of the first key of the first block.
      blocks: M.
      block: Q.
      window: W.
    """
    at_query, at_key = span + np.arange(block)[:, None], np.arange(span + block)[None, :]
    visible = jnp.asarray((at_key <= at_query) & (at_key > at_query - window))[None]
    if first is not None:
        absolute = low + np.arange(blocks)[:, None] * block + at_key
        real = absolute[None] >= first[:, None, None]
        visible = visible & real.reshape(-1, 1, span + block)
    if reach is not None:
        visible = visible & (jnp.asarray(at_query - at_key)[None] <= reach.reshape(-1, block, 1))
    return visible


def window_attention_on_gpu(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    state: WindowState | None,
    *,
    window: int,
) -> tuple[Float[Array, "B T H E"], WindowState]:
    """The same as `window_attention`, by the GPU kernels of kernels/window.py.

    Args:
      query: queries, before rotation.
      key: keys, before rotation.
      value: values.
      state: what came before; None at the start of a sequence, which then costs nothing.
      window: W.
    """
    # Here, because loading Pallas takes a third of a second that no CPU needs.
    from spectral_dist.model.kernels.window import window_kernel

    time, first, keys, values = query.shape[1], None, key, value
    if state is not None:
        keys = jnp.concatenate([state.keys, key], axis=1)
        values = jnp.concatenate([state.values, value], axis=1)
        first = window - state.filled
    before = keys.shape[1] - time
    rotated = rotate(query, before), rotate(keys, 0)
    mixed = window_kernel(*rotated, values, first, window=window)
    return mixed, following_state(key, value, state, window)


def in_shards(form: Form, across: TimeShards, window: int) -> Form:
    """Return a form of window attention for a shard of time.

    The state before a shard is the last W keys and values of the shards before it.

    Args:
      form: a function of query, key, value, state and maybe reach_BT, for whole sequences.
      across: how time is divided.
      window: W.
    """
    if not across.axes:
        return form

    def run(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        state: WindowState | None,
        *reach: jax.Array,
    ) -> tuple[jax.Array, WindowState]:
        start = _empty(key, window) if state is None else state
        filled = jnp.minimum(start.filled + across.index() * key.shape[1], window)
        keys, values = across.before(key, start.keys), across.before(value, start.values)
        mixed, after = form(query, key, value, WindowState(keys, values, filled), *reach)
        return mixed, jax.tree.map(across.of_last, after)

    return run


class WindowAttention(GroupedQueryAttention):
    """Sliding window attention, a mixer of the hybrid pattern."""

    def __init__(self, model: ModelConfig, settings: WindowConfig, rngs: nnx.Rngs) -> None:
        """Declare the parameters of attention; the window adds none."""
        super().__init__(model, rngs)
        self.window, self.kernels = settings.window, model.kernels

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
        self,
        x_BTD: Float[Array, "B T D"],
        state: WindowState | None,
        reach_BT: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], WindowState]:
        """Mix along time; operands in x's dtype, softmax in float32.

        Args:
          x_BTD: normalised input.
          state: what came before, or None at the start of a sequence.
          reach_BT: how many tokens before its own each sees; all, if it is None.
        """
        inputs = (*self.project(x_BTD), state)
        axes = [AT_QUERY, AT_KEY, AT_KEY]
        across = time_shards()
        cached = ("batch", "tokens", "kv_heads", "head")
        at_state = WindowState._make((cached, cached, ("batch",)))
        block = _BLOCKS.get(platform(), self.window)
        form = partial(window_attention, window=self.window, block_size=block)
        axes.append(None if state is None else at_state)
        if reach_BT is not None:
            inputs, axes = (*inputs, reach_BT), [*axes, AT_REACH]
        elif self.kernels == "auto" and kernels_run(x_BTD.shape[1] // across.count):
            form = partial(window_attention_on_gpu, window=self.window)  # knows no documents
        mixed, state = local(
            in_shards(form, across, self.window), tuple(axes), (AT_QUERY, at_state)
        )(*inputs)
        return self.project_out(mixed), state
