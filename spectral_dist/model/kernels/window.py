"""Sliding window attention as three GPU kernels: forward, gradient of keys and values, of queries.

Pads the arrays to whole blocks, says which rows each program sees, and joins the passes by their
gradient. What a program does is in window_walk.py. Read `window_kernel` first.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas.triton as plgpu
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from spectral_dist.array_typing import Array, Float, Integer
from spectral_dist.model.kernels import declared
from spectral_dist.model.kernels.window_walk import (
    Sizes,
    forward_kernel,
    keys_kernel,
    queries_kernel,
)


@dataclass(frozen=True)
class Tiles:
    """How a kernel is cut: block of queries, block of keys, warps of a program, stages of loads."""

    queries: int
    keys: int
    warps: int
    stages: int = 2


def tiles_for(size: int) -> tuple[Tiles, Tiles, Tiles]:
    """Return the tiles of the forward, keys and queries kernels for a head of `size` channels."""
    # Larger tiles, or a second stage of loads where there is one here, spill registers on an L4.
    if size <= 64:
        return Tiles(64, 64, 4, stages=1), Tiles(64, 64, 4, stages=1), Tiles(64, 64, 4)
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
    if first is None:
        first = jnp.zeros((query.shape[0],), jnp.int32)
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
        at = Sizes(self.window, self.before, tile.queries, tile.keys, group, self.empty, self.scale)
        params = plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
        return partial(
            pl.pallas_call,
            partial(kernel, at=at, **settings.pop("static", {})),
            name=name,
            interpret=self.interpret,
            compiler_params=params,
            **settings,
        )

    def metadata(self, query: jax.Array, key: jax.Array, products: int) -> dict[str, str]:
        """Return the metadata of a kernel with so many products of scores' size."""
        batch, time, heads, size = query.shape
        pairs = batch * heads * time * min(self.window, key.shape[1])
        return declared(2 * products * pairs * size, query.dtype)


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
        forward_kernel,
        0,
        "window_forward",
        group,
        grid=(batch, heads, time // tile.queries),
        in_specs=[at["first"], at["queries"], at["keys"], at["keys"]],
        out_specs=[at["queries"], at["row"]],
        out_shape=shapes,
        metadata=calls.metadata(query, key, 2),
    )()(first, query, key, value)


def _attend_plainly(
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
        keys_kernel,
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
        metadata=calls.metadata(query, key, 4),
    )()(*operands)

    tile = calls.tiles[2]
    at = _specs(tile, time, key.shape[1], group, size)
    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    dquery = calls.call(
        queries_kernel,
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
        metadata=calls.metadata(query, key, 3),
    )()(*operands)
    return dquery, dkey, dvalue, np.zeros(first.shape, jax.dtypes.float0)


_attend = jax.custom_vjp(_attend_plainly, nondiff_argnums=(0,))
_attend.defvjp(_attend_forward, _attend_backward)
