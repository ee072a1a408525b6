"""The phases of a curriculum: from steps in the settings to mixtures, and indices of sequences.

Imports no JAX. Read `stretches`, then `phases_of`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from spectral_dist.settings import Config, normalise_weights
from spectral_dist.settings.datasets import scale

_RAMP_STRETCHES = 20  # of a ramp: 5% of the change each


@dataclass(frozen=True)
class Stretch:
    """Steps of a run with one mixture: a phase, or a part of the ramp into one.

    Attributes:
      phase: its number, from 0.
      first: completed steps before it.
      steps: its length.
      weights: of the datasets in the order of the settings, summing to 1.
    """

    phase: int
    first: int
    steps: int
    weights: tuple[float, ...]


def stretches(config: Config) -> list[Stretch]:
    """Return the stretches of a run one after the other; a run without phases is one."""
    if not config.phases:
        return [Stretch(0, 0, config.run.steps, normalise_weights(config.datasets)[0])]
    found: list[Stretch] = []
    first, before = 0, tuple[float, ...]()
    for number, (phase, steps) in enumerate(zip(config.phases, config.phase_steps, strict=True)):
        shares = dict(phase.weights)
        weights, _ = scale([shares.get(str(d.name), 0.0) for d in config.datasets])
        # A ramp is cut into stretches, so that the shares of each are exact like a phase's.
        count = min(phase.ramp, _RAMP_STRETCHES)
        cuts = [phase.ramp * i // count for i in range(count)] if count else []
        for start, end in zip(cuts, [*cuts[1:], phase.ramp], strict=False):
            part = (start + end) / 2 / phase.ramp
            mixed = [(1 - part) * b + part * w for b, w in zip(before, weights, strict=True)]
            found.append(Stretch(number, first + start, end - start, tuple(mixed)))
        if steps > phase.ramp:
            found.append(Stretch(number, first + phase.ramp, steps - phase.ramp, tuple(weights)))
        first, before = first + steps, tuple(weights)
    return found


def phases_of(config: Config, step: int, sequence: int) -> list[tuple[int, tuple[float, ...]]]:
    """Return, for each stretch, the index of its first sequence and its weights by dataset.

    Args:
      config: the settings.
      step: that this start of the run begins at.
      sequence: the index of that step's first sequence.
    """
    batch = config.data.batch_size * config.data.accum_steps
    found: list[tuple[int, tuple[float, ...]]] = []
    for stretch in stretches(config):
        # Counted from the current step, in batches of the current size: a run whose batch had
        # another size before still changes phase at the right step. The phases that are over are
        # then not exact, and some of their sequences may come again.
        first = sequence + (stretch.first - step) * batch if stretch.first else 0
        while found and found[-1][0] >= first:
            found.pop()  # a phase of no sequences, where the batch had another size
        found.append((first, stretch.weights))
    return [(0, found[0][1]), *found[1:]]


def shares_of(parts: Sequence[Stretch], first: int, last: int) -> tuple[float, ...]:
    """Return the share of each dataset in steps first .. last - 1; zeros if there are none."""
    sums = [0.0] * len(parts[0].weights)
    for part in parts:
        steps = min(last, part.first + part.steps) - max(first, part.first)
        if steps > 0:
            sums = [s + steps * w for s, w in zip(sums, part.weights, strict=True)]
    total = sum(sums) or 1.0
    return tuple(s / total for s in sums)
