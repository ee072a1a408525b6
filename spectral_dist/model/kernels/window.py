"""Sliding window attention as three GPU kernels: forward, gradient of keys and values, of queries.

A program owns one block of queries (or keys) of one head and walks over the blocks that it can see:
no array of scores exists in memory, and blocks outside the window are never touched, in either
direction. Pallas on Triton. Read `window_kernel`, then `_forward_kernel`.

Source: Dao 2023, arXiv:2307.08691 (FlashAttention-2), restricted to a window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas.triton as plgpu
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from spectral_dist.array_typing import Array, Float, Integer

Loop = Callable[[Any, Any], Any]
_LOW = -1e30  # in place of -inf: the difference of two is 0 and not NaN


@dataclass(frozen=True)
class _Shape:
    """The static sizes of a call: T queries after `before` keys, in blocks.

    Attributes:
      window: W; a query at position p among the keys sees (p - W, p].
      before: keys in front of the first query's own.
      queries, keys: block sizes.
      group: H / G, heads of queries that share a head of keys.
      empty: whether some of the keys in front hold no token.
      scale: of the scores, times log2(e): the softmax is in powers of two.
    """

    window: int
    before: int
    queries: int
    keys: int
    group: int
    empty: bool
    scale: float


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=exact)


def _walk(
    body: Callable[..., Any], at: _Shape, start: Any, bounds: tuple[Any, Any, Any, Any]
) -> Any:
    """Run body over blocks [low, high); only those in [inner_low, inner_high) need no mask."""
    low, inner_low, inner_high, high = bounds
    masked, plain = partial(body, masked=True), partial(body, masked=False)
    if at.empty:
        return jax.lax.fori_loop(low, high, masked, start)
    inner_low = jnp.clip(inner_low, low, high)
    inner_high = jnp.clip(inner_high, inner_low, high)
    start = jax.lax.fori_loop(low, inner_low, masked, start)
    start = jax.lax.fori_loop(inner_low, inner_high, plain, start)
    return jax.lax.fori_loop(inner_high, high, masked, start)


def _scores(
    query: jax.Array,
    key: jax.Array,
    at_query: Any,
    at_key: Any,
    first: Any,
    at: _Shape,
    masked: Any,
) -> jax.Array:
    """Return scores [queries, keys] in powers of two; those of unseen keys are very low."""
    scores = _dot(query, key.T) * at.scale
    if not masked:
        return scores
    i = at_query + jnp.arange(at.queries)[:, None]
    j = at_key + jnp.arange(at.keys)[None, :]
    visible = (j <= i) & (j > i - at.window)
    if at.empty:
        visible &= j >= first
    return jnp.where(visible, scores, _LOW)


def _seen_keys(at_query: Any, at: _Shape) -> tuple[Any, Any, Any, Any]:
    """Return the blocks of keys that a block of queries sees, for `_walk`."""
    last = at_query + at.queries - 1
    low = jnp.maximum(at_query - at.window + 1, 0) // at.keys
    inner_low = jnp.maximum(last - at.window + at.keys, 0) // at.keys
    return low, inner_low, (at_query + 1) // at.keys, last // at.keys + 1


def _forward_kernel(
    first_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, lse_ref: Any, *, at: _Shape
) -> None:
    at_query = pl.program_id(2) * at.queries + at.before
    query, first = q_ref[:, :], first_ref[0]

    def body(n: Any, held: Any, masked: bool) -> Any:
        highest, total, mixed = held
        here = pl.ds(n * at.keys, at.keys)
        scores = _scores(query, k_ref[here, :], at_query, n * at.keys, first, at, masked)
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights, faded = jnp.exp2(scores - higher[:, None]), jnp.exp2(highest - higher)
        values = v_ref[here, :]
        mixed = mixed * faded[:, None] + _dot(weights.astype(values.dtype), values)
        return higher, total * faded + jnp.sum(weights, axis=1), mixed

    rows, size = query.shape
    start = (
        jnp.full((rows,), _LOW, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, size), jnp.float32),
    )
    highest, total, mixed = _walk(body, at, start, _seen_keys(at_query, at))
    out_ref[:, :] = (mixed / total[:, None]).astype(out_ref.dtype)
    lse_ref[:] = highest + jnp.log2(total)


def _queries_kernel(
    first_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    dout_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    dq_ref: Any,
    *,
    at: _Shape,
) -> None:
    at_query = pl.program_id(2) * at.queries + at.before
    query, dout, lse, delta = q_ref[:, :], dout_ref[:, :], lse_ref[:], delta_ref[:]
    first = first_ref[0]

    def body(n: Any, dq: Any, masked: bool) -> Any:
        here = pl.ds(n * at.keys, at.keys)
        key = k_ref[here, :]
        scores = _scores(query, key, at_query, n * at.keys, first, at, masked)
        weights = jnp.exp2(scores - lse[:, None])
        dscores = weights * (_dot(dout, v_ref[here, :].T) - delta[:, None])
        return dq + _dot(dscores.astype(key.dtype), key)

    dq = _walk(body, at, jnp.zeros(query.shape, jnp.float32), _seen_keys(at_query, at))
    dq_ref[:, :] = (dq * (at.scale * math.log(2))).astype(dq_ref.dtype)


def _keys_kernel(
    first_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    dout_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    at: _Shape,
    time: int,
) -> None:
    at_key = pl.program_id(2) * at.keys
    key, value, first = k_ref[:, :], v_ref[:, :], first_ref[0]
    # Queries counted from the first one; the keys in front have no query of their own.
    start = at_key - at.before
    stop = start + at.keys - 1 + at.window
    blocks = time // at.queries
    low = jnp.maximum(start, 0) // at.queries
    high = jnp.clip((stop - 1) // at.queries + 1, low, blocks)
    inner_low = (jnp.maximum(start + at.keys - 1, 0) + at.queries - 1) // at.queries
    inner_high = jnp.maximum(start + at.window, 0) // at.queries

    held = jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32)
    for head in range(at.group):

        def body(n: Any, held: Any, masked: bool, head: int = head) -> Any:
            dk, dv = held
            here = pl.ds(n * at.queries, at.queries)
            query, dout = q_ref[here, head, :], dout_ref[here, head, :]
            at_query = n * at.queries + at.before
            scores = _scores(query, key, at_query, at_key, first, at, masked)
            weights = jnp.exp2(scores - lse_ref[head, here][:, None])
            dv = dv + _dot(weights.astype(dout.dtype).T, dout)
            dscores = weights * (_dot(dout, value.T) - delta_ref[head, here][:, None])
            return dk + _dot(dscores.astype(query.dtype).T, query), dv

        held = _walk(body, at, held, (low, inner_low, inner_high, high))
    dk, dv = held
    dk_ref[:, :] = (dk * (at.scale * math.log(2))).astype(dk_ref.dtype)
    dv_ref[:, :] = dv.astype(dv_ref.dtype)


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut: block of queries, block of keys, warps of a program, stages of loads."""

    queries: int
    keys: int
    warps: int
    stages: int = 2


