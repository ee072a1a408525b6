"""The train state: step, params and opt_state; its shapes, shardings and initial values.

All of them are derived from the description of the parameters (params.py). Read `TrainState`, then
`abstract_state`.
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

# An array of opt_state with at most this many elements may be replicated: 4 KiB on every device.
SMALL = 1024


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The whole state of training: a checkpoint holds these arrays and no others.

    Attributes:
      step: completed steps, int32; a skipped one counts.
      params: nested dict of float32 arrays.
      opt_state: the optimizer's state, such as Adam's first and second moments.
      skipped: steps skipped so far because loss or gradient was not finite, int32.
      bad_in_row: steps skipped in a row, up to the last one, int32.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    skipped: jax.Array
    bad_in_row: jax.Array


def model_spec(config: Config) -> ModelSpec[SpectralLM]:
    """Return the description of a run's model; it is built once for the same settings."""
    tokenizer = find_tokenizer(config)
    return describe_model(config, tokenizer.vocab_size, tokenizer.end)


def _first_state(config: Config, params: Params) -> TrainState:
    optimizer = make_optimizer(config.optimizer, model_spec(config).axes)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), zero, zero)


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Return the shapes, dtypes and shardings of the train state; no array is allocated.

    Raises:
      ValueError: names a parameter that the mesh cannot divide, or a large array of opt_state
        that matches no parameter.
    """
    spec = model_spec(config)
    # Traced, not run: the dry run asks for states that no machine at hand could hold.
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
    """Return the sharding of every array of opt_state, found by its path.

    An array is sharded like the parameter whose path its own path ends with: opt_state/1/mu/head
    like head. Counts and other small arrays are replicated.

    Args:
      opt_state: the shapes of the optimizer's state.
      params: the shapes of the parameters.
      shardings: of the parameters.

    Raises:
      ValueError: names a large array that matches no parameter.
    """
    mesh = jax.tree.leaves(shardings)[0].mesh
    # By path and not by tree structure: `optax.masked` and `optax.partition` make trees with holes,
    # for a part of the parameters.
    known = {
        _names(path): (leaf.shape, where)
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(path: Any, array: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        # The longest match first: mu/a/scale belongs to "a/scale", not to a parameter "scale".
        for start in range(len(names)):
            shape, where = known.get(names[start:], (None, None))
            if where is not None and shape == array.shape:
                return where
        if math.prod(array.shape) <= SMALL:
            return NamedSharding(mesh, PartitionSpec())
        # Replicated in silence, it would cost every device the memory that sharding saves.
        raise ValueError(
            f"optimizer: its state's array {'/'.join(names)} of shape {array.shape} has neither the"
            " path and shape of a parameter, to be sharded like it, nor at most"
            f" {SMALL} elements, to be replicated"
        )

    return jax.tree_util.tree_map_with_path(place, opt_state)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the keys of a path as text, whether of a dict, a tuple or a dataclass."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def make_init(config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """Return init(key) -> the state before the first step, sharded as `abstract_state` says."""
    shardings = jax.tree.map(lambda s: s.sharding, abstract_state(config, mesh))
    spec = model_spec(config)
    # With out_shardings every device makes its own shard: the whole state need not fit on one.
    return jax.jit(lambda key: _first_state(config, spec.init(key)), out_shardings=shardings)


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """Return the initial state: params from the seed, a fresh opt_state, on the mesh.

    The values depend on the settings and the seed alone: bitwise the same on every mesh.
    """
    return make_init(config, mesh)(jax.random.key(config.run.seed))
