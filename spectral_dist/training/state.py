"""What a run carries from step to step, and where it lies on the mesh.

Owns the one description of the state: its arrays, their shardings and their initial values, all
derived from the description of the parameters. Read `TrainState`, then `abstract_state`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.model.lm import SpectralLM, describe_model
from spectral_dist.params import ModelSpec, Params
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


def model_spec(config: Config) -> ModelSpec[SpectralLM]:
    """Return the description of a run's model; the same settings build it once."""
    return describe_model(config, find_tokenizer(config).vocab_size)


def _first_state(config: Config, params: Params) -> TrainState:
    optimizer = make_optimizer(config.optimizer, model_spec(config).axes)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), zero, zero)


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Return the state's shapes, dtypes and shardings, with no array made.

    Raises:
      ValueError: names a parameter that the mesh cannot divide.
    """
    spec = model_spec(config)
    shapes = jax.eval_shape(lambda params: _first_state(config, params), spec.shapes)
    placed = spec.shardings(mesh)
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
    spec = model_spec(config)
    return jax.jit(lambda key: _first_state(config, spec.init(key)), out_shardings=shardings)


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """Return the state before the first step, made on the devices that will hold it.

    The values depend on the settings and the seed alone: bitwise the same on every mesh.
    """
    return make_init(config, mesh)(jax.random.key(config.run.seed))
