"""The phases of a curriculum: from steps in the settings to indices of sequences.

Imports no JAX. Read `phases_of`.
"""

from spectral_dist.settings import Config, normalise_weights
from spectral_dist.settings.datasets import scale


def phases_of(config: Config, step: int, sequence: int) -> list[tuple[int, tuple[float, ...]]]:
    """Return, for each phase, the index of its first sequence and its weights by dataset.

    Args:
      config: the settings; a run without phases is one phase.
      step: that this start of the run begins at.
      sequence: the index of that step's first sequence.
    """
    if not config.phases:
        return [(0, normalise_weights(config.datasets)[0])]
    batch = config.data.batch_size * config.data.accum_steps
    found: list[tuple[int, tuple[float, ...]]] = []
    first_step = 0
    for phase in config.phases:
        shares = dict(phase.weights)
        weights, _ = scale([shares.get(str(d.name), 0.0) for d in config.datasets])
        # Counted from the current step, in batches of the current size: a run whose batch had
        # another size before still changes phase at the right step. The phases that are over are
        # then not exact, and some of their sequences may come again.
        first = sequence + (first_step - step) * batch if first_step else 0
        while found and found[-1][0] >= first:
            found.pop()  # a phase of no sequences, where the batch had another size
        found.append((first, weights))
        first_step += phase.steps
    return [(0, found[0][1]), *found[1:]]
