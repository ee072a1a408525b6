"""The device mesh, and the sharding rules from logical axes to mesh axes.

Parameters and activations name each dimension by a logical axis. `RULES` maps these to the mesh
axes data, fsdp, and tensor or sequence. Only the training step names a mesh axis elsewhere: it
all-reduces over `data`. Knows nothing of the model. Read `RULES`, then `partition_spec`.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spectral_dist.settings import MESH_AXES

Axes = tuple[str, ...]  # the logical axes of an array, one for each dimension
P = ParamSpec("P")
R = TypeVar("R")

# Logical axis -> the mesh axes that divide it; none means that it is whole on every device. A mesh
# has tensor or sequence, and a mesh axis that it does not have divides nothing.
RULES: dict[str, tuple[str, ...]] = {
    # activations; where time is whole, a mixer needs no collective (model/sequence.py)
    "batch": ("data", "fsdp"),
    "time": ("sequence",),
    "width": (),
    # tokens as they are fed (T + 1), and the few that a mixer keeps: not to be divided
    "tokens": (),
    # the long dimensions of matrices: one over fsdp, the other over tensor. Shards of time share
    # the parameters as shards of the batch do.
    "embed": ("fsdp", "sequence"),
    "channels": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    # vectors and thin matrices have one long dimension only: it takes both mesh axes. Tensor comes
    # first: gathering over fsdp then leaves the contiguous channels that a tensor shard works on.
    "thin_channels": ("tensor", "fsdp", "sequence"),
    "norm": ("fsdp", "sequence"),
    # short dimensions: whole on every device
    "layers": (),
    "branches": (),
    "taps": (),
    "poles": (),
    "head": (),
}


def make_mesh(
    shape: tuple[int, int, int],
    devices: Sequence[Any] | None = None,
    axes: tuple[str, str, str] = MESH_AXES,
) -> Mesh:
    """Return the mesh of the attached devices.

    The only place where devices are counted.

    Args:
      shape: sizes of the three mesh axes.
      devices: what to build it from; all attached devices if None.
      axes: their names, as `MeshConfig.axes` says.

    Raises:
      ValueError: if the product of the sizes is not the number of devices.
    """
    devices = attached_devices() if devices is None else devices
    if math.prod(shape) != len(devices):
        text = "x".join(map(str, shape))
        raise ValueError(
            f"mesh={text}: needs {math.prod(shape)} devices, but {len(devices)} are attached;"
            f" for example --mesh=1x{len(devices)}x1"
        )
    # Auto: the compiler chooses shardings between our constraints. Neighbours in the list share a
    # host, so the last mesh axis gets the fastest links.
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)


_NVIDIA = Path("/dev/nvidiactl")  # is there where NVIDIA's driver is


def attached_devices() -> list[Any]:
    """Return the devices that JAX finds, of all processes.

    Raises:
      ValueError: if JAX_PLATFORMS names devices that this host does not have. Where a driver is
        there and finds no device the error stays JAX's own: it is the machine's fault.
    """
    try:
        return jax.devices()
    # The first is what JAX raises for an unknown platform, the second for one without a device.
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        if not wanted or _NVIDIA.exists():
            raise
        reason = " ".join(str(error).split()) or "there is no such device, or no plugin for it"
        raise ValueError(f"JAX_PLATFORMS={wanted}: {reason}") from error


def unused_gpu(device_kind: str) -> str:
    """Return a warning if the CPU stands in for a GPU that this host has; else an empty text."""
    asked_for = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if device_kind != "cpu" or asked_for or not _NVIDIA.exists():
        return ""
    return (
        "warning: training on the CPU, although this host has an NVIDIA GPU: pip install"
        " 'jax[cuda12]' brings JAX's support for it; JAX_PLATFORMS=cpu says that it is meant"
    )


def partition_spec(
    name: str, axes: Axes, shape: tuple[int, ...], mesh_shape: dict[str, int]
) -> PartitionSpec:
    """Return the PartitionSpec of an array, by its logical axes and `RULES`.

    Args:
      name: what to call the array in an error.
      axes: its logical axes, one for each dimension.
      shape: its global shape.
      mesh_shape: size of each mesh axis.

    Raises:
      ValueError: if the rules put one mesh axis on two dimensions, or a size does not divide.
    """
    assert len(axes) == len(shape), (name, axes, shape)
    used: dict[str, str] = {}  # mesh axis -> the logical axis that it divides
    parts: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        # Those of size 1 divide nothing: without them a spec is the same on more meshes.
        over = tuple(mesh_axis for mesh_axis in RULES[axis] if mesh_shape.get(mesh_axis, 1) > 1)
        for mesh_axis in over:
            if mesh_axis in used:
                raise ValueError(
                    f"{name}: logical axes {used[mesh_axis]!r} and {axis!r} both map to the mesh"
                    f" axis {mesh_axis!r}"
                )
            used[mesh_axis] = axis
        ways = math.prod(mesh_shape[mesh_axis] for mesh_axis in over)
        # JAX would refuse it later, in a message that names no parameter.
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
    """Return the mesh axes that no enclosing shard_map has made manual; none without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return set(mesh.axis_names) - set(mesh.manual_axes)


