"""Muon's update on eight devices: what it sends, and that sharding changes no number."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from spectral_dist.settings import Config, with_values
from spectral_dist.training.muon import is_residual_matrix
from spectral_dist.training.optimizers import make_optimizer
from spectral_dist.training.state import abstract_state, model_spec

pytestmark = pytest.mark.usefixtures("mixed_types")

Read = Callable[[str], list[Any]]
MakeConfig = Callable[..., Config]
MakeMesh = Callable[[Config], Mesh]


def with_muon(config: Config) -> Config:
    """Return the settings with Muon, its Adam at half the rate."""
    return with_values(config, {"optimizer.name": "muon", "lr": 1e-3, "optimizer.adam_lr": 5e-4})


def compile_update(config: Config, mesh: Mesh) -> Any:
    """Return the compiled update alone: (gradients, state, parameters) -> (updates, state)."""
    state = abstract_state(config, mesh)
    where = jax.tree.map(lambda s: s.sharding, (state.params, state.opt_state))
    optimizer = make_optimizer(config.optimizer, model_spec(config).axes)
    with jax.set_mesh(mesh):
        update = jax.jit(optimizer.update, out_shardings=where)
        return update.lower(state.params, state.opt_state, state.params).compile()


def optax_muon(config: Config) -> Any:
    """Return the same optimizer made of optax's Muon, for one device; its updates are negative.

    Momentum is Jordan's (optax.trace); optax's own would weigh the newest gradient a little more.
    """
    settings: Any = config.optimizer
    axes = model_spec(config).axes

    def each(rule: Callable[[tuple[str, ...]], Any]) -> Any:
        return jax.tree.map(rule, axes, is_leaf=lambda node: isinstance(node, tuple))

    def numbers(names: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
        sides = [i for i, name in enumerate(names) if name not in ("layers", "branches")]
        return optax.contrib.MuonDimensionNumbers(*sides) if is_residual_matrix(names) else None

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.masked(optax.trace(settings.momentum, nesterov=True), each(is_residual_matrix)),
        optax.contrib.muon(
            1.0,
            beta=0.0,
            nesterov=False,
            weight_decay=settings.weight_decay,
            adam_b1=settings.beta1,
            adam_b2=settings.beta2,
            adam_learning_rate=settings.adam_lr / settings.lr,
            muon_weight_dimension_numbers=each(numbers),
            consistent_rms=0.2,
        ),
    )


@pytest.mark.parametrize("mesh", ["1x2x2", "2x2x2"])
def test_each_matrix_travels_once_there_and_once_back(
    model: MakeConfig, mesh_of: MakeMesh, collectives: Read, mesh: str
) -> None:
    config = with_muon(model(mesh))
    compiled = compile_update(config, mesh_of(config))
    found = collectives(compiled.as_text())
    # The reductions are the global norm's, of the clipping; AdamW has the same ones.
    moved = Counter(c.kind for c in found if c.kind != "all-reduce")
    # Two sizes of matrices, 64 x 64 and 64 x 128, each with one transfer there and one back.
    assert moved == {"all-to-all": 4}
    assert all(shape == () for c in found if c.kind == "all-reduce" for shape in c.shapes)
    # Newton-Schulz runs in a loop over a device's matrices: nothing crosses inside it.
    assert not any(c.in_loop for c in found)


def test_sharding_changes_no_number(model: MakeConfig, mesh_of: MakeMesh) -> None:
    config = with_muon(model("2x2x2"))
    state = abstract_state(config, mesh_of(config))
    compiled = compile_update(config, mesh_of(config))
    reference = optax_muon(config)
    rng = np.random.default_rng(0)

    def random(tree: Any) -> Any:
        return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), tree)

    def put(tree: Any) -> Any:
        return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), tree, state.params)

    params = random(state.params)
    sharded_state = jax.tree.map(
        lambda s: jax.device_put(jnp.zeros(s.shape, s.dtype), s.sharding), state.opt_state
    )
    whole_state = reference.init(params)
    update = jax.jit(reference.update)
    for _ in range(2):  # the second with a momentum
        grads = random(state.params)
        found, sharded_state = compiled(put(grads), sharded_state, put(params))
        expected, whole_state = update(grads, whole_state, params)
        # The head decays too; optax's Muon has no decay for one part of Adam's parameters.
        expected["head"] -= 0.1 * 0.5 * params["head"]
        jax.tree.map(
            lambda mine, theirs: np.testing.assert_allclose(mine, -theirs, rtol=1e-4, atol=2e-5),
            found,
            expected,
        )
