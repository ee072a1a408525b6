"""The mesh of devices and the one table that says where every dimension lies on it.

Parameters and activations name their dimensions by logical axes; `RULES` maps these to the mesh
axes data, fsdp and tensor. Nothing else in the program names a mesh axis, but for the training
step, which reduces over `data`. Knows nothing of the model. Read `RULES`, then `partition_spec`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spectral_dist.settings import MESH_AXES

Axes = tuple[str, ...]
P = ParamSpec("P")
R = TypeVar("R")

RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "time": (),
    "width": (),
    # the long dimensions of matrices: one over fsdp, the other over tensor
    "embed": ("fsdp",),
    "channels": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    # vectors and thin matrices, which have one long dimension: over both
    "thin_channels": ("tensor", "fsdp"),
    "norm": ("fsdp",),
    # short dimensions
    "layers": (),
    "vocab": (),
    "branches": (),
    "taps": (),
    "poles": (),
    "head": (),
}


def make_mesh(shape: tuple[int, int, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of the attached devices with the axes data, fsdp and tensor.

    The only place where devices are counted.

    Args:
      shape: sizes of the three mesh axes.
      devices: what to build it from; all attached devices if None.

    Raises:
      ValueError: if the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if math.prod(shape) != len(devices):
        text = "x".join(map(str, shape))
        raise ValueError(
            f"mesh={text}: needs {math.prod(shape)} devices, but {len(devices)} are attached;"
            f" for example --mesh=1x{len(devices)}x1"
        )
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def partition_spec(
    name: str, axes: Axes, shape: tuple[int, ...], mesh_shape: dict[str, int]
) -> PartitionSpec:
    """Return where each dimension of an array lies, by the rules.

    Args:
      name: what to call the array in an error.
      axes: its logical axes, one for each dimension.
      shape: its global shape.
      mesh_shape: size of each mesh axis.

    Raises:
      ValueError: if two dimensions want the same mesh axis, or a dimension cannot be divided.
    """
    assert len(axes) == len(shape), (name, axes, shape)
    used: dict[str, str] = {}
    parts: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        over = tuple(mesh_axis for mesh_axis in RULES[axis] if mesh_shape[mesh_axis] > 1)
        for mesh_axis in over:
            if mesh_axis in used:
                raise ValueError(
                    f"{name}: logical axes {used[mesh_axis]!r} and {axis!r} both map to the mesh"
                    f" axis {mesh_axis!r}"
                )
            used[mesh_axis] = axis
        ways = math.prod(mesh_shape[mesh_axis] for mesh_axis in over)
        if size % ways:
            raise ValueError(
                f"{name}: its dimension {axis!r} of size {size} cannot be divided by"
                f" {' x '.join(f'{m}={mesh_shape[m]}' for m in over)} of the mesh"
            )
        parts.append(over or None)
    return PartitionSpec(*parts)


def sharding(mesh: Mesh, name: str, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding of one array by the rules; raises as `partition_spec` does."""
    return NamedSharding(mesh, partition_spec(name, axes, shape, dict(mesh.shape)))


def _automatic_axes() -> set[str]:
    """Mesh axes of the mesh in use that no enclosing shard_map has taken over."""
    mesh = jax.sharding.get_abstract_mesh()
    return set(mesh.axis_names) - set(mesh.manual_axes)


def mesh_axes(axis: str) -> tuple[str, ...]:
    """Return the axes of the mesh in use that divide a logical axis; none where no mesh is."""
    mesh = jax.sharding.get_abstract_mesh()
    allowed = _automatic_axes()
    return tuple(m for m in RULES[axis] if m in allowed and mesh.shape[m] > 1)


def _spec(axes: Axes, allowed: set[str]) -> PartitionSpec:
    return PartitionSpec(*(tuple(m for m in RULES[axis] if m in allowed) or None for axis in axes))


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Pin an activation to where its logical axes lie; nothing where no mesh is in use."""
    allowed = _automatic_axes()
    if not allowed:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(axes, allowed))


def constrain_like(tree: Any, specs: Any) -> Any:
    """Pin each array of a tree to its PartitionSpec, as far as the compiler is free to choose."""
    allowed = _automatic_axes()

    def free(part: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
        # JAX turns a tuple of one mesh axis into its bare name.
        names = (part,) if isinstance(part, str) else part or ()
        return tuple(name for name in names if name in allowed) or None

    def pin(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        parts = PartitionSpec(*map(free, spec))
        return jax.lax.with_sharding_constraint(x, parts) if allowed else x

    return jax.tree.map(pin, tree, specs)


def local(function: Callable[P, R], in_axes: Any, out_axes: Any) -> Callable[P, R]:
    """Run a function on each device's own shard: the compiler can put no collective inside.

    Args:
      function: works on shards; must not mix what different shards hold.
      in_axes: logical axes of every argument, one tuple for each, a pytree like the arguments.
      out_axes: the same for the results.
    """
    allowed = _automatic_axes()
    if not allowed:
        return function

    def specs(tree: Any) -> Any:
        return jax.tree.map(lambda a: _spec(a, allowed), tree, is_leaf=_is_axes)

    # Without check_vma the transpose of a replicated argument is one sum over the shards, outside.
    return jax.shard_map(
        function,
        in_specs=specs(in_axes),
        out_specs=specs(out_axes),
        axis_names=allowed,
        check_vma=False,
    )


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(n, str) for n in node)
