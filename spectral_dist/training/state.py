"""What a run carries from step to step, and where it lies on the mesh.

Owns the one description of the state: its arrays, their shardings and their initial values, all
derived from the description of the parameters. Read `TrainState`, then `abstract_state`.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.model.lm import SpectralLM, describe_model
from spectral_dist.params import ModelSpec, Params
from spectral_dist.settings import Config
from spectral_dist.training.optimizers import make_optimizer

# Elements of the largest array of an optimizer's state that is replicated for want of a parameter
# like it: 4 KiB on every device.
SMALL = 1024


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The whole state of training; a checkpoint holds exactly this.

    Attributes:
      step: completed steps, int32; a skipped one counts.
      params: nested dict of float32 arrays.
      opt_state: the optimizer's state.
      skipped: steps skipped so far because loss or gradient was not finite, int32.
      bad_in_row: how many of the last steps in a row were, int32.
    """

    step: jax.Array
    params: Params
    opt_state: Any
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
      ValueError: names a parameter that the mesh cannot divide, or an array of the optimizer's
        state that has no place.
    """
    spec = model_spec(config)
    shapes = jax.eval_shape(lambda params: _first_state(config, params), spec.shapes)
    params = spec.shardings(mesh)
    opt_state = opt_state_shardings(shapes.opt_state, shapes.params, params)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: everywhere, shapes)
    shardings = dataclasses.replace(shardings, params=params, opt_state=opt_state)
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )


def opt_state_shardings(opt_state: Any, params: Params, shardings: Params) -> Any:
    """Return the sharding of every array of an optimizer's state, found by its path.

    An array lies where the parameter lies whose path is the end of its own: opt_state/1/mu/head
    like head. So any tree of arrays like the parameters is sharded as they are, also one with
    holes in it, as `optax.masked` and `optax.partition` make for a part of the parameters. Counts
    and other small arrays are replicated.

    Args:
      opt_state: the shapes of the optimizer's state.
      params: the shapes of the parameters.
      shardings: of the parameters.

    Raises:
      ValueError: names a large array that is like no parameter. Replicated, it would take from
        every device the memory that sharding saves: an optimizer must not do so unnoticed.
    """
    mesh = jax.tree.leaves(shardings)[0].mesh
    known = {
        _names(path): (leaf.shape, where)
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(path: Any, array: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        # The longest end first: of the parameters "a/scale" and "scale" the nearer one is meant.
        for start in range(len(names)):
            shape, where = known.get(names[start:], (None, None))
            if where is not None and shape == array.shape:
                return where
        if math.prod(array.shape) <= SMALL:
            return NamedSharding(mesh, PartitionSpec())
        raise ValueError(
            f"optimizer: its state's array {'/'.join(names)} of shape {array.shape} has neither the"
            " path and shape of a parameter, to be sharded like it, nor at most"
            f" {SMALL} elements, to be replicated"
        )

    return jax.tree_util.tree_map_with_path(place, opt_state)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the keys of a path as text, whatever kind of node each comes from."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


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
