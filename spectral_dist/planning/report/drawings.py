"""Drawings of the dry-run page: stacked bars, and the mesh as hosts and GPUs.

Owns their geometry, their colours and their texts for screen readers. The template
drawings.html.jinja draws them as HTML boxes and not as SVG, so that text keeps its size on a narrow
screen. Read `Bar` and `mesh_drawing`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from spectral_dist.outputs.report.scales import LIGHT, tick_text, ticks
from spectral_dist.planning.hlo.collectives import Groups, MeshShape, axis_groups
from spectral_dist.planning.memory import GIB, MIB

MOST_GPUS = 512  # further GPUs are counted, not drawn: a page of thousands of boxes is slow
_IN_A_ROW = 8  # GPUs side by side, as many as a usual host has
_GPU_PIXELS = 34  # the most that one is wide, for three digits
_COLOURS = len(LIGHT)
# Largest first: size_text takes the first that fits. Name, bytes, digits after the point.
_UNITS = (("GiB", GIB, 2), ("MiB", MIB, 1), ("KiB", 2**10, 1), ("B", 1, 0))

# What each mesh axis does and when it communicates; a phrase after "data 4: ".
MESH_AXIS_WORDS = {
    "data": "copies the model; gradients are summed over it once a step",
    "fsdp": "shards parameters and optimizer; weights are gathered for each use",
    "sequence": "splits the time of each sequence; states and the last window cross in every layer",
    "tensor": "splits channels, heads and the MLP; activations are summed in every layer",
}


@dataclass(frozen=True)
class Segment:
    """One part of a stacked bar.

    Attributes:
      name: in the legend.
      style: CSS class: a colour of the scale, or "added" for hatching.
      amount: in the unit of the bar, not negative.
      text: the amount as the reader sees it.
    """

    name: str
    style: str
    amount: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A stacked bar below its name.

    Attributes:
      name: of the bar.
      total: text beside the name.
      segments: from the left; empty ones are left out.
      end: the amount at the right end of the scale, positive.
      limit: the amount at which a vertical line is drawn, if any.
    """

    name: str
    total: str
    segments: Sequence[Segment]
    end: float
    limit: float | None = None

    @cached_property
    def shown(self) -> list[Segment]:
        """The segments that are drawn."""
        return [segment for segment in self.segments if segment.amount > 0]

    @cached_property
    def label(self) -> str:
        """The text for screen readers: a role="img" hides the boxes themselves from them."""
        words = ", ".join(f"{segment.name} {segment.text}" for segment in self.shown)
        return f"{self.name}, {self.total}: {words or 'nothing'}"

    def percent(self, amount: float) -> str:
        """Return the width of an amount, in percent of the scale."""
        # Of the scale, not of the bar: bars of one scale can be compared by eye.
        return f"{100 * amount / self.end:.4f}%"


@dataclass(frozen=True)
class Scale:
    """The tick labels below bars of one scale, and the label of the limit's line.

    Attributes:
      end: the number at the right end.
      unit: of the numbers.
      limit: position of the line in the same unit, if there is one.
      limit_text: its label.
    """

    end: float
    unit: str
    limit: float | None
    limit_text: str

    @cached_property
    def marks(self) -> list[tuple[str, str]]:
        """The position and the text of each tick."""
        # None in the last 3%: the unit is printed there.
        numbers = [value for value in ticks(0.0, self.end) if value < 0.97 * self.end]
        return [(f"{100 * value / self.end:.3f}%", tick_text(value)) for value in numbers]

    @cached_property
    def side(self) -> str:
        """The side of the scale, left or right, from which the limit's label grows."""
        # The longer of both: a label on the shorter one would leave a narrow screen.
        return "right" if self.limit is not None and 2 * self.limit > self.end else "left"

    @cached_property
    def limit_percent(self) -> str:
        """The distance of the line from that side, in percent."""
        assert self.limit is not None, "a scale without a limit has no line"
        distance = self.limit if self.side == "left" else self.end - self.limit
        return f"{100 * distance / self.end:.3f}%"


@dataclass(frozen=True)
class Host:
    """One host of a cluster.

    Attributes:
      number: of the host.
      columns: GPUs side by side.
      width: of all columns at most, in pixels.
      gpus: CSS class of each GPU and its number in the mesh.
    """

    number: int
    columns: int
    width: int
    gpus: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class MeshAxisDrawing:
    """The cluster, coloured by the device groups of one mesh axis.

    Attributes:
      name: of the mesh axis with its size; empty for a single device.
      words: what the mesh axis does.
      detail: number and size of the groups, and their link.
      label: text for screen readers.
      hosts: those that are drawn.
      hidden: number of GPUs that are not drawn.
    """

    name: str
    words: str
    detail: str
    label: str
    hosts: list[Host]
    hidden: int


