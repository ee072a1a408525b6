"""One description of a model's parameters, built once, from which all else about them follows.

Owns their names, shapes, logical axes, initial values, shardings and counts. Knows no particular
model: it gets a function that builds one. Read `ModelSpec`, then `make_spec`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from spectral_dist.mesh import Axes, partition_spec, sharding

Params = dict[str, Any]
M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Parameter:
    """One array of the parameters; all are float32.

    Attributes:
      name: its path in the tree of parameters, such as groups/layer_0/mixer/w_in.
      axes: logical axes, one for each dimension; of a stack of layers the first is "layers".
      shape: global shape.
    """

    name: str
    axes: Axes
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether each token's residual stream is multiplied by it: see `is_matrix`."""
        return is_matrix(self.axes)


def is_matrix(axes: Axes) -> bool:
    """Say whether each token is multiplied by a parameter with these axes, into or out of D.

    All but vectors, what a mixer computes with inside, and the embedding: that is a table from
    which a token takes one line, however the product is computed.
    """
    return "embed" in axes and axes[0] != "vocab"


@dataclass(frozen=True, eq=False)  # compared by identity: it is built once
class ModelSpec(Generic[M]):
    """The description of a model and its parameters; no array is in it.

    Attributes:
      build: makes the model from random streams: the only thing that everything else follows from.
      definition: the model without its arrays.
      parameters: every one, in the order of the tree's leaves.
      shapes: the tree of parameters, of jax.ShapeDtypeStruct, float32.
      axes: the tree of parameters, of logical axes.
    """

    build: Callable[[nnx.Rngs], M]
    definition: nnx.GraphDef[M]
    parameters: tuple[Parameter, ...]
    shapes: Params
    axes: Params

    def init(self, key: jax.Array) -> Params:
        """Return the initial parameters, a plain nested dict of float32 arrays.

        Their values depend on the model's settings and the key alone, whatever the mesh.
        """
        _, state = nnx.split(self.build(nnx.Rngs(params=key)), nnx.Param)
        return nnx.to_pure_dict(state)

    def bind(self, params: Params) -> M:
        """Return the model with these parameters: arrays, tracers or shapes."""
        return nnx.merge(self.definition, nnx.State(params))

    def shardings(self, mesh: Mesh) -> Params:
        """Return the tree of shardings.

        Raises:
          ValueError: names a parameter that the mesh cannot divide.
        """
        placed = [sharding(mesh, p.name, p.axes, p.shape) for p in self.parameters]
        return jax.tree.unflatten(jax.tree.structure(self.shapes), placed)

    @property
    def size(self) -> int:
        """Elements of all parameters together."""
        return sum(p.size for p in self.parameters)

    @property
    def matrix_size(self) -> int:
        """Elements of the matrices that each token is multiplied by, the head among them."""
        return sum(p.size for p in self.parameters if p.is_matrix)

    def local_size(self, mesh_shape: dict[str, int]) -> int:
        """Return the elements that one device of a mesh holds; no device is needed to know.

        Raises:
          ValueError: names a parameter that the mesh cannot divide.
        """
        return sum(
            p.size // _ways(partition_spec(p.name, p.axes, p.shape, mesh_shape), mesh_shape)
            for p in self.parameters
        )


def _ways(spec: PartitionSpec, mesh_shape: dict[str, int]) -> int:
    """Return into how many parts a PartitionSpec cuts an array."""
    parts = [(part,) if isinstance(part, str) else part or () for part in spec]
    return math.prod(mesh_shape[name] for part in parts for name in part)


def make_spec(build: Callable[[nnx.Rngs], M]) -> ModelSpec[M]:
    """Build a model once, without arrays, and describe its parameters.

    Args:
      build: makes the model; every parameter is declared by `model.layers.parameter`.
    """
    # The key's value is nowhere in what follows: only shapes are computed.
    model = nnx.eval_shape(lambda: build(nnx.Rngs(params=jax.random.key(0))))
    definition, state = nnx.split(model, nnx.Param)
    shapes = nnx.to_pure_dict(state)
    axes = nnx.to_pure_dict(jax.tree.map(_declared_axes, state, is_leaf=_is_variable))
    paths, structure = jax.tree.flatten_with_path(shapes)
    parameters = tuple(
        Parameter("/".join(str(key.key) for key in path), names, leaf.shape)
        for (path, leaf), names in zip(paths, structure.flatten_up_to(axes), strict=True)
    )
    return ModelSpec(build, definition, parameters, shapes, axes)


def _declared_axes(variable: nnx.Variable[Any]) -> Axes:
    declared: Axes = variable.get_metadata("axes")
    # A stack of layers (nnx.vmap) has one more dimension, in front, than each of them declares.
    stacked = len(variable.get_value().shape) > len(declared)
    return ("layers", *declared) if stacked else declared


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
