"""The phases of a curriculum, from the settings to what `mixture.TrainSequences` takes.

Imports no JAX. Read `phases_of`.
"""

from spectral_dist.settings import Config, normalise_weights
from spectral_dist.settings.datasets import scale


def phases_of(config: Config, step: int, sequence: int) -> list[tuple[int, tuple[float, ...]]]:
    """Return the index of each phase's first sequence, and its weights by dataset.

    Args:
      config: the settings; a run without phases is one phase.
      step: that this start of the run begins at.
      sequence: the index of that step's first sequence: `step` batches, unless the batch had
        another size before. Then the phases that are over are taken to have had today's, and some
        of their sequences may come again.
    """
    if not config.phases:
        return [(0, normalise_weights(config.datasets)[0])]
    batch = config.data.batch_size * config.data.accum_steps
    found: list[tuple[int, tuple[float, ...]]] = []
    first_step = 0
    for phase in config.phases:
        shares = dict(phase.weights)
        weights, _ = scale([shares.get(str(d.name), 0.0) for d in config.datasets])
        first = sequence + (first_step - step) * batch if first_step else 0
        while found and found[-1][0] >= first:
            found.pop()  # a phase of no sequences, where the batch had another size
        found.append((first, weights))
        first_step += phase.steps
    return [(0, found[0][1]), *found[1:]]
