"""report.html: one page about a run, drawn from its metrics.jsonl and config.yaml.

Owns the page: its charts are SVG drawn here, so that the file needs no network and no library and
can be mailed. Must not know the training loop; it reads a run folder that may still be growing.
Read `write_report` first. On request: python -m spectral_dist.outputs.report FOLDER
"""

import argparse
import html
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spectral_dist.outputs.html_page import (
    LIGHT,
    draw_frame,
    draw_table,
    tick_text,
    ticks,
    write_page,
)
from spectral_dist.outputs.jsonl import read_metrics
from spectral_dist.training.metrics import Record, extrapolation_rows, source_bits

# A chart, in SVG user units (about CSS pixels): the plot lies inside the margins.
WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 14, 46
LABEL_ROOM = 126  # more room to the right for the names at the lines' ends
LABEL_GAP = 15
MAX_POINTS = 800  # a chart has no more pixels across than this
MARKED_POINTS = 40  # with fewer points each is marked, and shows its value under the mouse


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name and its points (step, value), by step; values may be NaN."""

    name: str
    points: list[tuple[int, float]]


@dataclass(frozen=True)
class Axes:
    """The scales of one chart: data limits, and the plot's right edge in user units."""

    x: tuple[float, float]
    y: tuple[float, float]
    right: float

    def place(self, step: float, value: float) -> tuple[float, float]:
        """Return the position of a point, in user units."""
        across = (step - self.x[0]) / (self.x[1] - self.x[0])
        up = (value - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (self.right - LEFT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)


def write_report(folder: Path) -> Path:
    """Draw the report of a run folder and return its path, folder/report.html.

    Raises:
      ValueError: if the folder has no readable metrics.jsonl.
      OSError: if the page cannot be written.
    """
    records = read_metrics(folder / "metrics.jsonl")
    settings = folder / "config.yaml"
    text = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    page = draw_page(folder.resolve().name, records, text)
    path = folder / "report.html"
    write_page(path, page)
    return path


def draw_page(name: str, records: Sequence[Record], settings: str) -> str:
    """Return the whole page: headline figures, charts, extrapolation table, configuration."""
    sources = list(dict.fromkeys(s for record in records for s in source_bits(record.metrics)))
    by_source = [
        Series(source, _points(records, f"val/{source}/bits_per_byte")) for source in sources
    ]
    loss, rate, speed = (
        [Series(name.partition("/")[2], _points(records, name))]
        for name in ("train/loss", "optimizer/learning_rate", "perf/tokens_per_second")
    )
    charts = [
        _figure("Training loss", "nats per token", loss),
        _figure("Held-out text, by source", "bits per byte", by_source, legend=True),
        _figure("Learning rate", "learning rate", rate, from_zero=True),
        _figure("Throughput", "tokens per second", speed, from_zero=True),
    ]
    last = max((record.step for record in records), default=0)
    body = f"""<p class="muted">{last:,} steps completed</p>
{_headline(records)}
<div class="charts">
{"".join(charts)}
</div>
{_extrapolation(records)}
{_configuration(settings)}"""
    return draw_frame(name, STYLE, body)


def _points(records: Sequence[Record], name: str) -> list[tuple[int, float]]:
    found = [(r.step, r.metrics[name]) for r in records if name in r.metrics]
    return sorted(found, key=lambda point: point[0])


def _headline(records: Sequence[Record]) -> str:
    """Return the last value of the figures that are asked for first."""
    cells: list[str] = []
    for name, label, form in (
        ("train/loss", "training loss, nats per token", "{:.4f}"),
        ("val/bits_per_byte", "held-out bits per byte", "{:.4f}"),
        ("perf/tokens_per_second", "tokens per second", "{:,.0f}"),
        ("train/skipped_steps", "skipped steps", "{:.0f}"),
    ):
        points = _points(records, name)
        if points:
            value = form.format(points[-1][1])
            cells.append(f"<div><b>{value}</b><span>{label}</span></div>")
    return f'<div class="headline">{"".join(cells)}</div>' if cells else ""


def _figure(
    title: str, unit: str, lines: Sequence[Series], legend: bool = False, from_zero: bool = False
) -> str:
    """Return one chart with its title and, for several lines, a legend."""
    chart = draw_chart(title, unit, lines, named=legend, from_zero=from_zero)
    bad = sum(not math.isfinite(value) for line in lines for _, value in line.points)
    note = f'<p class="muted">points that are not finite and not drawn: {bad:,}</p>' if bad else ""
    keys = "".join(
        f'<li class="c{_colour(i)}"><i></i>{html.escape(line.name)}</li>'
        for i, line in enumerate(lines)
    )
    legend_text = f'<ul class="legend">{keys}</ul>' if legend and len(lines) > 1 else ""
    return f"<figure><h2>{html.escape(title)}</h2>{legend_text}{chart}{note}</figure>\n"


def draw_chart(
    title: str, unit: str, lines: Sequence[Series], named: bool = False, from_zero: bool = False
) -> str:
    """Return one line chart over steps as SVG, or a remark where there is nothing to draw.

    `named` sets the lines' names at their ends; `from_zero` begins the vertical axis at zero.
    """
    finite = [p for line in lines for p in line.points if math.isfinite(p[1])]
    if not finite:
        return '<p class="empty">no points yet</p>'
    steps, values = [p[0] for p in finite], [p[1] for p in finite]
    axes = Axes(
        x=(0.0, 1.04 * max(*steps, 1)),
        y=_limits(min([*values, 0.0]) if from_zero else min(values), max(values)),
        right=WIDTH - (LABEL_ROOM if named else RIGHT),
    )
    drawn = "".join(_draw_line(line, axes, _colour(i), unit) for i, line in enumerate(lines))
    names = _draw_names(lines, axes) if named else ""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{_draw_axes(axes, unit)}{drawn}{names}</svg>"
    )


