"""The parameters of a model, described once: names, shapes, logical axes, initial values, counts.

State, step, generation, FLOPs and the dry run all ask this description. Knows no particular model:
it gets a function that builds one. Read `ModelSpec`, then `make_spec`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from spectral_dist.mesh import Axes, partition_spec, sharding

Params = dict[str, Any]  # nested; its leaves are arrays, or one thing for each array
M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Parameter:
    """The description of one parameter; all are float32.

    Attributes:
      name: its path in the tree of parameters, such as groups/layer_0/mixer/w_in.
      axes: logical axes, one for each dimension; in a stack of blocks the first is "layers".
      shape: global shape.
    """

    name: str
    axes: Axes
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether each token's residual stream is multiplied by it: see `is_matrix`."""
        return is_matrix(self.axes)


def is_matrix(axes: Axes) -> bool:
    """Return whether a parameter is a matrix that multiplies the residual stream of each token.

    These count for model FLOPs and weight decay. Not among them: vectors, the parameters inside a
    mixer, and the embedding.
    """
    # The embedding is a table of which a token takes one row, though it is computed as a product.
    return "embed" in axes and axes[0] != "vocab"


@dataclass(frozen=True, eq=False)  # compared by identity: it is built once
class ModelSpec(Generic[M]):
    """The description of a model and its parameters; no array is in it.

    Attributes:
      build: makes the model from random streams; all the rest is derived from it.
      definition: the model without its arrays.
      parameters: every one, in the order of the tree's leaves.
      shapes: tree like the parameters, of jax.ShapeDtypeStruct, float32.
      axes: tree like the parameters, of logical axes.
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
        # A plain dict: optax, Orbax and the tree functions then need to know nothing of nnx.
        _, state = nnx.split(self.build(nnx.Rngs(params=key)), nnx.Param)
        return nnx.to_pure_dict(state)

    def bind(self, params: Params) -> M:
        """Return the model with these parameters, which may be arrays, tracers or shapes."""
        # Cheap: nothing is built or initialised again, so it may be called in a traced function.
        return nnx.merge(self.definition, nnx.State(params))

    def shardings(self, mesh: Mesh) -> Params:
        """Return the shardings of the parameters on a mesh, as a tree.

        Raises:
          ValueError: names a parameter that the mesh cannot divide.
        """
        placed = [sharding(mesh, p.name, p.axes, p.shape) for p in self.parameters]
        return jax.tree.unflatten(jax.tree.structure(self.shapes), placed)

    @property
    def size(self) -> int:
        """Number of parameters: elements of all arrays together."""
        return sum(p.size for p in self.parameters)

    @property
    def matrix_size(self) -> int:
        """Elements of the matrices that multiply each token, the head among them."""
        return sum(p.size for p in self.parameters if p.is_matrix)

    def local_size(self, mesh_shape: dict[str, int]) -> int:
        """Return the number of elements that one device of a mesh holds.

        Computed from the shapes alone, so that a search can ask for meshes it has no devices for.

        Raises:
          ValueError: names a parameter that the mesh cannot divide.
        """
        return sum(
            p.size // _ways(partition_spec(p.name, p.axes, p.shape, mesh_shape), mesh_shape)
            for p in self.parameters
        )


def _ways(spec: PartitionSpec, mesh_shape: dict[str, int]) -> int:
    """Return the number of shards that a PartitionSpec divides an array into."""
    parts = [(part,) if isinstance(part, str) else part or () for part in spec]
    return math.prod(mesh_shape[name] for part in parts for name in part)


def make_spec(build: Callable[[nnx.Rngs], M]) -> ModelSpec[M]:
    """Build a model once, without arrays, and describe its parameters.

    Args:
      build: makes the model; every parameter is declared by `model.layers.parameter`.
    """
    # Only shapes are computed, so any key will do. Callers keep the result: with a build at every
    # use, `make_train_step` took about 1 s instead of 0.06 s.
    model = nnx.eval_shape(lambda: build(nnx.Rngs(params=jax.random.key(0))))
    definition, state = nnx.split(model, nnx.Param)
    # Without the mesh that was in use when they were built: the description serves every mesh.
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), nnx.to_pure_dict(state))
    axes = nnx.to_pure_dict(jax.tree.map(_declared_axes, state, is_leaf=_is_variable))
    paths, structure = jax.tree.flatten_with_path(shapes)
    parameters = tuple(
        Parameter("/".join(str(key.key) for key in path), names, leaf.shape)
        for (path, leaf), names in zip(paths, structure.flatten_up_to(axes), strict=True)
    )
    return ModelSpec(build, definition, parameters, shapes, axes)


def _declared_axes(variable: nnx.Variable[Any]) -> Axes:
    """Return the logical axes of a parameter, with "layers" in front in a stack."""
    declared: Axes = variable.get_metadata("axes")
    # A stack of layers (nnx.vmap) has one more dimension, in front, than each of them declares.
    stacked = len(variable.get_value().shape) > len(declared)
    return ("layers", *declared) if stacked else declared


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
