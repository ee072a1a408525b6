"""The drawings of a dry run's page: stacked bars, and the mesh as hosts and GPUs.

Owns their geometry, their colours and the words that stand for them where they are not seen. Made
of HTML boxes and not of SVG, so that text keeps its size on a narrow screen. Read `draw_bar` and
`draw_mesh`.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from spectral_dist.outputs.html_page import LIGHT, tick_text, ticks
from spectral_dist.planning.hlo.collectives import Groups, MeshShape, axis_groups
from spectral_dist.planning.memory import GIB, MIB
from spectral_dist.settings import MESH_AXES

MOST_GPUS = 512  # more are not drawn, but told
_ROW = 8  # GPUs side by side
_COLOURS = len(LIGHT)
_UNITS = (("GiB", GIB, 2), ("MiB", MIB, 1), ("KiB", 2**10, 1), ("B", 1, 0))

AXIS_WORDS = {
    "data": "copies the model; gradients are summed over it once a step",
    "fsdp": "shards parameters and optimizer; weights are gathered for each use",
    "tensor": "splits channels, heads and the MLP; activations are summed in every layer",
}


@dataclass(frozen=True)
class Segment:
    """One part of a stacked bar.

    Attributes:
      name: what it is.
      style: CSS classes: a colour of the scale, or "added" for the hatching.
      amount: in the unit of the bar, not negative.
      text: the amount as it is shown.
    """

    name: str
    style: str
    amount: float
    text: str


def size_text(size: float) -> str:
    """Return bytes in the largest unit that leaves a digit before the point: 8.12 GiB, 0."""
    if not size:
        return "0"
    name, unit, digits = next(row for row in _UNITS if abs(size) >= row[1] or row[1] == 1)
    return f"{size / unit:,.{digits}f} {name}"


def count_text(count: float) -> str:
    """Return a large count short: 38M, 2.4B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return (
                f"{count / unit:.3g}{name}" if count < 100 * unit else f"{count / unit:.0f}{name}"
            )
    return f"{count:.0f}"


def draw_legend(segments: Sequence[Segment]) -> str:
    """Return the names of segments, each name once, beside their colours."""
    styles = {segment.name: segment.style for segment in segments}
    keys = "".join(
        f'<li><i class="{style}"></i>{html.escape(name)}</li>' for name, style in styles.items()
    )
    return f'<ul class="legend">{keys}</ul>'


def draw_bar(
    name: str, total: str, segments: Sequence[Segment], end: float, limit: float | None = None
) -> str:
    """Return one stacked bar below its name.

    Args:
      name: of the bar.
      total: what stands beside the name.
      segments: from the left; those of no amount are left out.
      end: the amount at the right end of the scale, positive.
      limit: the amount at which a line is drawn, if any.
    """
    shown = [segment for segment in segments if segment.amount > 0]
    words = ", ".join(f"{segment.name} {segment.text}" for segment in shown)
    boxes = "".join(
        f'<i class="{s.style}" style="width:{100 * s.amount / end:.4f}%"'
        f' data-amount="{s.amount!r}" title="{html.escape(f"{s.name}: {s.text}")}"></i>'
        for s in shown
    )
    line = "" if limit is None else f'<u style="left:{100 * limit / end:.4f}%"></u>'
    label = html.escape(f"{name}, {total}: {words or 'nothing'}")
    return (
        f'<div class="bar-name"><b>{html.escape(name)}</b> <span>{html.escape(total)}</span></div>'
        f'<div class="bar" role="img" aria-label="{label}">{boxes}{line}</div>'
    )


def draw_scale(end: float, unit: str, limit: float | None, limit_text: str) -> str:
    """Return the numbers below bars of one scale, and the name of the line at the limit.

    Args:
      end: the number at the right end.
      unit: of the numbers.
      limit: where the line is, in the same unit, if there is one.
      limit_text: its name.
    """
    marks = "".join(
        f'<span style="left:{100 * value / end:.3f}%">{tick_text(value)}</span>'
        for value in ticks(0.0, end)
        if value < 0.97 * end
    )
    name = ""
    if limit is not None:
        # On the side of the line that has more room.
        side, there = ("right", end - limit) if 2 * limit > end else ("left", limit)
        place = f'class="{side}" style="{side}:{100 * there / end:.3f}%"'
        name = f'<div class="limit"><span {place}>{html.escape(limit_text)}</span></div>'
    return f'<div class="scale" aria-hidden="true">{marks}<em>{html.escape(unit)}</em></div>{name}'


