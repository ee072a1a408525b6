"""The spectral mixer: a gated state space model with a fixed bank of decaying exponentials.

    y[t, d] = sum_{s <= t} response[t - s] . coefficients[:, d] u[s, d] + skip[d] u[t, d]

The same as a state space: x[t] = A x[t-1] + B u[t], y[t] = C x[t] + D u[t]. A and B are fixed
(filters.py); C (coefficients) and D (skip) are learned for each channel; response[t] = A^t B.

It is computed in one of three ways that agree (spectral_forms.py). Read `SpectralMixer`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectral_dist.array_typing import Array, Float, Float32, Int32
from spectral_dist.mesh import local, platform
from spectral_dist.model.documents import visible_to_next
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
from spectral_dist.model.mixers.spectral_forms import (
    MixForm,
    in_shards,
    mix_chunked,
    mix_fft,
    mix_recurrent,
)
from spectral_dist.model.sequence import TimeShards, time_shards
from spectral_dist.settings import ModelConfig, SpectralConfig

_CHUNK = 128  # tokens, where a chunk's products are fast


class SpectralState(NamedTuple):
    """The state after a sequence; its size does not depend on the length.

    Attributes:
      conv: the last K - 1 inputs of the short convolution, [B, K-1, 3, D], compute dtype.
      poles: the state x of the state space, [B, N, D], float32.
    """

    conv: jax.Array
    poles: jax.Array


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
        self,
        x_BTD: Float[Array, "B T D"],
        state: SpectralState | None,
        reach_BT: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], SpectralState]:
        """Mix along time; operands in x's dtype, state in float32.

        Args:
          x_BTD: normalised input.
          state: what came before, or None at the start of a sequence.
          reach_BT: how many tokens before its own each sees; all, if it is None.
        """
        dtype = x_BTD.dtype
        projected = jnp.einsum("btd,dkc->btkc", x_BTD, self.w_in[...].astype(dtype))
        inner = ("batch", "time", "branches", "channels")
        conv = ("batch", "tokens", "branches", "channels")
        at_state = SpectralState._make((conv, ("batch", "poles", "channels")))
        across = time_shards()
        # The kernels know no documents.
        kernels = self.kernels == "auto" and reach_BT is None
        kernels = kernels and kernels_run(x_BTD.shape[1] // across.count)
        mixed_BTD, state = local(
            partial(self._mix_by_kernel if kernels and self.in_kernel else self._mix, across),
            (
                inner,
                None if state is None else at_state,
                ("taps", "branches", "channels"),
                ("poles", "channels"),
                ("channels",),
                None if reach_BT is None else ("batch", "time"),
            ),
            (("batch", "time", "channels"), at_state),
        )(projected, state, self.taps[...], self.coefficients[...], self.skip[...], reach_BT)
        return jnp.einsum("btc,cd->btd", mixed_BTD, self.w_out[...].astype(dtype)), state

    def _mix(
        self,
        across: TimeShards,
        projected_BT3D: Float[Array, "B T 3 D"],
        state: SpectralState | None,
        taps_K3D: Float32[Array, "K 3 D"],
        coefficients_ND: Float32[Array, "N D"],
        skip_D: Float32[Array, " D"],
        reach_BT: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], SpectralState]:
        """Mix between the projections, on one device's shard of sequences, channels and time."""
        batch, time, _, channels = projected_BT3D.shape
        state = self._start(projected_BT3D) if state is None else state
        before = across.before(projected_BT3D, state.conv)
        # One after the other: of all three at once a CPU copies the gradient once more, which takes
        # half as long as the layer's projection.
        query, key, value = (
            causal_convolution(projected_BT3D[:, :, j], before[:, :, j], taps_K3D[:, j], reach_BT)
            for j in range(3)
        )
        conv = jnp.concatenate([before, projected_BT3D], axis=1)[:, time:]
        conv = across.of_last(visible_to_next(conv, reach_BT))
        form = self.recurrent if time == 1 else choose_form(self.settings, self.bank)
        y_BTD, poles = in_shards(form, across, self.bank)(
            key * value, state.poles, coefficients_ND, skip_D, reach_BT
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
        reach_BT: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], SpectralState]:
        """Mix as `_mix` does, by the GPU kernels of kernels/spectral.py."""
        assert reach_BT is None
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
