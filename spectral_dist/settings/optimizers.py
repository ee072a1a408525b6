"""Settings of the optimizers: what all have in common, and those of each.

The section `optimizer` has only the settings of the optimizer that its `name` selects. The names
are the keys of the table `spectral_dist.training.optimizers.OPTIMIZERS`; a test compares the two.
Imports no JAX.
"""

from typing import Annotated, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from spectral_dist.settings.declare import (
    STRICT,
    Float,
    Int,
    not_negative,
    positive,
    setting,
    share,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Common:
    """The optimizer: which one, the learning rate's schedule, decay, clipping and the loss."""

    # Each optimizer narrows it to its own name. One state cannot serve another, hence "same".
    name: str = setting("", "which optimizer trains", flag="", resume="same", compiled=True)
    # The learning rate is applied outside optax, so a resumed run may change it without touching
    # the optimizer state.
    lr: Float = positive(1e-3, "peak learning rate", daily=True)
    warmup_steps: Int | None = not_negative(
        None,
        "steps of linear warm-up (default: 5% of steps)",
        derive=lambda config: max(1, config.run.steps // 20),
        follows=("run.steps",),
    )
    schedule: Literal["cosine", "wsd"] = setting(
        "cosine", "decay of the learning rate after warm-up", compiled=True
    )
    # For "wsd" only; "cosine" decays from the end of the warm-up.
    decay_fraction: Float = share(0.2, "share of the steps that wsd decays over, at the end")
    final_lr_fraction: Float = setting(
        0.1, "learning rate of the last step, as a share of the peak; 1 holds it", ge=0, le=1
    )
    weight_decay: Float = not_negative(
        0.1, "decoupled decay of the matrices on the residual stream", compiled=True
    )
    # Clipping comes after the check for non-finite values, which skips the step instead.
    clip_norm: Float = positive(
        1.0, "largest global norm of the gradient; above it is scaled down", compiled=True
    )
    z_loss: Float = not_negative(
        0.0,
        "weight of the z-loss, the squared log of the softmax's denominator (1e-4 is usual)",
        compiled=True,
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Adam(_Common):
    """The decays of Adam's moments, and its epsilon."""

    beta1: Float = share(0.9, "Adam's decay of the first moment", compiled=True)
    beta2: Float = share(0.95, "Adam's decay of the second moment", compiled=True)
    adam_eps: Float = positive(1e-8, "Adam's epsilon", compiled=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdamWConfig(_Adam):
    """AdamW."""

    name: Literal["adamw"] = setting(
        "adamw", "which optimizer trains", flag="", resume="same", compiled=True
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MuonConfig(_Adam):
    """Muon for the matrices of the residual stream, Adam for the rest."""

    name: Literal["muon"] = setting(
        "muon", "which optimizer trains", flag="", resume="same", compiled=True
    )
    momentum: Float = share(0.95, "decay of the momentum", flag="", compiled=True)
    ns_steps: Int = positive(
        5, "Newton-Schulz steps that make a matrix orthogonal", flag="", le=20, compiled=True
    )
    # Muon's updates are scaled to the size of Adam's, so the same learning rate is a good start.
    adam_lr: Float | None = positive(
        None,
        "peak learning rate of Adam, for norms, filters, embedding and head (default: lr)",
        flag="",
        compiled=True,
        derive=lambda config: config.optimizer.lr,
        follows=("optimizer.lr",),
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LionConfig(_Common):
    """Lion: the sign of an interpolated momentum."""

    name: Literal["lion"] = setting(
        "lion", "which optimizer trains", flag="", resume="same", compiled=True
    )
    momentum: Float = share(0.99, "decay of the momentum", flag="", compiled=True)
    interpolation: Float = share(
        0.9,
        "weight of the momentum in the update; the gradient has the rest",
        flag="",
        compiled=True,
    )


OptimizerConfig = AdamWConfig | MuonConfig | LionConfig
# A discriminated union: a setting of another optimizer is an error that names it.
Optimizer = Annotated[OptimizerConfig, Field(discriminator="name")]
OPTIMIZER_KINDS: dict[str, type] = {
    kind.__pydantic_fields__["name"].default: kind for kind in get_args(OptimizerConfig)
}
