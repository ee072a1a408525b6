"""The spectral mixer's convolution: three forms of computation that agree.

In chunks (training), by FFT (the reference in the tests) or token by token (generation). All three
take and return the state [B, N, D], so a sequence may come in pieces; with a reach (documents.py)
each document begins with an empty one. Read `mix_chunked`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_dist.array_typing import Array, Float, Float32, Int32
from spectral_dist.model.documents import (
    each_document,
    goes_through,
    masked,
    numbered,
    of_last_document,
)
from spectral_dist.model.filters import FilterBank
from spectral_dist.model.sequence import TimeShards

MixForm = Callable[..., tuple[jax.Array, jax.Array]]


def toeplitz(h_DC: Float[Array, "D C"]) -> Float[Array, "D C C"]:
    """Return each channel's Toeplitz matrix: entry [j, i] = h[i - j] where i >= j, else 0."""
    # By padding and reshaping: read with rows of 2 C - 1 instead of 2 C, each row starts one place
    # later. Not by a gather, whose gradient would be a scatter; this one's is a sum.
    channels, size = h_DC.shape
    row_D2C = jnp.pad(h_DC, ((0, 0), (0, size)))
    flat = jnp.broadcast_to(row_D2C[:, None, :], (channels, size, 2 * size))
    flat = flat.reshape(channels, 2 * size * size)[:, : size * (2 * size - 1)]
    return flat.reshape(channels, size, 2 * size - 1)[:, :, :size]


def _constant(x: np.ndarray) -> jax.Array:
    # The bank is float64: in JAX's x64 mode it would stay so and widen every product.
    return jnp.asarray(x, jnp.float32)


