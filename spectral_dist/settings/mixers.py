"""Settings and rules of each mixer: spectral, window attention, full attention, ssd.

The field names of `MixersConfig` are the names in a layer pattern, and the keys of the table
`spectral_dist.model.mixers.MIXERS`; a test compares the two. A section's `check` holds its mixer's
rules for the model and the mesh, and is called only if the layer pattern has the mixer. No JAX.
"""

from typing import Literal, cast

from pydantic.dataclasses import dataclass

from spectral_dist.settings.declare import STRICT, Float, Int, not_negative, positive, setting
from spectral_dist.settings.sections import SEQUENCE, MeshConfig, ModelConfig


def check_width(model: ModelConfig) -> int:
    """Return the number of heads, or of normalised groups: hidden_dim / head_dim.

    Raises:
      ValueError: if head_dim does not divide hidden_dim.
    """
    if model.hidden_dim % model.head_dim:
        raise ValueError(
            f"hidden_dim={model.hidden_dim}: must be a multiple of head_dim={model.head_dim}"
        )
    return model.hidden_dim // model.head_dim


def check_heads(model: ModelConfig, mesh: MeshConfig) -> None:
    """Check attention's rules for the numbers of heads.

    Raises:
      ValueError: if heads, key-value heads and the mesh axis `tensor` do not divide each other.
    """
    count, size, tensor = check_width(model), model.head_dim, mesh.sizes.get("tensor", 1)
    kv_heads = cast(int, model.num_kv_heads)  # derived by now
    if size % 2:  # rotary positions turn pairs of channels
        raise ValueError(f"head_dim={size}: must be even, for rotary positions")
    heads = f"the {count} heads of hidden_dim={model.hidden_dim} and head_dim={size}"
    if count % kv_heads:
        raise ValueError(f"num_kv_heads={kv_heads}: must divide {heads}")
    # Each device along `tensor` has whole heads, so that attention needs no collective.
    if count % tensor:
        raise ValueError(f"mesh={mesh.mesh}: tensor={tensor} must divide {heads}")
    if kv_heads % tensor:
        raise ValueError(f"mesh={mesh.mesh}: tensor={tensor} must divide num_kv_heads={kv_heads}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SpectralConfig:
    """The spectral mixer: a gated convolution with a bank of decaying exponentials."""

    num_poles: Int = positive(
        16,
        "state size N of the spectral mixer, in poles (decaying exponentials) for each channel",
        resume="same",
        compiled=True,
    )
    tau_min: Float = positive(
        0.5,
        "shortest time constant of the spectral mixer, in tokens",
        resume="same",
        compiled=True,
    )
    tau_max: Float | None = positive(
        None,
        "longest time constant of the spectral mixer, in tokens (default: seq_len / 4; longer ones"
        " do not extrapolate)",
        resume="same",
        compiled=True,
        # With a memory longer than this, longer text leads to states that training never saw.
        derive=lambda config: max(config.data.seq_len / 4, 2 * config.mixers.spectral.tau_min),
        follows=("data.seq_len", "mixers.spectral.tau_min"),
    )
    conv_width: Int = positive(
        4, "taps of the short convolution, in tokens", resume="same", compiled=True
    )
    chunk_size: Int = not_negative(
        0,
        "tokens in a chunk of the chunked form; 0: 32 on a CPU and 128 elsewhere (the kernels of a"
        " GPU have their own)",
        compiled=True,
    )
    form: Literal["chunked", "fft", "recurrent"] = setting(
        "chunked",
        "how training computes the spectral mixer",
        flag="spectral_form",
        compiled=True,
    )

    def check(self, model: ModelConfig, mesh: MeshConfig) -> None:
        """Check the poles, and that each device along `tensor` has whole groups of channels.

        Raises:
          ValueError: names the setting, its value and the rule.
        """
        groups, tensor = check_width(model), mesh.sizes.get("tensor", 1)
        # A group that is split over devices would need a collective inside the mixer.
        if groups % tensor:
            raise ValueError(
                f"mesh={mesh.mesh}: tensor={tensor} must divide the {groups} normalised"
                f" groups of hidden_dim={model.hidden_dim} and head_dim={model.head_dim}"
            )
        if cast(float, self.tau_max) <= self.tau_min:
            raise ValueError(f"tau_max={self.tau_max}: must be above tau_min={self.tau_min}")
        # The basis is exact to 4e-15 for up to 64 poles; more were not measured.
        if self.num_poles > 64:
            raise ValueError(
                f"num_poles={self.num_poles}: must be at most 64, or the poles coincide"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WindowConfig:
    """Window attention: over a sliding window."""

    window: Int = positive(
        512, "reach of window attention, in tokens", resume="same", compiled=True
    )

    def check(self, model: ModelConfig, mesh: MeshConfig) -> None:
        """Check the heads; raises as `check_heads` does."""
        check_heads(model, mesh)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AttentionConfig:
    """Full attention, the baseline."""

    conv_width: Int = positive(
        1,
        "taps of a short convolution of its queries, keys and values, in tokens; 1 for none",
        flag="attention_conv_width",
        resume="same",
        compiled=True,
    )

    def check(self, model: ModelConfig, mesh: MeshConfig) -> None:
        """Check the heads, and that time is whole.

        Raises:
          ValueError: as `check_heads` does, or if time is divided.
        """
        if mesh.sizes.get(SEQUENCE, 1) > 1:
            raise ValueError(
                f"sequence_parallel: mesh={mesh.mesh} divides time, but each token of attention in"
                f" layer_pattern={model.layer_pattern!r} sees all before it"
            )
        check_heads(model, mesh)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SSDConfig:
    """The ssd mixer: linear attention in heads whose state decays."""

    decay: Literal["data", "fixed"] = setting(
        "data",
        "what sets the decay of an ssd head: the token (data), or a constant (fixed)",
        flag="ssd_decay",
        resume="same",
        compiled=True,
    )
    tau_max: Float | None = positive(
        None,
        "longest time constant of the ssd mixer, in tokens (default: seq_len / 4)",
        flag="ssd_tau_max",
        resume="same",
        compiled=True,
        # As in the spectral mixer: a longer memory meets states that training never saw.
        derive=lambda config: max(config.data.seq_len / 4, 2.0),
        follows=("data.seq_len",),
    )
    conv_width: Int = positive(
        4,
        "taps of the ssd mixer's short convolution, in tokens",
        flag="ssd_conv_width",
        resume="same",
        compiled=True,
    )
    chunk_size: Int = not_negative(
        0,
        "tokens in a chunk of the ssd mixer; 0: 32 on a CPU and 128 elsewhere",
        flag="ssd_chunk_size",
        compiled=True,
    )

    def groups(self, model: ModelConfig) -> int:
        """Return how many groups share queries and keys: half of the heads; 1 of an odd number."""
        # With half as many the mixer has as many parameters as the others, 4 D^2.
        heads = check_width(model)
        return 1 if heads % 2 else heads // 2

    def check(self, model: ModelConfig, mesh: MeshConfig) -> None:
        """Check the groups of heads and the longest time constant.

        Raises:
          ValueError: names the setting, its value and the rule.
        """
        groups = self.groups(model)
        if groups % (tensor := mesh.sizes.get("tensor", 1)):
            raise ValueError(
                f"mesh={mesh.mesh}: tensor={tensor} must divide the {groups} groups of ssd heads of"
                f" hidden_dim={model.hidden_dim} and head_dim={model.head_dim}"
            )
        if cast(float, self.tau_max) <= 1:
            raise ValueError(f"ssd_tau_max={self.tau_max}: must be above 1")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixersConfig:
    """The mixers: a section for each kind."""

    spectral: SpectralConfig = SpectralConfig()
    window: WindowConfig = WindowConfig()
    attention: AttentionConfig = AttentionConfig()
    ssd: SSDConfig = SSDConfig()
