"""AdamW without its learning rate, and the learning rate's schedule.

The two are apart because the schedule belongs to the step, not to the optimizer's state: a skipped
update must not delay it, and a resumed run may change it. Read `make_optimizer` first.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from spectral_dist.mesh import Axes
from spectral_dist.params import Params
from spectral_dist.settings import AdamWConfig, Config, OptimizerConfig


def decays(axes: Axes) -> bool:
    """Say whether weight decay applies: to matrices on the residual stream, but the embedding.

    Norms, filter coefficients, convolutions and skips are not decayed (model.md, starting point).
    """
    return "embed" in axes and axes[0] != "vocab"


def make_optimizer(config: OptimizerConfig, logical_axes: Params) -> optax.GradientTransformation:
    """Return clipping, Adam's scaling and decoupled decay: the update for a learning rate of 1.

    Args:
      config: the settings.
      logical_axes: of every parameter; they tell which ones decay.
    """
    if not isinstance(config, AdamWConfig):
        raise ValueError(f"optimizer.name={config.name!r}: only adamw trains so far")
    mask = jax.tree.map(decays, logical_axes, is_leaf=lambda node: isinstance(node, tuple))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.adam_eps),
        optax.add_decayed_weights(config.weight_decay, mask),
    )


def learning_rate(config: Config) -> Callable[[Any], Any]:
    """Return the schedule: completed steps -> learning rate of the next one.

    Linear warm-up to the peak, then a cosine over the rest or (wsd) a plateau and a linear decay
    over the last share of the run, down to final_lr_fraction of the peak.
    """
    settings, steps = config.optimizer, config.run.steps
    peak, last = settings.lr, settings.lr * settings.final_lr_fraction
    warmup = settings.warmup_steps
    assert warmup is not None
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    if settings.schedule == "cosine":
        fall = optax.cosine_decay_schedule(
            peak, max(steps - warmup, 1), alpha=settings.final_lr_fraction
        )
        return optax.join_schedules([rise, fall], [warmup])
    decay = min(max(round(steps * settings.decay_fraction), 1), max(steps - warmup, 1))
    fall = optax.linear_schedule(peak, last, decay)
    return optax.join_schedules(
        [rise, optax.constant_schedule(peak), fall], [warmup, max(steps - decay, warmup)]
    )