def mix_chunked(
    u_BTD: Float[Array, "B T D"],
    state_BND: Float32[Array, "B N D"],
    coefficients_ND: Float32[Array, "N D"],
    skip_D: Float32[Array, " D"],
    reach_BT: Int32[Array, "B T"] | None = None,
    *,
    bank: FilterBank,
    chunk_size: int,
) -> tuple[Float[Array, "B T D"], Float32[Array, "B N D"]]:
    """Mix in chunks of C tokens, all by matrix products: the form for training.

    Inside a chunk, one product for each channel: [Toeplitz(h) | R] times [u ; state], where
    h = response . coefficients and R[i] = coefficients A^(i+1). From chunk to chunk the state is
    carried by A^C, in float32. About 2 (C + N) + 4 N FLOPs an element.

    Args:
      u_BTD: input; its dtype is the dtype of the operands, sums are float32.
      state_BND: the state before the first token.
      coefficients_ND: C of the state space: how each channel mixes the responses, learned.
      skip_D: D of the state space: the weight of the input itself, learned.
      reach_BT: how many tokens before its own each sees (documents.py); all, if it is None.
      bank: A and B of the state space, fixed.
      chunk_size: C.

    Returns:
      y_BTD in u's dtype, and the state after the last token.
    """
    batch, time, channels = u_BTD.shape
    size = min(chunk_size, time)
    whole = time - time % size
    if whole < time:  # the rest is one shorter chunk
        run = partial(mix_chunked, bank=bank, chunk_size=chunk_size)
        early, late = (
            None if reach_BT is None else reach_BT[:, part]
            for part in (slice(whole), slice(whole, None))
        )
        head, state_BND = run(u_BTD[:, :whole], state_BND, coefficients_ND, skip_D, early)
        tail, state_BND = run(u_BTD[:, whole:], state_BND, coefficients_ND, skip_D, late)
        return jnp.concatenate([head, tail], axis=1), state_BND

    dtype = u_BTD.dtype
    kernel_DIC = _chunk_kernel(coefficients_ND, skip_D, bank, size).astype(dtype)
    u_BMCD = u_BTD.reshape(batch, time // size, size, channels)
    reach_BMC = None if reach_BT is None else reach_BT.reshape(batch, time // size, size)
    last_BND, before_MBND = _chunk_states(u_BMCD, state_BND, reach_BMC, bank)
    inputs = u_BMCD, before_MBND.swapaxes(0, 1).astype(dtype), kernel_DIC
    if reach_BMC is None:
        y_BMCD = _chunk_product(*inputs)
    else:
        y_BMCD = each_document(_chunk_product, numbered(reach_BMC), *inputs)
    return y_BMCD.reshape(batch, time, channels), last_BND


def _chunk_states(
    u_BMCD: jax.Array, state_BND: jax.Array, reach_BMC: jax.Array | None, bank: FilterBank
) -> tuple[jax.Array, jax.Array]:
    """Return the state after the last chunk, and those before each chunk [M, B, N, D]; float32."""
    size = u_BMCD.shape[2]
    # The last token of a chunk has response[0].
    weights_CN = _constant(bank.responses(size)[::-1]).astype(u_BMCD.dtype)
    decay_NN = _constant(bank.powers(size)[-1])
    through_MB = None
    if reach_BMC is not None:
        u_BMCD = masked(u_BMCD, of_last_document(reach_BMC))
        through_MB = goes_through(reach_BMC).T
    inflow_MBND = jnp.einsum(
        "cn,bmcd->mbnd", weights_CN, u_BMCD, preferred_element_type=jnp.float32
    )

    def carry(state: jax.Array, chunk: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
        inflow, through = chunk
        return masked(jnp.einsum("nm,bmd->bnd", decay_NN, state), through) + inflow, state

    # T / C short steps in sequence: the only loop over time, and the state stays in float32.
    return jax.lax.scan(carry, state_BND, (inflow_MBND, through_MB))


def _chunk_kernel(
    coefficients_ND: jax.Array, skip_D: jax.Array, bank: FilterBank, size: int
) -> jax.Array:
    """Return [Toeplitz(h) | R] of each channel, float32 [D, I, C]."""
    # float32 up to the kernel; only the large products are in u's dtype. The skip is its lag 0.
    response_CN, powers_CNN = bank.responses(size), bank.powers(size)
    h_DC = jnp.einsum("cn,nd->dc", _constant(response_CN), coefficients_ND).at[:, 0].add(skip_D)
    carry_DNC = jnp.einsum("nd,cnm->dmc", coefficients_ND, _constant(powers_CNN))
    return jnp.concatenate([toeplitz(h_DC), carry_DNC], axis=1)


def _chunk_product(u_BMCD: jax.Array, before_BMND: jax.Array, kernel_DIC: jax.Array) -> jax.Array:
    """Return y of every chunk from its tokens and the state before it."""
    inputs_BMID = jnp.concatenate([u_BMCD, before_BMND], axis=2)
    return jnp.einsum("bmid,dic->bmcd", inputs_BMID, kernel_DIC)


def mix_fft(
    u_BTD: Float[Array, "B T D"],
    state_BND: Float32[Array, "B N D"],
    coefficients_ND: Float32[Array, "N D"],
    skip_D: Float32[Array, " D"],
    reach_BT: Int32[Array, "B T"] | None = None,
    *,
    bank: FilterBank,
) -> tuple[Float[Array, "B T D"], Float32[Array, "B N D"]]:
    """Mix by one FFT over the whole sequence, in float32: the reference for `mix_chunked`.

    Must run on local shards: XLA does not partition FFTs, and gathers the global batch instead.
    """
    if reach_BT is not None:
        run = partial(mix_fft, bank=bank)
        inputs = u_BTD, state_BND, coefficients_ND, skip_D
        of_last, through = of_last_document(reach_BT), goes_through(reach_BT)
        y_BTD = each_document(lambda *x: run(*x)[0], numbered(reach_BT), *inputs)
        return y_BTD, run(masked(u_BTD, of_last), masked(state_BND, through), *inputs[2:])[1]
    time = u_BTD.shape[1]
    u32_BTD = u_BTD.astype(jnp.float32)
    response_TN = _constant(bank.responses(time))
    powers_TNN = _constant(bank.powers(time))
    h_TD = response_TN @ coefficients_ND
    # Padded to 2 T: at T the end of the sequence would wrap around to its start.
    spectrum = jnp.fft.rfft(h_TD, 2 * time, axis=0)[None] * jnp.fft.rfft(u32_BTD, 2 * time, axis=1)
    y_BTD = jnp.fft.irfft(spectrum, 2 * time, axis=1)[:, :time]
    y_BTD += jnp.einsum("nd,tnm,bmd->btd", coefficients_ND, powers_TNN, state_BND)
    y_BTD += skip_D[None, None] * u32_BTD
    inflow_BND = jnp.einsum("tn,btd->bnd", response_TN[::-1], u32_BTD)
    last_BND = jnp.einsum("nm,bmd->bnd", powers_TNN[-1], state_BND) + inflow_BND
    return y_BTD.astype(u_BTD.dtype), last_BND


def mix_recurrent(
    u_BTD: Float[Array, "B T D"],
    state_BND: Float32[Array, "B N D"],
    coefficients_ND: Float32[Array, "N D"],
    skip_D: Float32[Array, " D"],
    reach_BT: Int32[Array, "B T"] | None = None,
    *,
    bank: FilterBank,
) -> tuple[Float[Array, "B T D"], Float32[Array, "B N D"]]:
    """Mix token by token, in float32: the form for generation, in constant memory and time."""
    transition_NN = _constant(bank.transition_NN)
    drive_N = _constant(bank.drive_N)

    def token(state_BND: jax.Array, now: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
        u_BD, goes_on_B = now
        u32_BD = u_BD.astype(jnp.float32)
        state_BND = masked(state_BND, goes_on_B)
        state_BND = jnp.einsum("nm,bmd->bnd", transition_NN, state_BND)
        state_BND += drive_N[None, :, None] * u32_BD[:, None, :]
        y_BD = jnp.einsum("nd,bnd->bd", coefficients_ND, state_BND) + skip_D[None] * u32_BD
        return state_BND, y_BD.astype(u_BD.dtype)

    goes_on_TB = None if reach_BT is None else (reach_BT > 0).T
    last_BND, y_TBD = jax.lax.scan(token, state_BND, (u_BTD.swapaxes(0, 1), goes_on_TB))
    return y_TBD.swapaxes(0, 1), last_BND


def in_shards(form: MixForm, across: TimeShards, bank: FilterBank) -> MixForm:
    """Return a form of computation for a shard of time; the state comes from the shards before."""
    if not across.axes:
        return form

    def run(
        u_BTD: jax.Array,
        start_BND: jax.Array,
        coefficients_ND: jax.Array,
        skip_D: jax.Array,
        reach_BT: jax.Array | None,
    ) -> Any:
        weights = coefficients_ND, skip_D, reach_BT
        # Of the first call only the sums into the state are used: in the chunked form the same
        # product as the second's. The kernels have a way of their own.
        _, sums_BND = form(u_BTD, jnp.zeros_like(start_BND), *weights)
        across_NN = _constant(bank.power(u_BTD.shape[1]))
        through_B = None if reach_BT is None else goes_through(reach_BT)
        before_BND, last_BND = across.states(sums_BND, start_BND, across_NN, through_B)
        return form(u_BTD, before_BND, *weights)[0], last_BND

    return run
