"""Collectives of a compiled program: their device groups, their bytes, and a lower bound on them.

Owns the kinds of collectives, the devices that each joins, and the bytes by the ring formula.
Knows nothing of time. Read `find_collectives`, `summarise` and `lower_bound`.

Devices are numbered as the program numbers them: by their position in the mesh, in row-major order
(the last mesh axis varies fastest). A host has `devices_per_host` consecutive numbers.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spectral_dist.planning.hlo.parse import Computation, HloProgram, Instruction, executed
from spectral_dist.settings import Config

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

MeshShape = dict[str, int]
Groups = tuple[tuple[int, ...], ...]

# The forms in which XLA writes the groups of a collective, each with an example.
# replica_groups={{0,1},{2,3}}
_EXPLICIT = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
# replica_groups=[2,4]<=[4,2]T(1,0)
_IOTA = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
# replica_groups=mesh['x'=4,'y'=2] {'x'}
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}")
# source_target_pairs={{0,1},{1,0}}, of a collective-permute
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
# [4,2]T(1,0), the dimensions of an iota and their order
_TILES = re.compile(r"(?:\[[\d,]+\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      name: of the instruction.
      kind: one of KINDS.
      count: executions in one run of the program.
      axes: the mesh axes that it communicates over; empty if each device is alone.
      group_size: devices of one group.
      payload_bytes: size of a device's input or output, whichever is larger, each time.
      moved_bytes: bytes that a device sends, each time, by the ring formula.
      crosses_hosts: whether any of its groups has devices of two hosts.
      rings_per_host: the most groups that leave one host at the same time and share its network.
      op_name: JAX's path to the operation that it comes from.
    """

    name: str
    kind: str
    count: int
    axes: tuple[str, ...]
    group_size: int
    payload_bytes: int
    moved_bytes: float
    crosses_hosts: bool
    rings_per_host: int
    op_name: str = ""


@dataclass(frozen=True)
class Traffic:
    """Sum of the collectives of one kind over the same mesh axes, in one run of the program.

    Attributes:
      kind: one of KINDS.
      axes: mesh axes joined by "+", or "none".
      count: number of executions.
      payload_bytes: sum of their payloads.
      moved_bytes: sum of what a device sends.
      crosses_hosts: whether any has devices of two hosts.
    """

    kind: str
    axes: str
    count: int
    payload_bytes: float
    moved_bytes: float
    crosses_hosts: bool


def find_collectives(
    program: HloProgram, mesh_shape: MeshShape, devices_per_host: int
) -> list[Collective]:
    """Return every collective that a run of the program executes, with loops multiplied out.

    Args:
      program: the program of one device.
      mesh_shape: size of each mesh axis, in the order of the mesh.
      devices_per_host: devices of a host, numbered one after another.

    Raises:
      ValueError: if a collective's groups cannot be read, or name devices outside the mesh.
    """
    return [
        _collective(e.instruction, e.computation, e.times, mesh_shape, devices_per_host)
        for e in executed(program)
        if kind_of(e.instruction)
    ]