def tiles_for(size: int) -> tuple[Tiles, Tiles, Tiles]:
    """Return the tiles of the forward, keys and queries kernels for a head of `size` channels."""
    if size <= 64:
        return Tiles(64, 64, 4), Tiles(64, 64, 4), Tiles(64, 64, 4)
    return Tiles(64, 64, 8), Tiles(32, 64, 8), Tiles(64, 32, 8)


def window_kernel(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B S G E"],
    value: Float[Array, "B S G E"],
    first: Integer[Array, " B"] | None,
    *,
    window: int,
    interpret: bool = False,
    tiles: tuple[Tiles, Tiles, Tiles] | None = None,
) -> Float[Array, "B T H E"]:
    """Sliding window attention; operands in query's dtype, scores and softmax in float32.

    Args:
      query: normalised and rotated; the t-th is at position S - T + t of the keys.
      key: normalised and rotated; H / G heads of queries share one. S >= T.
      value: values.
      first: the first key of each sequence that holds a token, int32; None if all do.
      window: W, at least 1; a query sees the last W keys, its own among them.
      interpret: whether to run without a GPU, slowly.
      tiles: of the three kernels.
    """
    time, keys, size = query.shape[1], key.shape[1], query.shape[3]
    tiles = tiles or tiles_for(size)
    # Rows are padded at the end: no real query sees a padded key. Head sizes are powers of two to
    # Triton; zero channels change no score.
    block = max(max(t.queries, t.keys) for t in tiles)
    lanes = max(16, 1 << (size - 1).bit_length()) - size
    late, more = -time % block, -(keys + -time % block) % block
    query = jnp.pad(query, ((0, 0), (0, late), (0, 0), (0, lanes)))
    end = ((0, 0), (0, late + more), (0, 0), (0, lanes))
    key, value = jnp.pad(key, end), jnp.pad(value, end)
    empty = first is not None
    first = jnp.zeros((query.shape[0],), jnp.int32) if first is None else first
    call = partial(
        _Calls, window, keys - time, empty, math.log2(math.e) / math.sqrt(size), interpret, tiles
    )
    return _attend(call(), query, key, value, first[:, None])[:, :time, :, :size]


