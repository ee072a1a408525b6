"""The choice of a mesh: every way to run a configuration on a number of devices, ranked.

Owns what a candidate is. Read `Candidate` first.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One way to run a configuration on the given devices.

    Attributes:
      mesh: as the setting of that name.
      batch_size: sequences in a micro-batch, over all devices.
      accum_steps: micro-batches in a step; the product of both is the same for all candidates.
      remat: as the setting of that name.
      peak: bytes that a device needs, without what the runtime adds; None where it is not known.
      spare: bytes left on a device, negative where it does not fit; None where no limit is known.
      step_seconds: of the roofline model; None where the training step was not compiled.
      tokens_per_second: over all devices, by the same model.
      reason: why it was left out; empty for a candidate that is ranked.
    """

    mesh: str
    batch_size: int
    accum_steps: int
    remat: str
    peak: int | None
    spare: int | None
    step_seconds: float | None
    tokens_per_second: float | None
    reason: str
