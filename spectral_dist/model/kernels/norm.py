"""A sum into the residual stream and the RMSNorm of it, as one GPU kernel each way.

XLA passes over these arrays some 30 times a layer, partly in float32: here each is read once and
written once. Both results leave one function, so that their gradients meet in one kernel. Pallas on
Triton. Read `residual_norm_kernel`.
"""

from functools import partial
from typing import Any

import jax
import jax.experimental.pallas.triton as plgpu
import jax.numpy as jnp
from jax.experimental import pallas as pl

from spectral_dist.array_typing import Array, Float, Float32
from spectral_dist.model.kernels import declared

f32 = jnp.float32
_EPSILON = 1e-6  # of `layers.rms_norm`
_ELEMENTS = 2048  # of a block: 16 for each of 128 threads
_BLOCKS = 8  # that a program of the backward pass walks over; the scale's gradient is their sum


def norm_kernel_takes(rows: int, dim: int) -> bool:
    """Return whether the kernel can be cut for R rows of D channels."""
    # Triton knows powers of two only; a longer row would not fit the registers.
    return 64 <= dim <= 4096 and dim & (dim - 1) == 0 and rows % (_rows(dim) * _BLOCKS) == 0


def _rows(dim: int) -> int:
    return max(1, _ELEMENTS // dim)


def residual_norm_kernel(
    x_BTD: Float[Array, "B T D"],
    delta_BTD: Float[Array, "B T D"] | None,
    scale_D: Float32[Array, " D"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """Return x + delta, and its RMSNorm times a scale; on one device's shard, in x's dtype.

    Args:
      x_BTD: the residual stream.
      delta_BTD: what a layer adds to it; None for nothing.
      scale_D: of the norm.
      interpret: whether to run without a GPU, slowly.
    """
    dim = x_BTD.shape[-1]
    flat = [None if a is None else a.reshape(-1, dim) for a in (x_BTD, delta_BTD)]
    total, normed = _norm(interpret, flat[0], flat[1], scale_D)
    return total.reshape(x_BTD.shape), normed.reshape(x_BTD.shape)


def _normed(total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return rows [R, D] over their root mean square, and one over that [R, 1], in float32."""
    total = total.astype(f32)
    r = jax.lax.rsqrt(jnp.mean(total * total, axis=1, keepdims=True) + _EPSILON)
    return total * r, r


def _scale(scale_ref: Any, dtype: Any) -> jax.Array:
    return scale_ref[:].astype(dtype).astype(f32)[None, :]


def _forward_kernel(*refs: Any, adds: bool) -> None:
    x_ref, *more, scale_ref = refs[: 2 + adds]
    total, dtype = x_ref[:, :], x_ref.dtype
    if adds:
        total = total + more[0][:, :]
        refs[-2][:, :] = total
    normed_ref = refs[-1]
    normed = _normed(total)[0].astype(dtype).astype(f32)
    normed_ref[:, :] = (normed * _scale(scale_ref, dtype)).astype(dtype)


def _backward_kernel(
    total_ref: Any,
    scale_ref: Any,
    dtotal_ref: Any,
    dnormed_ref: Any,
    dx_ref: Any,
    dscale_ref: Any,
    *,
    rows: int,
) -> None:
    dtype, dim = total_ref.dtype, total_ref.shape[1]
    scale = _scale(scale_ref, dtype)

    def block(m: Any, dscale: jax.Array) -> jax.Array:
        here = pl.ds(m * rows, rows)
        normed, r = _normed(total_ref[here, :])
        dout = dnormed_ref[here, :].astype(f32)
        dnormed = (dout * scale).astype(dtype).astype(f32)
        dx = r * (dnormed - normed * jnp.mean(dnormed * normed, axis=1, keepdims=True))
        dx_ref[here, :] = (dx + dtotal_ref[here, :].astype(f32)).astype(dtype)
        return dscale + dout * normed.astype(dtype).astype(f32)

    dscale = jax.lax.fori_loop(0, _BLOCKS, block, jnp.zeros((rows, dim), f32))
    dscale_ref[:] = jnp.sum(dscale, axis=0)


def _call(kernel: Any, name: str, interpret: bool, **settings: Any) -> Any:
    params = plgpu.CompilerParams(num_warps=4, num_stages=1)
    return pl.pallas_call(
        kernel, name=name, interpret=interpret, compiler_params=params, **settings
    )


def _forward(
    interpret: bool, x: jax.Array, delta: jax.Array | None, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, dim = _rows(x.shape[1]), x.shape[1]
    block = pl.BlockSpec((rows, dim), lambda i: (i, 0))
    vector = pl.BlockSpec((dim,), lambda i: (0,))
    arrays, adds = [x] if delta is None else [x, delta], delta is not None
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    results = _call(
        partial(_forward_kernel, adds=adds),
        "norm_forward",
        interpret,
        grid=(x.shape[0] // rows,),
        in_specs=[*[block] * len(arrays), vector],
        out_specs=[block] * len(arrays),
        out_shape=[shape] * len(arrays),
        metadata=declared(0, x.dtype),
    )(*arrays, scale)
    return (results[0], results[1]) if adds else (x, results[0])


def _backward(
    interpret: bool,
    total: jax.Array,
    scale: jax.Array,
    dtotal: jax.Array,
    dnormed: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    count, dim = total.shape
    rows = _rows(dim)
    programs = count // (rows * _BLOCKS)
    block = pl.BlockSpec((rows * _BLOCKS, dim), lambda i: (i, 0))
    dx, dscale = _call(
        partial(_backward_kernel, rows=rows),
        "norm_backward",
        interpret,
        grid=(programs,),
        in_specs=[block, pl.BlockSpec((dim,), lambda i: (0,)), block, block],
        out_specs=[block, pl.BlockSpec((None, dim), lambda i: (i, 0))],
        out_shape=[
            jax.ShapeDtypeStruct(total.shape, total.dtype),
            jax.ShapeDtypeStruct((programs, dim), f32),
        ],
        metadata=declared(0, total.dtype),
    )(total, scale, dtotal, dnormed)
    return dx, dscale.sum(0)


def _norm_plainly(
    interpret: bool, x: jax.Array, delta: jax.Array | None, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _forward(interpret, x, delta, scale)


def _norm_forward(
    interpret: bool, x: jax.Array, delta: jax.Array | None, scale: jax.Array
) -> tuple[Any, Any]:
    total, normed = _forward(interpret, x, delta, scale)
    return (total, normed), (total, scale, delta is not None)


def _norm_backward(interpret: bool, saved: Any, gradients: Any) -> tuple[Any, ...]:
    total, scale, adds = saved
    dx, dscale = _backward(interpret, total, scale, *gradients)
    return dx, dx if adds else None, dscale


_norm = jax.custom_vjp(_norm_plainly, nondiff_argnums=(0,))
_norm.defvjp(_norm_forward, _norm_backward)
