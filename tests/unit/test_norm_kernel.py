"""The norm's GPU kernels, interpreted on a CPU, against the XLA form."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_dist.model.kernels.norm import norm_kernel_takes, residual_norm_kernel
from spectral_dist.model.layers import ResidualNorm


def _xla(scale: jax.Array, x: jax.Array, delta: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    norm = ResidualNorm(scale.shape[0], "auto", nnx.Rngs(params=jax.random.key(0)))
    norm.scale[...] = scale
    return norm(x, delta)


def _kernel(scale: jax.Array, x: jax.Array, delta: Any) -> tuple[jax.Array, jax.Array]:
    return residual_norm_kernel(x, delta, scale, interpret=True)


def _results(form: Any, dtype: Any, dim: int, adds: bool) -> tuple[Any, ...]:
    """Return both results, and the gradients of the scale, x and, if there is one, delta."""
    rng = np.random.default_rng(dim)
    x, delta, dtotal, dnormed = (
        jnp.asarray(rng.normal(size=(2, 256, dim)), dtype) for _ in range(4)
    )
    scale = jnp.asarray(1 + 0.3 * rng.normal(size=dim), jnp.float32)

    @jax.jit
    def both() -> tuple[Any, ...]:
        if adds:
            out, pull = jax.vjp(form, scale, x, delta)
        else:
            out, pull = jax.vjp(partial(form, delta=None), scale, x)
        return *out, *pull((dtotal, dnormed))

    return both()


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("dim", [64, 512, 2048])
def test_the_kernels_are_the_xla_form(dim: int, adds: bool) -> None:
    assert norm_kernel_takes(2 * 256, dim)
    found = _results(_kernel, jnp.float32, dim, adds)
    truth = _results(_xla, jnp.float32, dim, adds)
    for a, b in zip(found, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1.0, float(jnp.abs(b).max())))


def test_bfloat16_is_no_worse_than_the_xla_form() -> None:
    """Errors against float32 of results and gradients, by the norm."""
    truth = _results(_xla, jnp.float32, 512, True)
    found = _results(_kernel, jnp.bfloat16, 512, True)
    rounded = _results(_xla, jnp.bfloat16, 512, True)
    for a, b, exact in zip(found, rounded, truth, strict=True):
        ours, theirs = (
            float(jnp.linalg.norm(v.astype(jnp.float32) - exact) / jnp.linalg.norm(exact))
            for v in (a, b)
        )
        assert a.dtype == b.dtype
        assert ours <= 1.1 * theirs


@pytest.mark.parametrize(("rows", "dim"), [(512, 96), (512, 32), (512, 8192), (17, 512)])
def test_sizes_that_the_kernels_cannot_take(rows: int, dim: int) -> None:
    assert not norm_kernel_takes(rows, dim)
