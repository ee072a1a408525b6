"""The spectral mixer's GPU kernels, interpreted on a CPU, against the XLA form."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.mesh import local, make_mesh
from spectral_dist.model.filters import balanced_poles
from spectral_dist.model.kernels.spectral import spectral_kernel
from spectral_dist.model.kernels.spectral_plan import Plan, Walk, kernel_takes
from spectral_dist.model.layers import causal_convolution, rms_norm
from spectral_dist.model.mixers.spectral_forms import mix_chunked
from spectral_dist.model.sequence import time_shards

POLES, TAPS, GROUP = 4, 4, 16
ONE = Plan(Walk(16, 4, 4), Walk(16, 2, 4), programs=1)  # a sequence is one segment
SEGMENTS = Plan(Walk(32, 2, 4), Walk(16, 4, 4), programs=64)  # of 8 chunks and more


def _arrays(
    time: int, dtype: Any = jnp.float32, poles: int = POLES, dim: int = 2 * GROUP, taps: int = TAPS
) -> tuple[jax.Array, ...]:
    """Return p, taps, coefficients, skip and the gradient of the output."""
    rng = np.random.default_rng(time)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    p, dout = draw(2, time, 3, dim).astype(dtype), draw(2, time, dim).astype(dtype)
    return p, 0.5 * draw(taps, 3, dim), draw(poles, dim) / 2, draw(dim), dout


def _reference(
    bank: Any, group: int, p: jax.Array, conv: jax.Array, poles: jax.Array, *weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    q, k, v = (causal_convolution(p[:, :, j], conv[:, :, j], weights[0][:, j]) for j in range(3))
    u = k * v
    y, poles = mix_chunked(u, poles, *weights[1:], bank=bank, chunk_size=16)
    normed = rms_norm(y.reshape(*y.shape[:2], -1, group)).reshape(y.shape)
    return q * normed, poles


def _start(p: jax.Array, poles: int, taps: int) -> tuple[jax.Array, jax.Array]:
    batch, _, _, dim = p.shape
    return jnp.zeros((batch, taps - 1, 3, dim), p.dtype), jnp.zeros((batch, poles, dim))


def _forms(plan: Plan, before: Any = None, poles: int = POLES, group: int = GROUP) -> Any:
    """Return the kernel's and the XLA form as functions of (p, taps, coefficients, skip)."""
    bank = balanced_poles(poles, 0.5, 40.0)
    reference = partial(_reference, bank, group)

    def kernel(p: jax.Array, *weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        settings = {"bank": bank, "group": group, "reference": reference, "plan": plan}
        return spectral_kernel(p, before, *weights, **settings, interpret=True)

    def xla(p: jax.Array, *weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        conv, state = before or _start(p, poles, weights[0].shape[0])
        return reference(p, conv, state, *weights)

    return kernel, xla


def _results(form: Any, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Return the output, the last state, and the output's gradients."""
    *primals, dout = arrays

    @jax.jit
    def both(dout: jax.Array, *primals: jax.Array) -> tuple[jax.Array, ...]:
        out, pull, state = jax.vjp(form, *primals, has_aux=True)
        return out, state, *pull(dout)

    return both(dout, *primals)


def _compare(found: Any, truth: Any) -> None:
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("plan", [ONE, SEGMENTS], ids=["one", "segments"])
@pytest.mark.parametrize("time", [1024, 531, 16, 5])
def test_the_kernels_are_the_xla_form(time: int, plan: Plan) -> None:
    """Output, last state and every gradient, in float32; odd lengths, and below a chunk."""
    arrays = _arrays(time)
    kernel, xla = _forms(plan)
    assert plan.segments(4, 1024) == (1 if plan is ONE else 4)
    _compare(_results(kernel, *arrays), _results(xla, *arrays))


@pytest.mark.parametrize(
    ("poles", "dim", "group", "taps"), [(16, 128, 64, 4), (32, 128, 128, 4), (16, 32, 16, 2)]
)
def test_the_sizes_of_the_presets_and_others(poles: int, dim: int, group: int, taps: int) -> None:
    assert kernel_takes(poles, taps, group)
    arrays = _arrays(70, poles=poles, dim=dim, taps=taps)
    kernel, xla = _forms(Plan(), poles=poles, group=group)
    _compare(_results(kernel, *arrays), _results(xla, *arrays))


@pytest.mark.parametrize("sizes", [(2, 4, 64), (64, 4, 64), (12, 4, 64), (16, 3, 64), (16, 4, 8)])
def test_sizes_that_the_kernels_cannot_take(sizes: tuple[int, int, int]) -> None:
    assert not kernel_takes(*sizes)


@pytest.mark.parametrize("time", [1024, 530, 9])
def test_what_came_before_is_taken_in(time: int) -> None:
    """Output, last state and the gradients, after a state in front."""
    arrays, rng = _arrays(time), np.random.default_rng(7)
    zero = _start(arrays[0], POLES, TAPS)
    before = tuple(jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in zero)
    kernel, xla = _forms(SEGMENTS, before)
    _compare(_results(kernel, *arrays), _results(xla, *arrays))


def test_the_last_state_has_a_gradient() -> None:
    *primals, dout = _arrays(64)
    dstate = jnp.asarray(np.random.default_rng(3).normal(size=(2, POLES, 2 * GROUP)), jnp.float32)

    def pulled(form: Any) -> Any:
        return jax.jit(lambda: jax.vjp(form, *primals)[1]((dout, dstate)))()

    kernel, xla = _forms(ONE)
    _compare(pulled(kernel), pulled(xla))


def test_bfloat16_is_no_worse_than_the_xla_form() -> None:
    """Errors against float32 of output and gradients, by the norm."""
    p, *weights, dout = _arrays(256)
    kernel, xla = _forms(SEGMENTS)
    truth = _results(xla, p, *weights, dout)
    narrow = p.astype(jnp.bfloat16), *weights, dout.astype(jnp.bfloat16)
    for a, b, exact in zip(_results(kernel, *narrow), _results(xla, *narrow), truth, strict=True):
        ours, theirs = (
            float(jnp.linalg.norm(x.astype(jnp.float32) - exact) / jnp.linalg.norm(exact))
            for x in (a, b)
        )
        assert a.dtype == b.dtype
        assert ours <= 1.1 * theirs


@pytest.mark.parametrize("plan", [ONE, SEGMENTS])
@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_time_are_the_whole(count: int, plan: Plan) -> None:
    mesh = make_mesh((1, 1, count), jax.devices()[:count], ("data", "fsdp", "sequence"))
    p, *weights, dout = _arrays(256 * count)
    bank = balanced_poles(POLES, 0.5, 40.0)
    row = ("batch", "time", "branches", "channels")

    def shard(p: jax.Array, *weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        settings = {"bank": bank, "group": GROUP, "reference": _never, "plan": plan}
        return spectral_kernel(p, None, *weights, **settings, across=across, interpret=True)

    with jax.set_mesh(mesh):
        across = time_shards()
        assert across.count == count
        form = local(
            shard,
            (row, ("taps", "branches", "channels"), ("poles", "channels"), ("channels",)),
            (("batch", "time", "channels"), ("batch", "poles", "channels")),
        )
        found = jax.jit(partial(_results, form))(p, *weights, dout)
    _compare(found, _results(_forms(ONE)[1], p, *weights, dout))


def _never(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    raise AssertionError("the kernels have a gradient of their own")
