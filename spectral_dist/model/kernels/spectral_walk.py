"""What one program of the spectral mixer's GPU kernels does: its walk over time, both ways.

    out = q * group_norm(spectral convolution of k * v), (q, k, v) = short convolution of p

A program owns one segment of one sequence and one group of channels, and walks over its time in
chunks of C tokens. The responses of the bank are shared by all channels, so the states at all times
of a chunk are products of constant matrices with the chunk, and y is their mixture by the
coefficients. Nothing between p and the output is written to memory, but y for the backward pass.

The backward pass is the same walk in reversed time, driven by dy. With r[t] = A r[t+1] + B dy[t]
(the responses are the same in both directions), du[t] = C r[t] + D dy[t], and the gradient of the
coefficients is the sum over t of u[t] r[t]: no state of the forward pass is kept.

spectral.py calls these. Read `forward_kernel`, then `backward_kernel`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas.triton as plgpu
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from spectral_dist.model.filters import FilterBank

f32 = jnp.float32
_EPSILON = 1e-6  # of `layers.rms_norm`


def _dot(a: jax.Array, b: jax.Array, at: "Sizes") -> jax.Array:
    exact = at.precision if a.dtype == f32 else None
    return jnp.dot(a, b, preferred_element_type=f32, precision=exact)


def _constant(ref: Any, columns: Any = slice(None)) -> jax.Array:
    # Volatile, or the compiler keeps every constant in registers over the whole loop, and spills.
    return plgpu.load(ref.at[:, columns], volatile=True)


def constants(bank: FilterBank, chunk: int, taps: int, dtype: Any) -> dict[str, jax.Array]:
    """Return the constant matrices of the kernels, for chunks of C tokens.

    states [C, N C]: from each input of a chunk to the states at each time of it. carry [N, N C]:
    from the state before the chunk. inflow [C, N], decay [N, N]: from both to the state after it.
    reversed_*: the same in reversed time. up, after [C, K C]: to row t + k, from the chunk itself,
    and from its follower where t + k >= C.
    """
    size = bank.drive_N.size
    response_CN, powers_CNN = bank.responses(chunk), bank.powers(chunk)
    states = np.zeros((chunk, size, chunk))  # [from, n, at]
    for t in range(chunk):
        states[: t + 1, :, t] = response_CN[t::-1]
    carry = np.transpose(powers_CNN, (2, 1, 0))  # [from, n, at]
    up, after = np.zeros((2, chunk, taps, chunk))
    for k in range(taps):
        for t in range(chunk):
            (up if t + k < chunk else after)[(t + k) % chunk, k, t] = 1

    def flat(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x.reshape(x.shape[0], -1), dtype)

    return {
        "states": flat(states),
        "carry": flat(carry),
        "inflow": jnp.asarray(response_CN[::-1], dtype),
        "decay": jnp.asarray(powers_CNN[-1].T, f32),
        "reversed_states": flat(states.transpose(2, 1, 0)),
        "reversed_carry": flat(carry[:, :, ::-1]),
        "reversed_inflow": jnp.asarray(response_CN, dtype),
        "up": flat(up),
        "after": flat(after),
    }


def _taps(taps_ref: Any, k: int, j: int, dtype: Any) -> jax.Array:
    return taps_ref[k, j, :].astype(dtype).astype(f32)[None, :]


def _shifted(p_ref: Any, start: Any, k: int, j: int, chunk: int, before: int) -> jax.Array:
    """Return rows start - k ... of branch j; rows before the first are zero."""
    first = start + (before - k)
    if k <= before:
        return p_ref[pl.ds(first, chunk), j, :]
    here = first + jnp.arange(chunk)
    rows = p_ref[jnp.maximum(here, 0), jnp.full((chunk,), j), :]
    return jnp.where((here >= 0)[:, None], rows, jnp.zeros_like(rows))


def _convolved(p_ref: Any, taps_ref: Any, start: Any, j: int, at: "Sizes") -> jax.Array:
    """Return the short convolution of a chunk of branch j, [C, channels]."""
    dtype = p_ref.dtype
    total = jnp.zeros((at.chunk, p_ref.shape[-1]), f32)
    for k in range(at.taps):
        rows = _shifted(p_ref, start, k, j, at.chunk, at.before)
        total += rows.astype(f32) * _taps(taps_ref, k, j, dtype)
    return total.astype(dtype)


@dataclass(frozen=True)
class Sizes:
    """The static sizes of a program.

    Attributes:
      chunk: C, tokens of a step of the walk.
      poles: N.
      held: poles whose states are in registers at once.
      taps: K, of the short convolution.
      before: rows of p in front of the first token.
      length: of the segment, in tokens.
      precision: of products of float32.
    """

    chunk: int
    poles: int
    held: int
    taps: int
    before: int
    length: int
    precision: Any


def _mixture(
    states_ref: Any,
    carry_ref: Any,
    coef_ref: Any,
    u: jax.Array,
    s: jax.Array,
    at: Sizes,
    sums: tuple[Any, jax.Array] | None = None,
) -> jax.Array:
    """Return sum_n c_n S_n, [channels, C], of the states S at each time of a chunk.

    Args:
      states_ref: the constants from the chunk, [C, N C].
      carry_ref: the constants from the state before it, [N, N C].
      coef_ref: the coefficients c, [N, channels].
      u: the chunk, [channels, C].
      s: the state before it, [channels, N].
      at: the sizes.
      sums: a reference [N, channels] and an array [channels, C], whose sum over time with each
        state is added to the former.
    """
    # Channels are the rows of all products: then the states of a channel lie in one warp, those at
    # one time in one thread, and their mixture needs no exchange.
    channels, size = u.shape
    total = jnp.zeros((channels, size), f32)
    for i in range(0, at.poles, at.held):
        columns = pl.ds(i * size, at.held * size)
        block = _dot(u, _constant(states_ref, columns), at)
        block += _dot(s, _constant(carry_ref, columns), at)
        block = block.reshape(channels, at.held, size)
        weights = plgpu.load(coef_ref.at[pl.ds(i, at.held), :], volatile=True).T
        total += jnp.sum(block * weights[:, :, None], axis=1)
        if sums is not None:
            # Sums over all chunks of a segment stay in memory: registers are too few for them.
            sums[0][pl.ds(i, at.held), :] += jnp.sum(block * sums[1][:, None, :], axis=2).T
    return total


def _step(decay_ref: Any, inflow_ref: Any, s: jax.Array, u: jax.Array, at: Sizes) -> jax.Array:
    return _dot(s, _constant(decay_ref), at) + _dot(u, _constant(inflow_ref), at)


def _normed(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    r = jax.lax.rsqrt(jnp.mean(y * y, axis=1, keepdims=True) + _EPSILON)
    return y * r, r


def inflow_kernel(
    p_ref: Any, taps_ref: Any, decay_ref: Any, inflow_ref: Any, last_ref: Any, *, at: Sizes
) -> None:
    """Write the state after a segment that begins with none."""
    first = pl.program_id(2) * at.length

    def chunk(m: Any, s: jax.Array) -> jax.Array:
        start = first + m * at.chunk
        k = _convolved(p_ref, taps_ref, start, 1, at)
        v = _convolved(p_ref, taps_ref, start, 2, at)
        return _step(decay_ref, inflow_ref, s, (k * v).T, at)

    zero = jnp.zeros((p_ref.shape[-1], at.poles), f32)
    last_ref[:, :] = jax.lax.fori_loop(0, at.length // at.chunk, chunk, zero).T


def forward_kernel(
    p_ref: Any,
    taps_ref: Any,
    coef_ref: Any,
    skip_ref: Any,
    state_ref: Any,
    states_ref: Any,
    carry_ref: Any,
    decay_ref: Any,
    inflow_ref: Any,
    out_ref: Any,
    last_ref: Any,
    *kept: Any,
    at: Sizes,
) -> None:
    """Write the output of a segment, the state after it and, where it is kept, y."""
    dtype = p_ref.dtype
    first = pl.program_id(2) * at.length

    def chunk(m: Any, s: jax.Array) -> jax.Array:
        start = first + m * at.chunk
        here = pl.ds(start, at.chunk)
        k, v = (_convolved(p_ref, taps_ref, start, j, at) for j in (1, 2))
        u = k * v
        y = _mixture(states_ref, carry_ref, coef_ref, u.T, s.astype(dtype), at)
        y = (y.T + skip_ref[:][None, :] * u.astype(f32)).astype(dtype)
        for y_ref in kept:
            y_ref[here, :] = y
        q = _convolved(p_ref, taps_ref, start, 0, at)
        out_ref[here, :] = q * _normed(y.astype(f32))[0].astype(dtype)
        return _step(decay_ref, inflow_ref, s, u.T, at)

    last_ref[:, :] = jax.lax.fori_loop(0, at.length // at.chunk, chunk, state_ref[:, :].T).T


def _dy(
    q: jax.Array, y_ref: Any, dout_ref: Any, here: Any, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of y and of q, in float32 and rounded as the forward pass rounds."""
    dout = dout_ref[here, :].astype(f32)
    normed, r = _normed(y_ref[here, :].astype(f32))
    dq = dout * normed.astype(dtype).astype(f32)
    dnormed = (dout * q.astype(f32)).astype(dtype).astype(f32)
    return r * (dnormed - normed * jnp.mean(dnormed * normed, axis=1, keepdims=True)), dq


