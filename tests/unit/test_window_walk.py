"""The window attention's GPU kernels, interpreted on a CPU, against the XLA form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.model.kernels.window import Tiles, tiles_for, window_kernel
from spectral_dist.model.mixers.attention import rotate
from spectral_dist.model.mixers.window import WindowState, window_attention

pytestmark = pytest.mark.slow

SMALL = (Tiles(16, 16, 4), Tiles(16, 16, 4), Tiles(16, 16, 4))
# Blocks of queries and of keys that differ, each way.
UNEVEN = (Tiles(32, 16, 4), Tiles(16, 32, 4), Tiles(32, 16, 4))


def _arrays(time: int, heads: int, groups: int, size: int, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(time)
    shapes = [(2, time, h, size) for h in (heads, groups, groups, heads)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def _results(form: Any, dout: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    @jax.jit
    def both(dout: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(form, *arrays)
        return out, *pull(dout)

    return both(dout, *arrays)


def _kernel(window: int, tiles: Any, state: WindowState | None = None) -> Any:
    def form(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        first = None
        if state is not None:
            key = jnp.concatenate([state.keys, key], axis=1)
            value = jnp.concatenate([state.values, value], axis=1)
            first = window - state.filled
        before = key.shape[1] - query.shape[1]
        query, key = rotate(query, before), rotate(key, 0)
        return window_kernel(query, key, value, first, window=window, tiles=tiles, interpret=True)

    return form


def _xla(window: int, state: WindowState | None = None) -> Any:
    def form(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return window_attention(query, key, value, state, window=window, block_size=16)[0]

    return form


@pytest.mark.parametrize(
    ("time", "window", "heads", "groups", "size", "tiles"),
    [
        (64, 24, 2, 1, 16, SMALL),  # whole blocks, grouped keys
        (53, 20, 2, 2, 16, SMALL),  # an odd length
        (7, 20, 2, 1, 16, SMALL),  # shorter than a block
        (70, 1, 2, 1, 16, SMALL),  # each token sees itself
        (70, 500, 4, 1, 16, UNEVEN),  # a window beyond the sequence
        (96, 33, 4, 2, 24, UNEVEN),  # head channels that are no power of two
        (130, 100, 2, 1, 64, tiles_for(64)),  # the presets' heads and blocks
        (130, 100, 2, 1, 128, tiles_for(128)),
    ],
)
def test_the_kernels_are_the_xla_form(
    time: int, window: int, heads: int, groups: int, size: int, tiles: Any
) -> None:
    """Output and every gradient, in float32."""
    *arrays, dout = _arrays(time, heads, groups, size)
    found = _results(_kernel(window, tiles), dout, *arrays)
    truth = _results(_xla(window), dout, *arrays)
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("filled", [(24, 24), (5, 0)])
@pytest.mark.parametrize("time", [64, 37])
def test_what_came_before_is_seen(time: int, filled: tuple[int, int]) -> None:
    """A state in front, whole or partly empty, other for each sequence."""
    window = 24
    *arrays, dout = _arrays(time, 2, 1, 16)
    rng = np.random.default_rng(1)
    keys, values = (jnp.asarray(rng.normal(size=(2, window, 1, 16)), jnp.float32) for _ in "kv")
    state = WindowState(keys, values, jnp.asarray(filled, jnp.int32))
    found = _results(_kernel(window, SMALL, state), dout, *arrays)
    truth = _results(_xla(window, state), dout, *arrays)
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1.0, float(jnp.abs(b).max())))


def test_bfloat16_is_no_worse_than_the_xla_form() -> None:
    """Errors against float32 of output and gradients, by the norm."""
    *arrays, dout = _arrays(96, 2, 1, 64)
    truth = _results(_xla(40), dout, *arrays)
    narrow = [x.astype(jnp.bfloat16) for x in (dout, *arrays)]
    rounded = _results(_xla(40), *narrow)
    found = _results(_kernel(40, SMALL), *narrow)
    for a, b, exact in zip(found, rounded, truth, strict=True):
        assert a.dtype == jnp.bfloat16
        ours, theirs = (
            float(jnp.linalg.norm(x.astype(jnp.float32) - exact) / jnp.linalg.norm(exact))
            for x in (a, b)
        )
        assert ours <= 1.1 * theirs