@dataclass(frozen=True)
class _Calls:
    """The static arguments of the kernels."""

    window: int
    before: int
    empty: bool
    scale: float
    interpret: bool
    tiles: tuple[Tiles, Tiles, Tiles]

    def call(self, kernel: Any, which: int, name: str, group: int, **settings: Any) -> Any:
        tile = self.tiles[which]
        at = _Shape(
            self.window, self.before, tile.queries, tile.keys, group, self.empty, self.scale
        )
        params = plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
        return partial(
            pl.pallas_call,
            partial(kernel, at=at, **settings.pop("static", {})),
            name=name,
            interpret=self.interpret,
            compiler_params=params,
            **settings,
        )

    def cost(self, query: jax.Array, key: jax.Array, products: int, moved: int) -> pl.CostEstimate:
        """Return the cost of a kernel with so many products of scores' size."""
        batch, time, heads, size = query.shape
        pairs = batch * heads * time * min(self.window, key.shape[1])
        return pl.CostEstimate(
            flops=2 * products * pairs * size, transcendentals=pairs, bytes_accessed=moved
        )


def _bytes(*arrays: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in arrays)


def _specs(tile: Tiles, time: int, keys: int, group: int, size: int) -> dict[str, pl.BlockSpec]:
    """Return where each program of a grid (B, H, blocks) finds its rows."""
    return {
        "first": pl.BlockSpec((None, 1), lambda b, h, i: (b, 0)),
        "queries": pl.BlockSpec((None, tile.queries, None, size), lambda b, h, i: (b, i, h, 0)),
        "keys": pl.BlockSpec((None, keys, None, size), lambda b, h, i: (b, 0, h // group, 0)),
        "row": pl.BlockSpec((None, None, tile.queries), lambda b, h, i: (b, h, i)),
    }


def _forward(
    calls: _Calls, query: jax.Array, key: jax.Array, value: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    batch, time, heads, size = query.shape
    group = heads // key.shape[2]
    tile = calls.tiles[0]
    at = _specs(tile, time, key.shape[1], group, size)
    shapes = (
        jax.ShapeDtypeStruct(query.shape, query.dtype),
        jax.ShapeDtypeStruct((batch, heads, time), jnp.float32),
    )
    return calls.call(
        _forward_kernel,
        0,
        "window_forward",
        group,
        grid=(batch, heads, time // tile.queries),
        in_specs=[at["first"], at["queries"], at["keys"], at["keys"]],
        out_specs=[at["queries"], at["row"]],
        out_shape=shapes,
        cost_estimate=calls.cost(query, key, 2, _bytes(query, key, value, *shapes)),
    )()(first, query, key, value)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    calls: _Calls, query: jax.Array, key: jax.Array, value: jax.Array, first: jax.Array
) -> jax.Array:
    return _forward(calls, query, key, value, first)[0]


def _attend_forward(
    calls: _Calls, query: jax.Array, key: jax.Array, value: jax.Array, first: jax.Array
) -> tuple[jax.Array, Any]:
    out, lse = _forward(calls, query, key, value, first)
    return out, (query, key, value, first, out, lse)


def _attend_backward(calls: _Calls, saved: Any, dout: jax.Array) -> tuple[Any, ...]:
    query, key, value, first, out, lse = saved
    batch, time, heads, size = query.shape
    groups = key.shape[2]
    group = heads // groups
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    operands = (first, query, key, value, dout, lse, delta)

    tile = calls.tiles[1]
    row = pl.BlockSpec((None, tile.keys, None, size), lambda b, g, i: (b, i, g, 0))
    every = pl.BlockSpec((None, time, group, size), lambda b, g, i: (b, 0, g, 0))
    vector = pl.BlockSpec((None, group, time), lambda b, g, i: (b, g, 0))
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value))
    dkey, dvalue = calls.call(
        _keys_kernel,
        1,
        "window_backward_keys",
        group,
        static={"time": time},
        grid=(batch, groups, key.shape[1] // tile.keys),
        in_specs=[
            pl.BlockSpec((None, 1), lambda b, g, i: (b, 0)),
            every,
            row,
            row,
            every,
            vector,
            vector,
        ],
        out_specs=[row, row],
        out_shape=shapes,
        cost_estimate=calls.cost(query, key, 4, _bytes(*operands, *shapes)),
    )()(*operands)

    tile = calls.tiles[2]
    at = _specs(tile, time, key.shape[1], group, size)
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    dquery = calls.call(
        _queries_kernel,
        2,
        "window_backward_queries",
        group,
        grid=(batch, heads, time // tile.queries),
        in_specs=[
            at["first"],
            at["queries"],
            at["keys"],
            at["keys"],
            at["queries"],
            at["row"],
            at["row"],
        ],
        out_specs=at["queries"],
        out_shape=shape,
        cost_estimate=calls.cost(query, key, 3, _bytes(*operands, shape)),
    )()(*operands)
    return dquery, dkey, dvalue, np.zeros(first.shape, jax.dtypes.float0)


_attend.defvjp(_attend_forward, _attend_backward)
