"""Layers: RMSNorm, SwiGLU (the MLP), the short convolution; and how a parameter is declared.

A parameter is declared once, with its shape, initial values and logical axes. Its sharding, its
optimizer state and its weight decay follow from that. Knows nothing of mixers. Read `parameter`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.array_typing import Array, Float, Float32, Int32
from spectral_dist.mesh import Axes, constrain, local, shards
from spectral_dist.model.documents import masked
from spectral_dist.model.kernels import kernels_run

Initialiser = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def parameter(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, initialiser: Initialiser
) -> nnx.Param[jax.Array]:
    """Declare a float32 parameter with one logical axis for each dimension."""
    assert len(shape) == len(axes)
    return nnx.Param(initialiser(rngs.params(), shape), axes=axes)


def normal(sigma: float) -> Initialiser:
    """Initial values from N(0, sigma^2)."""
    # Drawn in float32 whatever the compute dtype: params are float32 in every run.
    return lambda key, shape: sigma * jax.random.normal(key, shape, jnp.float32)


def fan_in(size: int, residual_layers: int | None = None) -> Initialiser:
    """Initial values with sigma 1 / sqrt(size), for a matrix whose inputs have `size` elements.

    With residual_layers, sigma is divided by sqrt(2 * layers): for the two matrices of each layer
    whose results are added to the residual stream.
    """
    # So the variance of the residual stream does not grow with depth at the start.
    return normal(1.0 / math.sqrt(size * (2 * residual_layers if residual_layers else 1)))


def ones(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Initial values of 1."""
    del key
    return jnp.ones(shape, jnp.float32)


def identity_taps(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Initial values of a short convolution: nearly the identity, the first tap is 1."""
    # So that queries, keys and values see their own token.
    return (0.02 * jax.random.normal(key, shape, jnp.float32)).at[0].add(1.0)


def causal_convolution(
    x_BTD: Float[Array, "B T D"],
    before: Float[Array, "B J D"],
    taps_KD: Float32[Array, "K D"],
    reach_BT: Int32[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Short causal convolution: each channel with its K taps, sum over k of taps[k] x[t - k].

    Args:
      x_BTD: input.
      before: the K - 1 inputs before it.
      taps_KD: the first one multiplies the current input.
      reach_BT: how many tokens before its own each sees (documents.py); all, if it is None.
    """
    time, taps = x_BTD.shape[1], taps_KD.shape[0]
    padded = jnp.concatenate([before, x_BTD], axis=1)
    weights = taps_KD.astype(x_BTD.dtype)
    # K shifted products, which the compiler fuses into one pass; K is 4 or so.
    return jnp.asarray(
        sum(
            masked(
                padded[:, taps - 1 - k : taps - 1 - k + time] * weights[None, None, k],
                None if reach_BT is None else reach_BT >= k,
            )
            for k in range(taps)
        )
    )


def convolve_from_start(
    x_BTD: Float[Array, "B T D"],
    taps_KD: Float32[Array, "K D"],
    reach_BT: Int32[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Short causal convolution of whole sequences: zeros come before them."""
    batch, _, channels = x_BTD.shape
    before = jnp.zeros((batch, taps_KD.shape[0] - 1, channels), x_BTD.dtype)
    return causal_convolution(x_BTD, before, taps_KD, reach_BT)


def rms_norm(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """RMSNorm without a scale: divide by the root mean square of the last dimension; dtype kept."""
    # In float32: bfloat16 has 8 bits, and a mean of D squares would lose most of the small ones.
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


class ResidualNorm(nnx.Module):
    """A sum into the residual stream, and its RMSNorm with a learned scale."""

    def __init__(self, dim: int, kernels: str, rngs: nnx.Rngs) -> None:
        """Declare the scale, `[dim]`; `kernels` is the setting."""
        self.scale = parameter(rngs, (dim,), ("norm",), ones)
        self.kernels = kernels

    def __call__(
        self, x: Float[Array, "B T D"], delta: Float[Array, "B T D"] | None = None
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """Return x + delta (x if that is None), and it normalised and scaled; dtype kept."""
        batch, time, dim = x.shape
        time //= shards("time")
        if self.kernels == "auto" and kernels_run(time):
            # Here, because loading Pallas takes a third of a second that no CPU needs.
            from spectral_dist.model.kernels.norm import norm_kernel_takes, residual_norm_kernel

            if norm_kernel_takes(batch // shards("batch") * time, dim):
                stream = ("batch", "time", "width")
                axes = (stream, None if delta is None else stream, ("width",))
                return local(residual_norm_kernel, axes, (stream, stream))(
                    x, delta, self.scale[...]
                )
        # Constrained after the sum, so that the reduction over tensor that its second operand may
        # need comes here.
        x = x if delta is None else constrain(x + delta, "batch", "time", "width")
        return x, rms_norm(x) * _like(self.scale[...], x)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Give a vector the dtype and the rank of x."""
    # Without it JAX would promote the rank; the tests run with rank promotion forbidden, because it
    # hides mistakes of shape.
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


class SwiGLU(nnx.Module):
    """The gated MLP: silu(x W_gate) * (x W_up), times W_down.

    Source: Shazeer 2020, arXiv:2002.05202.
    """

    def __init__(self, hidden_dim: int, mlp_dim: int, num_layers: int, rngs: nnx.Rngs) -> None:
        """Declare w_in [D, 2, F] (gate, up) and w_out [F, D]."""
        # Gate and up in one array: one product, and one all-gather over fsdp.
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