def _colour(index: int) -> int:
    """Return the place of a series in the colour scale; what is beyond it shares the last."""
    return min(index, len(LIGHT) - 1)


def _limits(low: float, high: float) -> tuple[float, float]:
    """Return the limits of an axis, widened where all values are one."""
    if high > low:
        room = 0.0 if low == 0 else 0.04 * (high - low)
        return low - room, high + 0.04 * (high - low)
    room = abs(high) * 0.5 or 1.0
    return low - room, high + room


def _draw_line(line: Series, axes: Axes, colour: int, unit: str) -> str:
    """Return a polyline for each stretch without gaps, and marks where the points are few."""
    parts: list[str] = []
    stretch: list[str] = []
    points = _thin(line.points)
    for step, value in [*points, (0, math.nan)]:
        if math.isfinite(value):
            x, y = axes.place(step, value)
            stretch.append(f"{x:.1f},{y:.1f}")
        elif stretch:
            parts.append(f'<polyline class="line c{colour}" points="{" ".join(stretch)}"/>')
            stretch = []
    if len(points) <= MARKED_POINTS:
        for step, value in points:
            if math.isfinite(value):
                x, y = axes.place(step, value)
                text = html.escape(f"{line.name}: {value:.5g} {unit} at step {step:,}")
                parts.append(
                    f'<circle class="mark c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
                    f"<title>{text}</title></circle>"
                )
    return "".join(parts)


def _thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most MAX_POINTS points: the lowest and the highest of each bucket, in order.

    Means would hide the spikes that one looks for.
    """
    if len(points) <= MAX_POINTS:
        return points
    buckets = MAX_POINTS // 2
    kept: list[tuple[int, float]] = []
    for b in range(buckets):
        bucket = points[b * len(points) // buckets : (b + 1) * len(points) // buckets]
        finite = [p for p in bucket if math.isfinite(p[1])]
        if not finite:
            kept.append(bucket[0])
            continue
        ends = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _draw_names(lines: Sequence[Series], axes: Axes) -> str:
    """Return each line's name at its end, moved apart where they would overlap."""
    ends: list[tuple[float, float, int, str]] = []
    for i, line in enumerate(lines):
        finite = [p for p in line.points if math.isfinite(p[1])]
        if finite:
            x, y = axes.place(*finite[-1])
            ends.append((y, x, i, line.name))
    ends.sort()
    parts: list[str] = []
    # Room for all names below the highest of them, even if the chart has to begin higher up.
    lowest, free = HEIGHT - BOTTOM - LABEL_GAP * (len(ends) - 1), -math.inf
    for n, (y, x, i, name) in enumerate(ends):
        at = max(min(y, lowest + n * LABEL_GAP), free)
        free = at + LABEL_GAP
        short = name if len(name) <= 15 else name[:14] + "\u2026"
        parts.append(
            f'<circle class="dot c{_colour(i)}" cx="{axes.right + 12:.1f}" cy="{at:.1f}" r="3"/>'
            f'<text class="name" x="{axes.right + 19:.1f}" y="{at + 4:.1f}">'
            f"{html.escape(short)}</text>"
        )
        if abs(at - y) > 1 or x < axes.right - 30:
            parts.append(
                f'<path class="lead" d="M{x + 5:.1f} {y:.1f}L{axes.right + 8:.1f} {at:.1f}"/>'
            )
    return "".join(parts)


