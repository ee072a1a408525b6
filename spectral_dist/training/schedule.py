"""The learning rate of a step: warm-up, then a cosine or a plateau with a linear decay.

It belongs to the step, not to the optimizer's state: a skipped update must not delay it, and a
resumed run may change it. Read `learning_rate`.
"""

from collections.abc import Callable
from typing import Any

import optax

from spectral_dist.settings import Config


def learning_rate(config: Config) -> Callable[[Any], Any]:
    """Return the schedule: completed steps -> learning rate of the next one.

    Linear warm-up to the peak, then a cosine over the rest or (wsd) a plateau and a linear decay
    over the last share of the run, down to final_lr_fraction of the peak.
    """
    settings, steps = config.optimizer, config.run.steps
    peak, last = settings.lr, settings.lr * settings.final_lr_fraction
    warmup = settings.warmup_steps
    assert warmup is not None
    # The first step already moves: a rate of 0 would waste its gradient.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    if settings.schedule == "cosine":
        fall = optax.cosine_decay_schedule(
            peak, max(steps - warmup, 1), alpha=settings.final_lr_fraction
        )
        return optax.join_schedules([rise, fall], [warmup])
    # The decay never reaches into the warm-up, however large its share of the run.
    decay = min(max(round(steps * settings.decay_fraction), 1), max(steps - warmup, 1))
    fall = optax.linear_schedule(peak, last, decay)
    return optax.join_schedules(
        [rise, optax.constant_schedule(peak), fall], [warmup, max(steps - decay, warmup)]
    )
