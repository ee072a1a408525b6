"""What devices send each other in a compiled program, and the least that the mesh would need.

Owns the kinds of collectives, the devices that each joins, and the bytes by the ring formula.
Knows nothing of time. Read `find_collectives`, `summarise` and `lower_bound`.

Devices are numbered as the program numbers them: by their place in the mesh, the last axis first.
Hosts are runs of `devices_per_host` such numbers.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spectral_dist.planning.hlo.parse import Computation, HloProgram, Instruction, executed
from spectral_dist.settings import MESH_AXES, Config

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

MeshShape = dict[str, int]
Groups = tuple[tuple[int, ...], ...]

_EXPLICIT = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_TILES = re.compile(r"(?:\[[\d,]+\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      name: of the instruction.
      kind: one of KINDS.
      count: how often it runs in one run of the program.
      axes: the mesh axes that its devices differ in; empty if each is alone.
      group_size: devices that join in one.
      payload_bytes: the larger of what a device gives and what it gets, each time.
      moved_bytes: what a device sends, each time, by the ring formula.
      crosses_hosts: whether any of its groups has devices of two hosts.
      rings_per_host: most groups at once that leave the same host and so share its network.
      op_name: where in the traced program it comes from.
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
    """All collectives of one kind over the same mesh axes, in one run of the program.

    Attributes:
      kind: one of KINDS.
      axes: mesh axes joined by "+", or "none".
      count: how many run.
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
    """Return every collective that a run of the program does, loops counted by their length.

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
    """Return the kind of collective that an instruction is or starts, if any."""
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
    given = sum(operand.bytes for operand in computation.operands(instruction))
    ways = max(map(len, groups))
    moved, payload = ring_bytes(kind, given, ways)
    leaving = rings_per_host(groups, devices_per_host)
    return Collective(
        name=instruction.name,
        kind=kind,
        count=times,
        axes=spanned_axes(groups, mesh_shape),
        group_size=ways,
        payload_bytes=payload,
        moved_bytes=moved,
        crosses_hosts=leaving > 0,
        rings_per_host=leaving,
        op_name=instruction.op_name,
    )


def ring_bytes(kind: str, given: int, ways: int) -> tuple[float, int]:
    """Return the bytes that a device sends in a ring, and the payload.

    The payload is the larger of what a device gives and gets. Of a payload P over n devices a
    device sends (n - 1) / n P to gather, to reduce and scatter or to exchange, twice that to reduce
    and keep everywhere, and P to pass on.

    Args:
      kind: one of KINDS.
      given: bytes that one device puts in.
      ways: n, devices that join.
    """
    payload = given * ways if kind == "all-gather" else given
    if kind == "collective-permute":
        return float(payload if ways > 1 else 0), payload
    factor = 2 if kind == "all-reduce" else 1
    return factor * (ways - 1) / ways * payload, payload


def device_groups(attributes: str, devices: int) -> Groups:
    """Return the devices that join in each ring, from the attributes of a collective.

    Reads lists, `[groups,size]<=[dims]T(order)` and `mesh['x'=4,'y'=2] {'x'}`; no groups at all
    are one of all devices, and the pairs of a permutation count as groups of two.

    Raises:
      ValueError: if there are none of these, or they name devices that are not there.
    """
    groups = _read_groups(attributes, devices)
    if any(device >= devices for group in groups for device in group):
        raise ValueError(f"its groups name devices beyond the {devices} of the mesh")
    return groups


def _read_groups(attributes: str, devices: int) -> Groups:
    if pairs := _PAIRS.search(attributes):
        found = [_numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs.group(1))]
        return tuple(tuple(sorted(set(pair))) for pair in found) or ((0,),)
    if listed := _EXPLICIT.search(attributes):
        found = [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed.group(1))]
        return tuple(found) or (tuple(range(devices)),)
    if iota := _IOTA.search(attributes):
        shape = _numbers(iota.group(1)[1 : iota.group(1).index("]")])
        return _rows(_tiles(iota.group(1)).reshape(shape))
    if named := _NAMED.search(attributes):
        return _mesh_groups(*named.groups())
    raise ValueError("its groups of devices are in a form that this program does not know")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _rows(array: np.ndarray) -> Groups:
    return tuple(tuple(int(device) for device in row) for row in array)


def _tiles(text: str) -> np.ndarray:
    """Return 0, 1, 2, ... in the order that `[dims]T(order)` says."""
    found = _TILES.fullmatch(text)
    if found is None:
        return np.array(_numbers(text))
    dims, order = _numbers(found.group(1)), found.group(2)
    array = np.arange(math.prod(dims)).reshape(dims)
    return array.transpose(_numbers(order) if order else range(len(dims)))


def _mesh_groups(axes: str, ids: str | None, over: str) -> Groups:
    """Return groups over named axes: `'x'`, or `'x':(p)s`, s devices after p of that axis."""
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", axes)}
    wanted = [
        (name, int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'?([a-zA-Z_][\w.\-]*)'?(?::\((\d+)\)(\d+))?", over)
    ]
    dims: list[int] = []
    joined: list[int] = []
    for axis, size in sizes.items():
        cuts = {1, size}
        for name, before, part in wanted:
            cuts |= {before, before * part} if name == axis else set()
        for low, high in itertools.pairwise(sorted(cuts)):
            if any(n == axis and b <= low and high <= b * s for n, b, s in wanted):
                joined.append(len(dims))
            dims.append(high // low)
    devices = np.arange(math.prod(dims)) if ids is None else _tiles(ids)
    kept = [i for i in range(len(dims)) if i not in joined]
    ways = math.prod(dims[i] for i in joined)
    return _rows(devices.reshape(dims).transpose([*kept, *joined]).reshape(-1, ways))


def spanned_axes(groups: Groups, mesh_shape: MeshShape) -> tuple[str, ...]:
    """Return the mesh axes that the devices of any group differ in, in the order of the mesh."""
    shape = tuple(mesh_shape.values())
    varying = np.zeros(len(shape), bool)
    for group in groups:
        places = np.array(np.unravel_index(group, shape))
        varying |= places.min(axis=1) != places.max(axis=1)
    return tuple(axis for axis, varies in zip(mesh_shape, varying, strict=True) if varies)


def rings_per_host(groups: Groups, devices_per_host: int) -> int:
    """Return how many groups leave the host that most groups leave."""
    leaving: Counter[int] = Counter()
    for group in groups:
        hosts = {device // devices_per_host for device in group}
        if len(hosts) > 1:
            leaving.update(hosts)
    return max(leaving.values(), default=0)


def summarise(collectives: Sequence[Collective]) -> tuple[Traffic, ...]:
    """Return the sums for each kind and set of axes, the most bytes first."""
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
    """Return the least traffic of a training step on this mesh, for this way of training.

    fsdp: every parameter gathered twice for a micro-batch, forward and backward, and its gradient
    reduced and scattered once, in compute_dtype. data: one reduction of the gradient's shard for a
    step, in float32. tensor: two reductions of the layer's activations forward and two backward,
    in compute_dtype. Norms, losses and what short vectors add are left out. Another way of
    training, as one that keeps the gathered parameters, could do with less.

    Args:
      config: of the run.
      devices_per_host: devices of a host, numbered one after another.
      parameters: elements of all parameters together.

    Returns:
      A row for each kind, with `count` the passes over all parameters, or the activations reduced.
    """
    mesh_shape = mesh_sizes(config)
    data, fsdp, tensor = config.mesh.shape
    micro, width = config.data.accum_steps, 2 if config.model.compute_dtype == "bfloat16" else 4
    held = parameters / tensor
    rows = config.data.batch_size / (data * fsdp)
    activations = rows * config.data.seq_len * config.model.hidden_dim * width
    reductions = 4 * config.model.num_layers * micro
    needed = [
        ("all-gather", "fsdp", 2 * micro, held * width),
        ("reduce-scatter", "fsdp", micro, held * width),
        ("all-reduce", "data", 1, held / fsdp * 4),
        ("all-reduce", "tensor", reductions, activations),
    ]
    table = []
    for kind, axis, count, payload in needed:
        ways = mesh_shape[axis]
        if ways > 1:
            sent = (2 if kind == "all-reduce" else 1) * (ways - 1) / ways * payload
            crosses = rings_per_host(axis_groups(mesh_shape, axis), devices_per_host) > 0
            table.append(Traffic(kind, axis, count, count * payload, count * sent, crosses))
    return tuple(table)


def mesh_sizes(config: Config) -> MeshShape:
    """Return the size of each mesh axis of a run, in the order of the mesh."""
    return dict(zip(MESH_AXES, config.mesh.shape, strict=True))


def axis_groups(mesh_shape: MeshShape, axis: str) -> Groups:
    """Return the devices along one mesh axis, a group for each place on the others."""
    shape = tuple(mesh_shape.values())
    devices = np.arange(math.prod(shape)).reshape(shape)
    along = np.moveaxis(devices, list(mesh_shape).index(axis), -1)
    return _rows(along.reshape(-1, mesh_shape[axis]))
