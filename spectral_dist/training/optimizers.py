"""The optimizers: one table of update rules, each without its learning rate.

To add one: its settings in settings/optimizer.py, a function here and a line in `OPTIMIZERS`. Its
state is sharded like the parameters, by the path of each array (state.py). The learning rate stands
apart (schedule.py): the step multiplies by it. Read `OPTIMIZERS`, then `adamw`.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from spectral_dist.mesh import Axes
from spectral_dist.params import Params, is_matrix
from spectral_dist.settings import AdamWConfig, LionConfig, MuonConfig, OptimizerConfig
from spectral_dist.training import muon as muon_direction


def adamw(settings: AdamWConfig, axes: Params) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.adam_eps),
        optax.add_decayed_weights(settings.weight_decay, _each(decays, axes)),
    )


def lion(settings: LionConfig, axes: Params) -> optax.GradientTransformation:
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    Every number of the update is 1 in size: a rate of a third to a tenth of AdamW's is usual.
    """
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_lion(settings.interpolation, settings.momentum),
        optax.add_decayed_weights(settings.weight_decay, _each(decays, axes)),
    )


def muon(settings: MuonConfig, axes: Params) -> optax.GradientTransformation:
    """Orthogonalized momentum for the matrices of the residual stream, Adam for the rest.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, with the scale of Liu et al.
    2025, arXiv:2502.16982: its updates are as large as Adam's, so that lr and weight_decay keep
    their meaning. Adam's parameters learn at adam_lr, on the same schedule.
    """
    matrices = _each(muon_direction.is_residual_matrix, axes)
    others = jax.tree.map(lambda matrix: not matrix, matrices)

    def orthogonalize(updates: Any, params: Any) -> Any:
        del params
        names = jax.tree.leaves(axes, is_leaf=_is_axes)
        leaves, structure = jax.tree.flatten(updates)
        chosen = [i for i, matrix in enumerate(jax.tree.leaves(matrices)) if matrix]
        directions = muon_direction.orthogonalize(
            [leaves[i] for i in chosen], [names[i] for i in chosen], settings.ns_steps
        )
        for i, direction in zip(chosen, directions, strict=True):
            leaves[i] = direction
        return jax.tree.unflatten(structure, leaves)

    assert settings.adam_lr is not None  # derived
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.masked(optax.trace(settings.momentum, nesterov=True), matrices),
        optax.stateless(orthogonalize),
        optax.masked(
            optax.scale_by_adam(settings.beta1, settings.beta2, settings.adam_eps), others
        ),
        optax.add_decayed_weights(settings.weight_decay, _each(decays, axes)),
        # The step multiplies all updates by lr; the rest has a rate of its own.
        optax.masked(optax.scale(settings.adam_lr / settings.lr), others),
    )


# The one place where a name becomes an optimizer. Each is (settings, logical axes of every
# parameter) -> clipping, direction and decay: the update for a learning rate of 1.
OPTIMIZERS: dict[str, Callable[[Any, Params], optax.GradientTransformation]] = {
    "adamw": adamw,
    "muon": muon,
    "lion": lion,
}


def make_optimizer(settings: OptimizerConfig, axes: Params) -> optax.GradientTransformation:
    """Return the optimizer that the settings name: the update for a learning rate of 1.

    Args:
      settings: of the optimizer.
      axes: the logical axes of every parameter; they tell which ones decay.
    """
    return OPTIMIZERS[settings.name](settings, axes)


def decays(axes: Axes) -> bool:
    """Say whether weight decay applies: to the matrices that multiply the residual stream.

    The head is one of them, the embedding is not. Norms, filter coefficients, convolutions and
    skips are not decayed (model.md, starting point).
    """
    return is_matrix(axes)


def _each(rule: Callable[[Axes], bool], axes: Params) -> Params:
    return jax.tree.map(rule, axes, is_leaf=_is_axes)


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)
