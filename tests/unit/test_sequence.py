"""What crosses between shards of time, on fake devices, against the whole sequence."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.mesh import local, make_mesh
from spectral_dist.model.sequence import WHOLE, TimeShards, time_shards

SHARDS, T = 4, 3  # tokens of a shard
ROW = ("batch", "time", "width")


@pytest.fixture(autouse=True)
def _mesh() -> Iterator[None]:
    mesh = make_mesh((1, 1, SHARDS), jax.devices()[:SHARDS], ("data", "fsdp", "sequence"))
    with jax.set_mesh(mesh):
        yield


def on_shards(function: Any, arguments: Any, out_axes: Any, *arrays: jax.Array) -> Any:
    """Call function(across, *arrays) on each shard; return the results along time."""
    across = time_shards()
    return jax.jit(local(lambda *x: function(across, *x), arguments, out_axes))(*arrays)


def whole(rows: int) -> tuple[jax.Array, jax.Array]:
    """Return numbered tokens of all shards, and so many negative ones before them."""
    numbers = jnp.arange(1.0, 1 + SHARDS * T).reshape(1, -1, 1)
    return numbers, jnp.arange(-float(rows), 0.0).reshape(1, -1, 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 12, 20])
def test_the_tokens_before_a_shard(rows: int) -> None:
    """Fewer than a shard has, as many, and of several shards; of the start where those end."""
    x, start = whole(rows)
    found = on_shards(
        lambda a, x, s: a.before(x, s), (ROW, ("batch", "tokens", "width")), ROW, *whole(rows)
    )
    everything = np.concatenate([start, x], axis=1)[0, :, 0]
    for shard in range(SHARDS):
        expected = everything[shard * T : shard * T + rows]
        np.testing.assert_array_equal(found[0, shard * rows : (shard + 1) * rows, 0], expected)


def test_the_tokens_before_a_shard_have_a_gradient() -> None:
    """Each token counts once for each shard that sees it in front."""
    x, start = whole(4)
    seen = (ROW, ("batch", "tokens", "width"))

    def total(x: jax.Array, start: jax.Array) -> jax.Array:
        return jnp.sum(on_shards(lambda a, x, s: a.before(x, s), seen, ROW, x, start))

    dx, dstart = jax.grad(total, argnums=(0, 1))(x, start)
    counts = np.zeros(4 + SHARDS * T)
    for shard in range(SHARDS):
        counts[shard * T : shard * T + 4] += 1
    np.testing.assert_array_equal(dstart[0, :, 0], counts[:4])
    np.testing.assert_array_equal(dx[0, :, 0], counts[4:])


def test_the_tokens_after_a_shard() -> None:
    x, _ = whole(1)
    found = on_shards(lambda a, x: a.after(x[:, :2]), (ROW,), ROW, x)
    np.testing.assert_array_equal(found[0, :, 0], [4, 5, 7, 8, 10, 11, 0, 0])


def test_the_array_of_the_last_shard() -> None:
    x, _ = whole(1)
    found = on_shards(lambda a, x: a.of_last(x), (ROW,), ("batch", "tokens", "width"), x)
    np.testing.assert_array_equal(found[0, :, 0], [10, 11, 12])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_states_between_shards(reverse: bool) -> None:
    rng = np.random.default_rng(0)
    sums, start = rng.normal(size=(SHARDS, 2, 3, 5)), rng.normal(size=(2, 3, 5))
    across = np.linalg.qr(rng.normal(size=(3, 3)))[0] * 0.9
    sums, start, across = (jnp.asarray(x, jnp.float32) for x in (sums, start, across))
    flat = sums.swapaxes(0, 1).reshape(2, SHARDS * 3, 5)  # a shard's [2, 3, 5] along "time"
    still = ("batch", "poles", "width")
    before, last = on_shards(
        lambda a, s, i, d: a.states(s, i, d, reverse=reverse),
        (ROW, still, ("poles", "poles")),
        (ROW, still),
        flat,
        start,
        across,
    )
    state = start
    for shard in sorted(range(SHARDS), reverse=reverse):
        found = before[:, shard * 3 : (shard + 1) * 3]
        np.testing.assert_allclose(found, state, atol=1e-6)
        state = jnp.einsum("nm,bmd->bnd", across, state) + sums[shard]
    np.testing.assert_allclose(last, state, atol=1e-6)


def test_one_shard_passes_nothing_on() -> None:
    with jax.set_mesh(make_mesh((2, 2, 2))):
        assert time_shards() == WHOLE == TimeShards((), 1)
    x, start = whole(2)
    assert WHOLE.before(x, start) is start
    assert WHOLE.of_last(x) is x
    assert not WHOLE.after(x).any()
