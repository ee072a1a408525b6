"""The optimizers: AdamW, Muon and Lion, as optax transformations without a learning rate.

To add one: its settings in settings/optimizers.py, a function here and a line in `OPTIMIZERS`. Its
opt_state is sharded like the parameters, by the path of each array (state.py). The learning rate is
in schedule.py; the training step multiplies the updates by it. Read `OPTIMIZERS`, then `adamw`.
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
    """AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    # The order counts: the gradient is clipped before it enters the state, and the decay is not
    # divided by Adam's second moment.
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.adam_eps),
        optax.add_decayed_weights(settings.weight_decay, _each(decays, axes)),
    )


def lion(settings: LionConfig, axes: Params) -> optax.GradientTransformation:
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    Every element of the update is 1 or -1, so its learning rate is usually a third to a tenth of
    AdamW's.
    """
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_lion(settings.interpolation, settings.momentum),
        optax.add_decayed_weights(settings.weight_decay, _each(decays, axes)),
    )


def muon(settings: MuonConfig, axes: Params) -> optax.GradientTransformation:
    """Muon: orthogonalized momentum for the matrices of the residual stream, Adam for the rest.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, with the scale of Liu et al.
    2025, arXiv:2502.16982: the updates are as large as Adam's, so that lr and weight_decay keep
    their meaning. The parameters that Adam updates learn at adam_lr, on the same schedule.
    """
    matrices = _each(muon_direction.is_residual_matrix, axes)
    others = jax.tree.map(lambda matrix: not matrix, matrices)

    def orthogonalize(updates: Any, params: Any) -> Any:
        del params
        # All matrices in one call, so that those of one size share their collectives.
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
        # The training step multiplies all updates by lr; this makes it adam_lr for the rest.
        optax.masked(optax.scale(settings.adam_lr / settings.lr), others),
    )


# The one table from a name to an optimizer: (settings, logical axes of every parameter) ->
# clipping, update rule and weight decay.
OPTIMIZERS: dict[str, Callable[[Any, Params], optax.GradientTransformation]] = {
    "adamw": adamw,
    "muon": muon,
    "lion": lion,
}


def make_optimizer(settings: OptimizerConfig, axes: Params) -> optax.GradientTransformation:
    """Return the optimizer that the settings name, with a learning rate of 1.

    Args:
      settings: of the optimizer.
      axes: the logical axes of every parameter; they decide to which weight decay applies.
    """
    return OPTIMIZERS[settings.name](settings, axes)


def decays(axes: Axes) -> bool:
    """Return whether weight decay applies: only to matrices that multiply the residual stream.

    The head is one of them. Embedding, norms, filter coefficients, convolutions and skips do not
    decay.
    """
    # Scales of norms, skips and the first taps start at 1: decay would pull them to 0, and with
    # them the signal of the whole layer.
    return is_matrix(axes)


def _each(rule: Callable[[Axes], bool], axes: Params) -> Params:
    return jax.tree.map(rule, axes, is_leaf=_is_axes)


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)
