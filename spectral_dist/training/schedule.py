"""The learning rate schedule: warm-up, then cosine decay or a plateau with linear decay (wsd).

It depends on the number of the step and not on opt_state: a skipped step does not delay it, and a
resumed run may change it. Read `learning_rate`.
"""

import itertools
from collections.abc import Callable
from typing import Any

import optax

from spectral_dist.settings import Config


def learning_rate(config: Config) -> Callable[[Any], Any]:
    """Return the schedule: number of completed steps -> learning rate of the next step.

    Linear warm-up to the peak, then a cosine over the rest or (wsd) a plateau and a linear decay
    over the last share of the run, down to final_lr_fraction of the peak in the last step. In each
    phase of a curriculum that is multiplied by its lr_factor, which a ramp leads to.
    """
    schedule = _without_phases(config)
    factors = [phase.lr_factor for phase in config.phases]
    if set(factors) <= {1.0}:
        return schedule
    ends = list(itertools.accumulate(config.phase_steps))
    before = [factors[0], *factors]
    factor = optax.join_schedules(
        [
            optax.linear_schedule(before[i], phase.lr_factor, phase.ramp)
            if phase.ramp
            else optax.constant_schedule(phase.lr_factor)
            for i, phase in enumerate(config.phases)
        ],
        ends[:-1],
    )
    return lambda step: schedule(step) * factor(step)


def _without_phases(config: Config) -> Callable[[Any], Any]:
    settings, steps = config.optimizer, config.run.steps
    peak, last = settings.lr, settings.lr * settings.final_lr_fraction
    warmup = settings.warmup_steps
    assert warmup is not None
    # The warm-up starts at 1 / warmup and not at 0, which would waste the first gradient.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    # The last step comes after steps - 1 completed ones.
    rest = max(steps - 1 - warmup, 1)
    if settings.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, rest, alpha=settings.final_lr_fraction)
        return optax.join_schedules([rise, fall], [warmup])
    # The decay starts after the warm-up, however large its share of the run.
    decay = min(max(round(steps * settings.decay_fraction), 1), rest)
    fall = optax.linear_schedule(peak, last, decay)
    return optax.join_schedules(
        [rise, optax.constant_schedule(peak), fall], [warmup, max(steps - 1 - decay, warmup)]
    )
