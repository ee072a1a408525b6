"""What a run carries from step to step, and where it lies on the mesh.

Owns the one description of the state: its arrays, their shardings and their initial values, all
derived from the parameters' declarations. Read `TrainState`, then `abstract_state`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_dist.mesh import sharding
from spectral_dist.model.lm import Params, init_params, logical_axes
from spectral_dist.settings import Config
from spectral_dist.training.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The whole state of training; a checkpoint holds exactly this.

    Attributes:
      step: completed steps, int32; a skipped one counts.
      params: nested dict of float32 arrays.
      moments: the optimizer's state.
      skipped: steps skipped so far because loss or gradient was not finite, int32.
      bad_in_row: how many of the last steps in a row were, int32.
    """

    step: jax.Array
    params: Params
    moments: Any
    skipped: jax.Array
    bad_in_row: jax.Array


def param_shardings(config: Config, mesh: Mesh) -> Params:
    """Return the sharding of every parameter.

    Raises:
      ValueError: names a parameter that the mesh cannot divide.
    """
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    axes = logical_axes(config)

    def place(path: Any, shape: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> NamedSharding:
        name = "/".join(str(key.key) for key in path)
        return sharding(mesh, name, axes, shape.shape)

    return jax.tree_util.tree_map_with_path(place, shapes, axes)


def _initial_state(config: Config, key: jax.Array) -> TrainState:
    params = init_params(config, key)
    optimizer = make_optimizer(config.optimizer, logical_axes(config))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), zero, zero)


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Return the state's shapes, dtypes and shardings, with no array made.

    Raises:
      ValueError: names a parameter that the mesh cannot divide.
    """
    shapes = jax.eval_shape(lambda: _initial_state(config, jax.random.key(0)))
    placed = param_shardings(config, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    like_params = jax.tree.structure(shapes.params)

    def is_params(node: Any) -> bool:
        return jax.tree.structure(node) == like_params

    # Each moment is a tree like the parameters and lies where they do; the counts lie everywhere.
    moments = jax.tree.map(
        lambda node: placed if is_params(node) else everywhere, shapes.moments, is_leaf=is_params
    )
    shardings = jax.tree.map(lambda _: everywhere, shapes)
    shardings = dataclasses.replace(shardings, params=placed, moments=moments)
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )


def make_init(config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """Return init(key) -> the state before the first step, laid out as `abstract_state` says."""
    shardings = jax.tree.map(lambda s: s.sharding, abstract_state(config, mesh))
    return jax.jit(lambda key: _initial_state(config, key), out_shardings=shardings)


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """Return the state before the first step, made on the devices that will hold it.

    The values depend on the settings and the seed alone: bitwise the same on every mesh.
    """
    return make_init(config, mesh)(jax.random.key(config.run.seed))