def _draw_axes(axes: Axes, unit: str) -> str:
    """Return grid lines, tick labels and the labels of both axes."""
    parts: list[str] = []
    for value in ticks(*axes.y):
        _, y = axes.place(axes.x[0], value)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{axes.right:.1f}"/>'
            f'<text class="tick" text-anchor="end" x="{LEFT - 8}" y="{y + 4:.1f}">'
            f"{tick_text(value)}</text>"
        )
    base = HEIGHT - BOTTOM
    for step in ticks(*axes.x, whole=True):
        x, _ = axes.place(step, axes.y[0])
        parts.append(
            f'<path class="axis" d="M{x:.1f} {base}v4"/>'
            f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{base + 18}">'
            f"{tick_text(step)}</text>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {base}H{axes.right:.1f}"/>')
    middle = 'text-anchor="middle"'
    parts.append(
        f'<text {middle} x="{(LEFT + axes.right) / 2:.1f}" y="{HEIGHT - 8}">step</text>'
        f'<text {middle} transform="translate(13 {(TOP + base) / 2:.1f}) rotate(-90)">'
        f"{html.escape(unit)}</text>"
    )
    return "".join(parts)


def _extrapolation(records: Sequence[Record]) -> str:
    """Return the newest extrapolation table, or nothing."""
    measured = [(r.step, extrapolation_rows(r.metrics)) for r in records]
    step, rows = next(((s, rows) for s, rows in reversed(measured) if rows), (0, []))
    if not rows:
        return ""
    sources = list(dict.fromkeys(source for row in rows for source in row.by_source))
    heads = ["context", "bits per byte", "difference to 1x", "upper 95% bound", "verdict", *sources]
    body: list[list[str]] = []
    for row in rows:
        cells = [f"{row.multiple}x", _cell(row.bits_per_byte)]
        for value in (row.difference, row.upper):
            cells.append(_cell(None if row.multiple == 1 else value, "{:+.4f}"))
        cells.append("-" if row.success is None else "success" if row.success else "no success")
        cells += [_cell(row.by_source.get(source)) for source in sources]
        body.append(cells)
    table = draw_table(heads, body, 1, "bits per byte by length of context")
    return (
        f"<section><h2>Extrapolation at step {step:,}: the same targets, more context</h2>"
        f"{table}</section>"
    )


def _cell(value: float | None, form: str = "{:.4f}") -> str:
    return "-" if value is None else form.format(value)


def _configuration(settings: str) -> str:
    text = html.escape(settings)
    return f"<section><h2>Configuration</h2><pre>{text}</pre></section>" if text else ""


STYLE = (
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));"
    "gap:30px 36px;margin:26px 0}figure{margin:0;min-width:0}svg{width:100%;height:auto}"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--axis)}.lead{stroke:var(--axis);fill:none}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round;stroke:var(--c)}"
    ".mark{fill:var(--c);stroke:var(--bg);stroke-width:2}.dot{fill:var(--c)}"
    "text{font-size:12px;fill:var(--muted)}.name{fill:var(--ink)}"
    ".tick{font-variant-numeric:tabular-nums}"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the report of the folder named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m spectral_dist.outputs.report", description="Draw report.html of a run."
    )
    parser.add_argument("folder", type=Path, help="the run's folder, which holds metrics.jsonl")
    folder = parser.parse_args(arguments).folder
    try:
        path = write_report(folder)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