def kind_of(instruction: Instruction) -> str | None:
    """Return the kind of collective that an instruction is or starts, or None."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def _collective(
    instruction: Instruction,
    computation: Computation,
    times: int,
    mesh_shape: MeshShape,
    devices_per_host: int,
) -> Collective:
    kind = kind_of(instruction)
    assert kind is not None
    devices = math.prod(mesh_shape.values())
    try:
        groups = device_groups(instruction.attributes, devices)
    except ValueError as error:
        raise ValueError(f"{instruction.name} of the compiled program: {error}") from error
    # The result of a -start form repeats its operands: sizes come from the operands alone.
    operand_bytes = sum(operand.bytes for operand in computation.operands(instruction))
    group_size = max(map(len, groups))
    moved, payload = ring_bytes(kind, operand_bytes, group_size)
    leaving = rings_per_host(groups, devices_per_host)
    return Collective(
        name=instruction.name,
        kind=kind,
        count=times,
        axes=spanned_axes(groups, mesh_shape),
        group_size=group_size,
        payload_bytes=payload,
        moved_bytes=moved,
        crosses_hosts=leaving > 0,
        rings_per_host=leaving,
        op_name=instruction.op_name,
    )


def ring_bytes(kind: str, operand_bytes: int, group_size: int) -> tuple[float, int]:
    """Return the bytes that one device sends in a ring, and the payload.

    The payload P is the size of a device's input or output, whichever is larger. A ring of n
    devices sends P (n - 1) / n from each.

    Args:
      kind: one of KINDS.
      operand_bytes: size of the input of one device.
      group_size: n, devices in the ring.
    """
    # Only a gather's output is larger than its input.
    payload = operand_bytes * group_size if kind == "all-gather" else operand_bytes
    if kind == "collective-permute":
        # No ring: each device sends its whole input to one other.
        return float(payload if group_size > 1 else 0), payload
    # An all-reduce is a reduce-scatter followed by an all-gather.
    factor = 2 if kind == "all-reduce" else 1
    return factor * (group_size - 1) / group_size * payload, payload


def device_groups(attributes: str, devices: int) -> Groups:
    """Return the device groups of a collective, from its attributes.

    Reads lists, `[groups,size]<=[dims]T(order)`, `mesh['x'=4,'y'=2] {'x'}` and the pairs of a
    permutation, each of which counts as a group of two.

    Raises:
      ValueError: if the form is another one, or names devices outside the mesh.
    """
    groups = _read_groups(attributes, devices)
    if any(device >= devices for group in groups for device in group):
        raise ValueError(f"its groups name devices beyond the {devices} of the mesh")
    return groups


def _read_groups(attributes: str, devices: int) -> Groups:
    if pairs := _PAIRS.search(attributes):
        found = [_numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs.group(1))]
        # A pair may send from a device to itself: a set, so that this is a group of one.
        return tuple(tuple(sorted(set(pair))) for pair in found) or ((0,),)
    if listed := _EXPLICIT.search(attributes):
        found = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed.group(1))]
        # replica_groups={} is one group of all devices.
        return tuple(found) or (tuple(range(devices)),)
    if iota := _IOTA.search(attributes):
        shape = _numbers(iota.group(1)[1 : iota.group(1).index("]")])
        return _as_groups(_tiles(iota.group(1)).reshape(shape))
    if named := _NAMED.search(attributes):
        return _mesh_groups(*named.groups())
    raise ValueError("its replica_groups are written in an unknown form")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _as_groups(array: np.ndarray) -> Groups:
    return tuple(tuple(int(device) for device in row) for row in array)


def _tiles(text: str) -> np.ndarray:
    """Return the iota 0, 1, 2, ... of `[dims]T(order)`, reshaped to dims and transposed."""
    found = _TILES.fullmatch(text)
    if found is None:
        return np.array(_numbers(text))
    dims, order = _numbers(found.group(1)), found.group(2)
    array = np.arange(math.prod(dims)).reshape(dims)
    return array.transpose(_numbers(order) if order else range(len(dims)))


def _mesh_groups(axes: str, ids: str | None, over: str) -> Groups:
    """Return groups over named mesh axes: `'x'`, or a part of one, `'x':(p)s`.

    Such a part has size s and varies faster than parts of p devices together.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", axes)}
    wanted = [
        (name, int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'?([a-zA-Z_][\w.\-]*)'?(?::\((\d+)\)(\d+))?", over)
    ]
    dims: list[int] = []
    joined: list[int] = []
    # Each mesh axis is split into one dimension for every part of it that a group may name, so that
    # a group is some of these dimensions and nothing else.
    for mesh_axis, size in sizes.items():
        cuts = {1, size}
        for name, before, part in wanted:
            cuts |= {before, before * part} if name == mesh_axis else set()
        for low, high in itertools.pairwise(sorted(cuts)):
            if any(n == mesh_axis and b <= low and high <= b * s for n, b, s in wanted):
                joined.append(len(dims))
            dims.append(high // low)
    devices = np.arange(math.prod(dims)) if ids is None else _tiles(ids)
    kept = [i for i in range(len(dims)) if i not in joined]
    group_size = math.prod(dims[i] for i in joined)
    # The joined dimensions go last: then each row of the reshaped array is a group.
    return _as_groups(devices.reshape(dims).transpose([*kept, *joined]).reshape(-1, group_size))


def spanned_axes(groups: Groups, mesh_shape: MeshShape) -> tuple[str, ...]:
    """Return the mesh axes that groups communicate over, in the order of the mesh."""
    shape = tuple(mesh_shape.values())
    varying = np.zeros(len(shape), bool)
    for group in groups:
        positions = np.array(np.unravel_index(group, shape))
        varying |= positions.min(axis=1) != positions.max(axis=1)
    return tuple(mesh_axis for mesh_axis, varies in zip(mesh_shape, varying, strict=True) if varies)


def rings_per_host(groups: Groups, devices_per_host: int) -> int:
    """Return the most groups that cross the network of one host; 0 if none leaves its host."""
    leaving: Counter[int] = Counter()
    for group in groups:
        hosts = {device // devices_per_host for device in group}
        if len(hosts) > 1:
            leaving.update(hosts)
    return max(leaving.values(), default=0)


def summarise(collectives: Sequence[Collective]) -> tuple[Traffic, ...]:
    """Return the traffic of each kind and set of mesh axes, the most bytes first."""
    table: dict[tuple[str, str], list[Collective]] = {}
    for collective in collectives:
        axes = "+".join(collective.axes) or "none"
        table.setdefault((collective.kind, axes), []).append(collective)
    rows = [
        Traffic(
            kind,
            axes,
            sum(c.count for c in members),
            sum(c.count * c.payload_bytes for c in members),
            sum(c.count * c.moved_bytes for c in members),
            any(c.crosses_hosts for c in members),
        )
        for (kind, axes), members in table.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.moved_bytes, row.kind, row.axes)))


def lower_bound(config: Config, devices_per_host: int, parameters: int) -> tuple[Traffic, ...]:
    """Return a lower bound on the traffic of a training step on this mesh.

    It holds for this trainer's sharding: one that keeps gathered parameters could do with less.
    Norms, losses and short vectors are left out.

    Args:
      config: of the run.
      devices_per_host: devices of a host, numbered one after another.
      parameters: number of elements in params.

    Returns:
      A row for each kind, with `count` the passes over all parameters, or the activations reduced.
    """
    mesh_shape = mesh_sizes(config)
    data, fsdp, last = config.mesh.shape
    tensor, shared = (1, last) if config.mesh.sequence_parallel else (last, 1)
    micro, width = config.data.accum_steps, 2 if config.model.compute_dtype == "bfloat16" else 4
    held = parameters / tensor
    sequences = config.data.batch_size / (data * fsdp)
    activations = sequences * config.data.seq_len * config.model.hidden_dim * width
    # The mixer and the MLP of each layer, forward and backward.
    reductions = 4 * config.model.num_layers * micro
    needed = [
        # Weights for the forward and again for the backward pass of every micro-batch.
        ("all-gather", "fsdp", 2 * micro, held / shared * width),
        ("reduce-scatter", "fsdp", micro, held / shared * width),
        # Shards of time share the weights too; the states between them are next to nothing.
        ("all-gather", "sequence", 2 * micro, held * width),
        ("reduce-scatter", "sequence", micro, held * width),
        # Once a step, after gradient accumulation, and in float32, in which it accumulates.
        ("all-reduce", "data", 1, held / fsdp / shared * 4),
        ("all-reduce", "tensor", reductions, activations),
    ]
    table = []
    for kind, mesh_axis, count, payload in needed:
        size = mesh_shape.get(mesh_axis, 1)
        if size > 1:
            sent = (2 if kind == "all-reduce" else 1) * (size - 1) / size * payload
            crosses = rings_per_host(axis_groups(mesh_shape, mesh_axis), devices_per_host) > 0
            table.append(Traffic(kind, mesh_axis, count, count * payload, count * sent, crosses))
    return tuple(table)


def mesh_sizes(config: Config) -> MeshShape:
    """Return the size of each mesh axis of a run, in the order of the mesh."""
    return config.mesh.sizes


def axis_groups(mesh_shape: MeshShape, mesh_axis: str) -> Groups:
    """Return the device groups along one mesh axis, one for each position on the others."""
    shape = tuple(mesh_shape.values())
    devices = np.arange(math.prod(shape)).reshape(shape)
    along = np.moveaxis(devices, list(mesh_shape).index(mesh_axis), -1)
    return _as_groups(along.reshape(-1, mesh_shape[mesh_axis]))