def draw_mesh(mesh_shape: MeshShape, gpus_per_host: int, inside: str, between: str) -> str:
    """Return the cluster once for each mesh axis of more than one device, coloured by its groups.

    Args:
      mesh_shape: size of each mesh axis, in the order of the mesh.
      gpus_per_host: devices of a host, numbered one after another.
      inside: name of the link between the GPUs of a host.
      between: name of the network between hosts.
    """
    devices = math.prod(mesh_shape.values())
    used = [axis for axis in MESH_AXES if mesh_shape[axis] > 1]
    if not used:
        cluster = _cluster([(0,)], 1, 1)
        return (
            '<div class="meshes"><figure><figcaption><b>One device.</b> No mesh axis spans more.'
            f'</figcaption><div class="cluster" role="img" aria-label="1 host with 1 GPU">{cluster}'
            "</div></figure></div>"
        )
    figures = []
    for axis in used:
        groups = axis_groups(mesh_shape, axis)
        first = groups[0]
        hosts = len({device // gpus_per_host for device in first})
        link = f"across {hosts} hosts ({between})" if hosts > 1 else f"inside a host ({inside})"
        many = f"{len(groups):,} groups" if len(groups) > 1 else "one group"
        ways = mesh_shape[axis]
        told = f"{many} of {ways} GPUs, {link}"
        named = ", ".join(map(str, first[:12])) + (", ..." if ways > 12 else "")
        label = f"{axis}: {told}; GPUs {named} are the first group"
        note = ""
        if len(groups) > _COLOURS:
            note = f" The first {_COLOURS} groups are coloured."
        figures.append(
            f"<figure><figcaption><b>{axis} {ways}</b>: {AXIS_WORDS[axis]}."
            f' <span class="muted">{html.escape(told)}.{note}</span></figcaption>'
            f'<div class="cluster" role="img" aria-label="{html.escape(label)}">'
            f"{_cluster(groups, devices, gpus_per_host)}</div></figure>"
        )
    unused = [axis for axis in MESH_AXES if axis not in used]
    rest = f'<p class="muted">{" and ".join(unused)}: 1, not used.</p>' if unused else ""
    return f'<div class="meshes">{"".join(figures)}</div>{rest}'


def _cluster(groups: Groups | list[tuple[int, ...]], devices: int, gpus_per_host: int) -> str:
    """Return the hosts, each with its GPUs, coloured by group and numbered by place in the mesh."""
    colour = {device: g for g, group in enumerate(groups[:_COLOURS]) for device in group}
    hosts = devices // gpus_per_host
    drawn = max(1, min(hosts, MOST_GPUS // gpus_per_host))
    across = min(gpus_per_host, _ROW)
    parts = []
    for host in range(drawn):
        first = host * gpus_per_host
        gpus = range(first, first + min(gpus_per_host, MOST_GPUS))
        cells = "".join(f'<i class="{_paint(colour.get(gpu))}">{gpu}</i>' for gpu in gpus)
        parts.append(
            f'<div class="host"><span>host {host}</span>'
            f'<div style="grid-template-columns:repeat({across},minmax(0,1fr));'
            f'max-width:{34 * across}px">{cells}</div></div>'
        )
    hidden = devices - sum(part.count("<i ") for part in parts)
    more = f'<p class="muted">and {hidden:,} GPUs more, in the same order</p>' if hidden else ""
    return "".join(parts) + more


def _paint(group: int | None) -> str:
    return "plain" if group is None else f"c{group}"


STYLE = (
    ".bars{margin:14px 0 10px}.bar-name{font-size:13px;margin:10px 0 3px;display:flex;"
    "flex-wrap:wrap;gap:0 10px}.bar-name span{color:var(--muted)}"
    ".bar{position:relative;display:flex;height:22px;background:var(--grid)}"
    ".bar i{flex:none;background:var(--c);box-shadow:inset -1px 0 var(--bg)}"
    ".bar u{position:absolute;top:-3px;bottom:-3px;width:0;border-left:2px solid var(--ink)}"
    ".bar,.bar i,.legend i,.host i{print-color-adjust:exact;-webkit-print-color-adjust:exact}"
    ".bar .added{border-left:1px solid var(--muted);box-sizing:border-box}"
    ".added{--c:repeating-linear-gradient(135deg,var(--muted) 0 2px,transparent 2px 6px)}"
    ".legend i{height:11px;width:11px}"
    ".scale{position:relative;height:20px;font-size:12px;color:var(--muted);margin-top:4px;"
    "font-variant-numeric:tabular-nums}.scale span{position:absolute;transform:translateX(-50%)}"
    ".scale span:first-child{transform:none}.scale em{position:absolute;right:0;font-style:normal}"
    ".limit{position:relative;height:20px;font-size:12px}"
    ".limit span{position:absolute;white-space:nowrap;padding:0 6px}"
    ".limit .left{border-left:2px solid var(--ink)}.limit .right{border-right:2px solid var(--ink)}"
    ".meshes{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));"
    "gap:22px 36px;margin:10px 0}.meshes figure{margin:0;min-width:0}"
    "figcaption{font-size:13px;margin-bottom:8px}"
    ".cluster{display:flex;flex-wrap:wrap;gap:8px}"
    ".host{border:1px solid var(--axis);border-radius:6px;padding:3px 6px 6px;min-width:0}"
    ".host span{font-size:11px;color:var(--muted)}.host div{display:grid;gap:3px}"
    ".host i{font:11px/24px system-ui,sans-serif;min-width:24px;height:24px;text-align:center;"
    "border-radius:4px;font-variant-numeric:tabular-nums;box-shadow:inset 0 0 0 1px var(--c);"
    "background:color-mix(in srgb,var(--c) 34%,var(--bg))}"
    ".host i.plain{--c:var(--grid);color:var(--muted);background:none}"
)
