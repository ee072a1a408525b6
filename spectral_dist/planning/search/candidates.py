"""The candidates of `--mesh=auto`: every way to run a configuration on a number of devices.

Owns what the search chooses, and what a candidate says of itself. Read `Candidate`, then
`settings_of`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spectral_dist.settings import SETTINGS, Config, with_values

# The settings that the search chooses.
CHOSEN = ("mesh", "batch_size", "accum_steps", "remat", "unroll")
REMAT = ("none", "dots", "full")  # by what the forward pass saves, the most first
UNROLL = ("all", "none")
assert SETTINGS["remat"].choices == REMAT
assert set(SETTINGS["unroll"].choices or ()) == {"auto", *UNROLL}
Kind = tuple[str, str]  # remat, unroll


@dataclass(frozen=True)
class Candidate:
    """One way to run a configuration on the given devices.

    Attributes:
      mesh: the setting of that name, sizes of data x fsdp x tensor.
      batch_size: sequences in a micro-batch, over all devices.
      accum_steps: gradient accumulation steps; batch_size x accum_steps is the same for all.
      remat: activation checkpointing, the setting of that name.
      unroll: whether the blocks of layers are a loop, the setting of that name.
      peak: bytes on a device without the runtime's; None where it was not compiled.
      spare: bytes left on a device, negative where it does not fit; None where no limit is known.
      step_seconds: by the roofline model; None where it was not compiled.
      tokens_per_second: over all devices, by the same model.
      reason: why it was left out; empty for a candidate that is ranked.
    """

    mesh: str
    batch_size: int
    accum_steps: int
    remat: str
    unroll: str
    peak: int | None
    spare: int | None
    step_seconds: float | None
    tokens_per_second: float | None
    reason: str

    @property
    def flags(self) -> str:
        """The command-line flags that select it."""
        return (
            f"--mesh={self.mesh} --batch_size={self.batch_size}"
            f" --accum_steps={self.accum_steps} --remat={self.remat} --unroll={self.unroll}"
        )


def kind_of(config: Config) -> Kind:
    """Return what changes the kernels themselves: remat and unroll."""
    return config.model.remat, config.model.unroll


def blank(config: Config) -> Candidate:
    """Return the candidate that a configuration is, not compiled."""
    settings = (config.mesh.mesh, config.data.batch_size, config.data.accum_steps, *kind_of(config))
    return Candidate(*settings, None, None, None, None, "")


def chosen_config(config: Config, candidate: Candidate) -> Config:
    """Return a configuration with a candidate's settings.

    Raises:
      ValueError: if they break a rule of the settings.
    """
    return with_values(config, {name: getattr(candidate, name) for name in CHOSEN})


def settings_of(config: Config, count: int) -> Iterator[tuple[str, int, int, str, str]]:
    """Yield mesh, batch_size, accum_steps, remat and unroll of every candidate, valid or not.

    That is every mesh of `count` devices, every split of the step's batch, every remat, and for a
    model of several blocks of layers both a loop over them and none.
    """
    blocks = config.model.num_layers // len(config.model.pattern)
    kinds = [(remat, unroll) for remat in REMAT for unroll in (UNROLL if blocks > 1 else ("none",))]
    # The step's batch is not searched: another one would be another training run.
    batch = config.data.batch_size * config.data.accum_steps
    for data, rest in _factors(count):
        for fsdp, tensor in _factors(rest):
            for batch_size, accum_steps in _factors(batch):
                for kind in kinds:
                    yield f"{data}x{fsdp}x{tensor}", batch_size, accum_steps, *kind


def _factors(number: int) -> Sequence[tuple[int, int]]:
    """Return each pair of positive integers with this product, by the first one."""
    return [(n, number // n) for n in range(1, number + 1) if number % n == 0]