def size_text(size: float) -> str:
    """Return a size in bytes with the largest unit that it reaches: 8.12 GiB, 512 B, 0."""
    if not size:
        return "0"
    name, unit, digits = next(row for row in _UNITS if abs(size) >= row[1] or row[1] == 1)
    return f"{size / unit:,.{digits}f} {name}"


def count_text(count: float) -> str:
    """Return a large count in short form: 38M, 2.4B."""
    # Three digits; .3g would write 999.6M as 1e+03M.
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return (
                f"{count / unit:.3g}{name}" if count < 100 * unit else f"{count / unit:.0f}{name}"
            )
    return f"{count:.0f}"


def legend(segments: Sequence[Segment]) -> list[tuple[str, str]]:
    """Return the CSS class and the name of segments, each name once."""
    # A dict, because each program's bar has segments of the same names.
    styles = {segment.name: segment.style for segment in segments}
    return [(style, name) for name, style in styles.items()]


def mesh_drawing(
    mesh_shape: MeshShape, gpus_per_host: int, inside: str, between: str
) -> list[MeshAxisDrawing]:
    """Return a drawing of the cluster for each mesh axis of size above 1, coloured by its groups.

    Args:
      mesh_shape: size of each mesh axis, in the order of the mesh.
      gpus_per_host: devices of a host, numbered one after another.
      inside: name of the link between the GPUs of a host.
      between: name of the network between hosts.
    """
    devices = math.prod(mesh_shape.values())
    used = used_axes(mesh_shape)
    if not used:
        hosts, _ = _hosts([(0,)], 1, 1)
        return [MeshAxisDrawing("", "", "", "1 host with 1 GPU", hosts, 0)]
    drawings = []
    for mesh_axis in used:
        groups, size = axis_groups(mesh_shape, mesh_axis), mesh_shape[mesh_axis]
        # All groups of a mesh axis have one shape, so the first stands for them.
        first = groups[0]
        spanned = len({device // gpus_per_host for device in first})
        link = f"across {spanned} hosts ({between})" if spanned > 1 else f"inside a host ({inside})"
        many = f"{len(groups):,} groups" if len(groups) > 1 else "one group"
        detail = f"{many} of {size} GPUs, {link}"
        # A screen reader gets twelve numbers at most: hundreds of them say nothing.
        named = ", ".join(map(str, first[:12])) + (", ..." if size > 12 else "")
        label = f"{mesh_axis}: {detail}; GPUs {named} are the first group"
        if len(groups) > _COLOURS:
            detail += f". The first {_COLOURS} groups are coloured"
        hosts, hidden = _hosts(groups, devices, gpus_per_host)
        name, words = f"{mesh_axis} {size}", MESH_AXIS_WORDS[mesh_axis]
        drawings.append(MeshAxisDrawing(name, words, detail, label, hosts, hidden))
    return drawings


def used_axes(mesh_shape: MeshShape) -> list[str]:
    """Return the mesh axes of size above 1, in the order of the mesh."""
    return [mesh_axis for mesh_axis, size in mesh_shape.items() if size > 1]


def _hosts(
    groups: Groups | list[tuple[int, ...]], devices: int, gpus_per_host: int
) -> tuple[list[Host], int]:
    """Return the hosts with their GPUs coloured by group, and the number of GPUs not drawn."""
    # Groups beyond the colours stay plain: the same colour for two would join them to the eye.
    colour = {device: g for g, group in enumerate(groups[:_COLOURS]) for device in group}
    # Whole hosts, up to MOST_GPUS; of a single larger host a part.
    drawn = max(1, min(devices // gpus_per_host, MOST_GPUS // gpus_per_host))
    columns = min(gpus_per_host, _IN_A_ROW)
    hosts = []
    for number in range(drawn):
        first = number * gpus_per_host
        gpus = range(first, first + min(gpus_per_host, MOST_GPUS))
        styles = [(f"c{colour[gpu]}" if gpu in colour else "plain", gpu) for gpu in gpus]
        hosts.append(Host(number, columns, _GPU_PIXELS * columns, styles))
    return hosts, devices - sum(len(host.gpus) for host in hosts)
