"""The parts that every layer shares: how a parameter is declared, RMSNorm, SwiGLU.

A parameter is declared once, with its shape, its initial values and its logical axes; everything
else (its sharding, the optimizer's, its weight decay) follows from that. Knows nothing of mixers.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.array_typing import Array, Float
from spectral_dist.mesh import Axes

Initialiser = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def parameter(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, initialiser: Initialiser
) -> nnx.Param[jax.Array]:
    """Declare a float32 parameter with one logical axis for each dimension."""
    assert len(shape) == len(axes)
    return nnx.Param(initialiser(rngs.params(), shape), axes=axes)


def normal(sigma: float) -> Initialiser:
    """Draw from N(0, sigma^2)."""
    return lambda key, shape: sigma * jax.random.normal(key, shape, jnp.float32)


def fan_in(size: int, residual_layers: int | None = None) -> Initialiser:
    """Draw with sigma 1 / sqrt(size), or 1 / sqrt(2 layers size) for what ends in the residual."""
    return normal(1.0 / math.sqrt(size * (2 * residual_layers if residual_layers else 1)))


def ones(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Start at 1."""
    del key
    return jnp.ones(shape, jnp.float32)


def rms_norm(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Divide by the root mean square of the last dimension; statistics in float32, dtype kept."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMSNorm with a learned scale."""

    def __init__(self, dim: int, axis: str, rngs: nnx.Rngs) -> None:
        """Declare the scale, `[dim]`, along the logical axis `axis`."""
        self.scale = parameter(rngs, (dim,), (axis,), ones)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise over the last dimension and scale; dtype kept."""
        return rms_norm(x) * _like(self.scale[...], x)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Give a vector x's dtype and rank, so that no rank is promoted silently."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


class SwiGLU(nnx.Module):
    """The gated MLP: silu(x W_gate) * (x W_up), times W_down.

    Source: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(self, hidden_dim: int, mlp_dim: int, num_layers: int, rngs: nnx.Rngs) -> None:
        """Declare w_in [D, 2, F] (gate, up) and w_out [F, D]."""
        self.w_in = parameter(
            rngs, (hidden_dim, 2, mlp_dim), ("embed", "branches", "mlp"), fan_in(hidden_dim)
        )
        self.w_out = parameter(
            rngs, (mlp_dim, hidden_dim), ("mlp", "embed"), fan_in(mlp_dim, num_layers)
        )

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Apply at every position; x's dtype in, operands and out."""
        dtype = x_BTD.dtype
        h_BT2F = jnp.einsum("btd,dkf->btkf", x_BTD, self.w_in[...].astype(dtype))
        gated_BTF = jax.nn.silu(h_BT2F[:, :, 0]) * h_BT2F[:, :, 1]
        return jnp.einsum("btf,fd->btd", gated_BTF, self.w_out[...].astype(dtype))
