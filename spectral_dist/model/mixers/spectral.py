"""The spectral mixer: a gated state space model with a fixed bank of decaying exponentials.

    y[t, d] = sum_{s <= t} response[t - s] . coefficients[:, d] u[s, d] + skip[d] u[t, d]

The same as a state space: x[t] = A x[t-1] + B u[t], y[t] = C x[t] + D u[t]. A and B are fixed
(filters.py); C (coefficients) and D (skip) are learned for each channel; response[t] = A^t B.

It is computed in one of three ways that agree: in chunks (training), by FFT (the reference in the
tests) or token by token (generation). All three take and return the state [B, N, D], so a sequence
may come in pieces. Read `mix_chunked` first, then `SpectralMixer`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectral_dist.array_typing import Array, Float, Float32
from spectral_dist.mesh import local, platform
from spectral_dist.model.filters import FilterBank, balanced_poles
from spectral_dist.model.kernels import kernels_run
from spectral_dist.model.kernels.spectral_plan import kernel_takes
from spectral_dist.model.layers import (
    causal_convolution,
    fan_in,
    identity_taps,
    parameter,
    rms_norm,
)
from spectral_dist.model.sequence import TimeShards, time_shards
from spectral_dist.settings import ModelConfig, SpectralConfig

_CHUNK = 128  # tokens, where a chunk's products are fast

MixForm = Callable[..., tuple[jax.Array, jax.Array]]


class SpectralState(NamedTuple):
    """The state after a sequence; its size does not depend on the length.

    Attributes:
      conv: the last K - 1 inputs of the short convolution, [B, K-1, 3, D], compute dtype.
      poles: the state x of the state space, [B, N, D], float32.
    """

    conv: jax.Array
    poles: jax.Array


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
        head, state_BND = run(u_BTD[:, :whole], state_BND, coefficients_ND, skip_D)
        tail, state_BND = run(u_BTD[:, whole:], state_BND, coefficients_ND, skip_D)
        return jnp.concatenate([head, tail], axis=1), state_BND

    dtype = u_BTD.dtype
    response_CN, powers_CNN = bank.responses(size), bank.powers(size)
    # float32 up to the kernel; only the large products are in u's dtype. The skip is its lag 0.
    h_DC = jnp.einsum("cn,nd->dc", _constant(response_CN), coefficients_ND).at[:, 0].add(skip_D)
    carry_DNC = jnp.einsum("nd,cnm->dmc", coefficients_ND, _constant(powers_CNN))
    kernel_DIC = jnp.concatenate([toeplitz(h_DC), carry_DNC], axis=1).astype(dtype)
    u_BMCD = u_BTD.reshape(batch, time // size, size, channels)
    inflow_MBND = jnp.einsum(
        "cn,bmcd->mbnd",
        _constant(response_CN[::-1]).astype(dtype),  # the last token of a chunk has response[0]
        u_BMCD,
        preferred_element_type=jnp.float32,
    )
    decay_NN = _constant(powers_CNN[-1])

    def carry(state: jax.Array, inflow: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.einsum("nm,bmd->bnd", decay_NN, state) + inflow, state

    # T / C short steps in sequence: the only loop over time, and the state stays in float32.
    last_BND, before_MBND = jax.lax.scan(carry, state_BND, inflow_MBND)
    before_BMND = before_MBND.swapaxes(0, 1).astype(dtype)
    inputs_BMID = jnp.concatenate([u_BMCD, before_BMND], axis=2)
    y_BMCD = jnp.einsum("bmid,dic->bmcd", inputs_BMID, kernel_DIC)
    return y_BMCD.reshape(batch, time, channels), last_BND


def mix_fft(
    u_BTD: Float[Array, "B T D"],
    state_BND: Float32[Array, "B N D"],
    coefficients_ND: Float32[Array, "N D"],
    skip_D: Float32[Array, " D"],
    *,
    bank: FilterBank,
) -> tuple[Float[Array, "B T D"], Float32[Array, "B N D"]]:
    """Mix by one FFT over the whole sequence, in float32: the reference for `mix_chunked`.

    Must run on local shards: XLA does not partition FFTs, and gathers the global batch instead.
    """
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
    *,
    bank: FilterBank,
) -> tuple[Float[Array, "B T D"], Float32[Array, "B N D"]]:
    """Mix token by token, in float32: the form for generation, in constant memory and time."""
    transition_NN = _constant(bank.transition_NN)
    drive_N = _constant(bank.drive_N)

    def token(state_BND: jax.Array, u_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
        u32_BD = u_BD.astype(jnp.float32)
        state_BND = jnp.einsum("nm,bmd->bnd", transition_NN, state_BND)
        state_BND += drive_N[None, :, None] * u32_BD[:, None, :]
        y_BD = jnp.einsum("nd,bnd->bd", coefficients_ND, state_BND) + skip_D[None] * u32_BD
        return state_BND, y_BD.astype(u_BD.dtype)

    last_BND, y_TBD = jax.lax.scan(token, state_BND, u_BTD.swapaxes(0, 1))
    return y_TBD.swapaxes(0, 1), last_BND


def choose_form(settings: SpectralConfig, bank: FilterBank) -> MixForm:
    """Return the form of computation that the setting `spectral_form` names."""
    return {
        "chunked": partial(mix_chunked, bank=bank, chunk_size=choose_chunk(settings)),
        "fft": partial(mix_fft, bank=bank),
        "recurrent": partial(mix_recurrent, bank=bank),
    }[settings.form]


def choose_chunk(settings: SpectralConfig) -> int:
    """Return the tokens of a chunk, for the platform that is compiled for."""
    # On a CPU a step of 256 x 6 at T = 512 takes 733 ms with 32, and 999 with 128: XLA lowers the
    # batched product of 128 differently there.
    return settings.chunk_size or {"cpu": 32}.get(platform(), _CHUNK)


def in_shards(form: MixForm, across: TimeShards, bank: FilterBank) -> MixForm:
    """Return a form of computation for a shard of time; the state comes from the shards before."""
    if not across.axes:
        return form

    def run(u_BTD: jax.Array, start_BND: jax.Array, *weights: jax.Array) -> Any:
        # Of the first call only the sums into the state are used: in the chunked form the same
        # product as the second's. The kernels have a way of their own.
        _, sums_BND = form(u_BTD, jnp.zeros_like(start_BND), *weights)
        across_NN = _constant(bank.power(u_BTD.shape[1]))
        before_BND, last_BND = across.states(sums_BND, start_BND, across_NN)
        return form(u_BTD, before_BND, *weights)[0], last_BND

    return run


class SpectralMixer(nnx.Module):
    """The mixer: q * group_norm(spectral convolution of k * v), between two dense projections.

    Sharding: channels over tensor, or time over sequence, from the first projection to the last;
    everything between runs on local shards. The one all-reduce comes after w_out; between shards of
    time only states and the short convolution's inputs cross.
    """

    def __init__(self, model: ModelConfig, settings: SpectralConfig, rngs: nnx.Rngs) -> None:
        """Declare w_in [D, 3, D], taps [K, 3, D], coefficients [N, D], skip [D], w_out [D, D]."""
        dim, poles, width = model.hidden_dim, settings.num_poles, settings.conv_width
        assert settings.tau_max is not None
        bank = balanced_poles(poles, settings.tau_min, settings.tau_max)
        self.settings, self.bank = settings, bank
        self.kernels = model.kernels
        self.in_kernel = settings.form == "chunked" and kernel_takes(poles, width, model.head_dim)
        # For a single token (generation) the recurrent form has the fewest FLOPs.
        self.recurrent = partial(mix_recurrent, bank=bank)
        self.shape = (poles, width, dim, model.head_dim)
        thin = "thin_channels"

        def one_exponential(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            # Each channel starts as one exponential of unit norm. Their time constants are spread
            # evenly, from short memory to long; noise lets the channels of one become different.
            nearest = np.round(np.linspace(0, poles - 1, dim)).astype(int)
            noise = jax.random.normal(key, shape, jnp.float32) * (0.1 / poles**0.5)
            return jnp.asarray(bank.cholesky_NN[nearest].T, jnp.float32) + noise

        self.w_in = parameter(rngs, (dim, 3, dim), ("embed", "branches", "channels"), fan_in(dim))
        self.taps = parameter(rngs, (width, 3, dim), ("taps", "branches", thin), identity_taps)
        self.coefficients = parameter(rngs, (poles, dim), ("poles", thin), one_exponential)
        self.skip = parameter(rngs, (dim,), (thin,), lambda key, shape: jnp.ones(shape))
        self.w_out = parameter(
            rngs, (dim, dim), ("channels", "embed"), fan_in(dim, model.num_layers)
        )

    def flops(self, seq_len: int) -> float:
        """Return forward FLOPs for a token in the chunked form, the same for any T."""
        del seq_len
        poles, _, dim, _ = self.shape
        # By the definition, whatever the platform: see mix_chunked.
        chunk = self.settings.chunk_size or _CHUNK
        return float((2 * (chunk + poles) + 4 * poles) * dim)

    def init_state(self, batch: int, dtype: jnp.dtype) -> SpectralState:
        """Return the state before the first token."""
        poles, width, dim, _ = self.shape
        return SpectralState(
            jnp.zeros((batch, width - 1, 3, dim), dtype),
            jnp.zeros((batch, poles, dim), jnp.float32),
        )

    def __call__(
        self, x_BTD: Float[Array, "B T D"], state: SpectralState | None
    ) -> tuple[Float[Array, "B T D"], SpectralState]:
        """Mix along time; operands in x's dtype, state in float32.

        Args:
          x_BTD: normalised input.
          state: what came before, or None at the start of a sequence.
        """
        dtype = x_BTD.dtype
        projected = jnp.einsum("btd,dkc->btkc", x_BTD, self.w_in[...].astype(dtype))
        inner = ("batch", "time", "branches", "channels")
        conv = ("batch", "tokens", "branches", "channels")
        at_state = SpectralState._make((conv, ("batch", "poles", "channels")))
        across = time_shards()
        kernels = self.kernels == "auto" and kernels_run(x_BTD.shape[1] // across.count)
        mixed_BTD, state = local(
            partial(self._mix_by_kernel if kernels and self.in_kernel else self._mix, across),
            (
                inner,
                None if state is None else at_state,
                ("taps", "branches", "channels"),
                ("poles", "channels"),
                ("channels",),
            ),
            (("batch", "time", "channels"), at_state),
        )(projected, state, self.taps[...], self.coefficients[...], self.skip[...])
        return jnp.einsum("btc,cd->btd", mixed_BTD, self.w_out[...].astype(dtype)), state

    def _mix(
        self,
        across: TimeShards,
        projected_BT3D: Float[Array, "B T 3 D"],
        state: SpectralState | None,
        taps_K3D: Float32[Array, "K 3 D"],
        coefficients_ND: Float32[Array, "N D"],
        skip_D: Float32[Array, " D"],
    ) -> tuple[Float[Array, "B T D"], SpectralState]:
        """Mix between the projections, on one device's shard of sequences, channels and time."""
        batch, time, _, channels = projected_BT3D.shape
        state = self._start(projected_BT3D) if state is None else state
        before = across.before(projected_BT3D, state.conv)
        # One after the other: of all three at once a CPU copies the gradient once more, which takes
        # half as long as the layer's projection.
        query, key, value = (
            causal_convolution(projected_BT3D[:, :, j], before[:, :, j], taps_K3D[:, j])
            for j in range(3)
        )
        conv = across.of_last(jnp.concatenate([before, projected_BT3D], axis=1)[:, time:])
        form = self.recurrent if time == 1 else choose_form(self.settings, self.bank)
        y_BTD, poles = in_shards(form, across, self.bank)(
            key * value, state.poles, coefficients_ND, skip_D
        )
        # Normalised in groups of head_dim channels: each lies on one device, so that no collective
        # is needed.
        group = self.shape[3]
        normed = rms_norm(y_BTD.reshape(batch, time, channels // group, group))
        return query * normed.reshape(batch, time, channels), SpectralState(conv, poles)

    def _mix_by_kernel(
        self,
        across: TimeShards,
        projected_BT3D: Float[Array, "B T 3 D"],
        state: SpectralState | None,
        taps_K3D: Float32[Array, "K 3 D"],
        coefficients_ND: Float32[Array, "N D"],
        skip_D: Float32[Array, " D"],
    ) -> tuple[Float[Array, "B T D"], SpectralState]:
        """Mix as `_mix` does, by the GPU kernels of kernels/spectral.py."""
        # Here, because loading Pallas takes a third of a second that no CPU needs.
        from spectral_dist.model.kernels.spectral import spectral_kernel

        def reference(
            p: jax.Array, conv: jax.Array, poles: jax.Array, *weights: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            mixed, after = self._mix(across, p, SpectralState(conv, poles), *weights)
            return mixed, after.poles

        mixed_BTD, poles = spectral_kernel(
            projected_BT3D,
            state,
            taps_K3D,
            coefficients_ND,
            skip_D,
            bank=self.bank,
            group=self.shape[3],
            reference=reference,
            across=across,
        )
        before = (self._start(projected_BT3D) if state is None else state).conv
        joined = jnp.concatenate([across.before(projected_BT3D, before), projected_BT3D], axis=1)
        conv = across.of_last(joined[:, projected_BT3D.shape[1] :])
        return mixed_BTD, SpectralState(conv, poles)

    def _start(self, projected_BT3D: Float[Array, "B T 3 D"]) -> SpectralState:
        """Return the state at the start, of one device's shard."""
        batch, _, branches, channels = projected_BT3D.shape
        poles, width, _, _ = self.shape
        return SpectralState(
            jnp.zeros((batch, width - 1, branches, channels), projected_BT3D.dtype),
            jnp.zeros((batch, poles, channels), jnp.float32),
        )