def platform() -> str:
    """Return the platform of the mesh in use, such as "cpu" or "gpu"; JAX's default without one.

    Asked while a program is traced, also for devices that are only described: what it decides
    belongs to the compiled program.
    """
    device = _abstract_device()
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """Return the kind of the devices of the mesh in use, such as "NVIDIA L4"; as `platform`."""
    device = _abstract_device()
    return jax.devices()[0].device_kind if device is None else device.device_kind


def _abstract_device() -> Any:
    return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)


def mesh_axes(axis: str) -> tuple[str, ...]:
    """Return the mesh axes that divide a logical axis, of the mesh in use; none without one."""
    mesh = jax.sharding.get_abstract_mesh()
    allowed = _automatic_axes()
    return tuple(m for m in RULES[axis] if m in allowed and mesh.shape[m] > 1)


def shards(axis: str) -> int:
    """Return into how many shards the mesh in use divides a logical axis, where it may choose."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[m] for m in mesh_axes(axis))


def _spec(axes: Axes, allowed: set[str]) -> PartitionSpec:
    return PartitionSpec(*(tuple(m for m in RULES[axis] if m in allowed) or None for axis in axes))


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Constrain the sharding of an activation by its logical axes; do nothing without a mesh."""
    # Left free, the compiler may choose to gather the batch instead of the weights.
    allowed = _automatic_axes()
    if not allowed:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(axes, allowed))


def constrain_like(tree: Any, specs: Any) -> Any:
    """Constrain each array of a tree to its PartitionSpec, along the mesh axes not yet manual."""
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
    """Return a function that runs on each device's own shard (`jax.shard_map`), by logical axes.

    Args:
      function: works on local shards; the only collectives inside are those that it calls.
      in_axes: logical axes of every argument, one tuple for each, a pytree like the arguments.
      out_axes: the same for the results.
    """
    # The compiler cannot put a collective inside. It did for jnp.fft, which it does not partition:
    # every device gathered the global batch (a toy step needed 1.6 GB of temporaries, not 0.2).
    allowed = _automatic_axes()
    if not allowed:
        return function

    def specs(tree: Any) -> Any:
        return jax.tree.map(lambda a: _spec(a, allowed), tree, is_leaf=_is_axes)

    # Without check_vma the gradient of a replicated argument is summed over the shards once, on the
    # way out, and not at every use inside.
    return jax.shard_map(
        function,
        in_specs=specs(in_axes),
        out_specs=specs(out_axes),
        axis_names=allowed,
        check_vma=False,
    )


def whole(function: Callable[..., R], axis: str) -> Callable[..., R]:
    """Return a function inside of which the mesh divides no dimension along a logical axis.

    The shards along it compute the same, each everything: for what is too short to divide.
    """
    over = mesh_axes(axis)
    if not over:
        return function
    everywhere = PartitionSpec()
    return jax.shard_map(
        function, in_specs=everywhere, out_specs=everywhere, axis_names=set(over), check_vma=False
    )


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(n, str) for n in node)