def reversed_inflow_kernel(
    p_ref: Any,
    taps_ref: Any,
    decay_ref: Any,
    inflow_ref: Any,
    y_ref: Any,
    dout_ref: Any,
    last_ref: Any,
    *,
    at: Sizes,
) -> None:
    """Write the state before a segment, in reversed time, that begins with none."""
    dtype = p_ref.dtype
    end = (pl.program_id(2) + 1) * at.length

    def chunk(m: Any, s: jax.Array) -> jax.Array:
        start = end - (m + 1) * at.chunk
        q = _convolved(p_ref, taps_ref, start, 0, at)
        dy, _ = _dy(q, y_ref, dout_ref, pl.ds(start, at.chunk), dtype)
        return _step(decay_ref, inflow_ref, s, dy.astype(dtype).T, at)

    zero = jnp.zeros((p_ref.shape[-1], at.poles), f32)
    last_ref[:, :] = jax.lax.fori_loop(0, at.length // at.chunk, chunk, zero).T


def _convolution_backward(
    p_ref: Any,
    taps_ref: Any,
    up_ref: Any,
    after_ref: Any,
    dp_ref: Any,
    dtaps_ref: Any,
    at: Sizes,
    j: int,
    now: jax.Array,
    later: jax.Array,
    start: Any,
) -> jax.Array:
    """Write the gradient of branch j's inputs in a chunk, and add to that of its taps.

    Given the gradient of the convolution's results in the chunk (now, [channels, C]) and in the
    chunk after it (later); returns the former.
    """
    dtype, here = p_ref.dtype, pl.ds(start, at.chunk)
    shifted = _dot(now, _constant(up_ref), at) + _dot(later, _constant(after_ref), at)
    shifted = shifted.reshape(now.shape[0], at.taps, at.chunk)
    weights = taps_ref[:, j, :].astype(dtype).astype(f32).T
    dp_ref[here, j, :] = jnp.sum(shifted * weights[:, :, None], axis=1).astype(dtype).T
    rows = p_ref[pl.ds(start + at.before, at.chunk), j, :].astype(f32).T
    dtaps_ref[:, j, :] += jnp.sum(shifted * rows[:, None, :], axis=2).T
    return now


def backward_kernel(
    p_ref: Any,
    taps_ref: Any,
    coef_ref: Any,
    skip_ref: Any,
    state_ref: Any,
    states_ref: Any,
    carry_ref: Any,
    decay_ref: Any,
    inflow_ref: Any,
    up_ref: Any,
    after_ref: Any,
    y_ref: Any,
    dout_ref: Any,
    dp_ref: Any,
    dtaps_ref: Any,
    dcoef_ref: Any,
    dskip_ref: Any,
    edge_ref: Any,
    *,
    at: Sizes,
) -> None:
    """Write a segment's gradients: of p, and its sums for the taps, coefficients and skip.

    Also the gradient of the convolution's results in the first chunk (edge), in which the inputs
    before the segment take part.
    """
    dtype, channels, size = p_ref.dtype, p_ref.shape[-1], at.chunk
    end = (pl.program_id(2) + 1) * at.length
    skip = skip_ref[:][:, None]
    back = partial(_convolution_backward, p_ref, taps_ref, up_ref, after_ref, dp_ref, dtaps_ref, at)

    def chunk(m: Any, held: Any) -> Any:
        s, later = held
        start = end - (m + 1) * size
        here = pl.ds(start, size)
        q = _convolved(p_ref, taps_ref, start, 0, at)
        dy, dq = _dy(q, y_ref, dout_ref, here, dtype)
        dy = dy.astype(dtype).T
        dq = back(0, dq.astype(dtype).T, later[0], start)
        k, v = (_convolved(p_ref, taps_ref, start, j, at) for j in (1, 2))
        k, v, u = k.T, v.T, (k * v).astype(f32).T
        dskip_ref[:] += jnp.sum(u * dy.astype(f32), axis=1)
        sums = dcoef_ref, u
        du = _mixture(states_ref, carry_ref, coef_ref, dy, s.astype(dtype), at, sums)
        du += skip * dy.astype(f32)
        dk = back(1, (du * v.astype(f32)).astype(dtype), later[1], start)
        dv = back(2, (du * k.astype(f32)).astype(dtype), later[2], start)
        return _step(decay_ref, inflow_ref, s, dy, at), (dq, dk, dv)

    dcoef_ref[:, :] = jnp.zeros(dcoef_ref.shape, f32)
    dskip_ref[:] = jnp.zeros(dskip_ref.shape, f32)
    for j in range(3):
        dtaps_ref[:, j, :] = jnp.zeros((at.taps, channels), f32)
    start = state_ref[:, :].T, (jnp.zeros((channels, size), dtype),) * 3
    _, edge = jax.lax.fori_loop(0, at.length // size, chunk, start)
    for j in range(3):
        edge_ref[:, j, :] = edge[j].T
