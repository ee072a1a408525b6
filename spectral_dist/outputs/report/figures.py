"""The figures of both pages: a title, a legend, and a chart over each axis.

Read `figure` first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spectral_dist.outputs.report.charts import Mark, Series, draw_chart
from spectral_dist.training.metrics import Record

# What curves are drawn over: its name on the page, and the metric; that of the step is none.
AXES: tuple[tuple[str, str], ...] = (
    ("step", ""),
    ("tokens", "progress/tokens"),
    ("hours of training", "progress/train_hours"),
    ("model FLOPs", "progress/flops"),
)
Points = list[tuple[Record, float]]


@dataclass(frozen=True)
class Line:
    """One line of a figure: its name, its records with their values, and its colour's place."""

    name: str
    points: Points
    place: int | None = None


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
      title: the heading above the chart.
      legend: CSS class and name of each line; empty for a single line.
      charts: the chart as SVG, over each axis.
      not_finite: how many points are NaN or infinite, as text; empty for none.
    """

    title: str
    legend: list[tuple[str, str]]
    charts: list[Markup]
    not_finite: str


def points_of(records: Sequence[Record], metric: str) -> Points:
    """Return the records that have a metric, sorted by step, with its value."""
    # Sorted, because a file joined from several runs by hand may go back in steps.
    found = [(r, r.metrics[metric]) for r in records if metric in r.metrics]
    return sorted(found, key=lambda point: point[0].step)


def axes_of(records: Sequence[Record]) -> list[str]:
    """Return the names of the axes that the records have: a run of an earlier version has one."""
    metrics = {name for record in records for name in record.metrics}
    return [name for name, metric in AXES if not metric or metric in metrics]


def figure(
    title: str,
    unit: str,
    lines: Sequence[Line],
    axes: Sequence[str] = ("step",),
    *,
    legend: bool = False,
    from_zero: bool = False,
    marks: Callable[[str], Sequence[Mark]] = lambda axis: (),
) -> Figure:
    """Return one figure.

    Args:
      title: of the figure.
      unit: of its values.
      lines: what is drawn.
      axes: names in `AXES`, each of which gets a chart.
      legend: whether the lines are named.
      from_zero: whether the y axis starts at zero.
      marks: returns what is marked along an axis.
    """
    # Said under the chart: a gap in a line is easily missed.
    bad = sum(not math.isfinite(value) for line in lines for _, value in line.points)
    several = legend and len(lines) > 1
    charts = []
    for name, metric in AXES:
        if name in axes:
            drawn = [_over(line, metric) for line in lines]
            charts.append(
                draw_chart(
                    title,
                    unit,
                    drawn,
                    named=several,
                    from_zero=from_zero,
                    across=name,
                    marks=marks(name),
                )
            )
    keys = [(Series("", (), line.place).colour(i), line.name) for i, line in enumerate(lines)]
    return Figure(title, keys if several else [], charts, f"{bad:,}" if bad else "")


def place_of(records: Sequence[Record], axis: str) -> Callable[[int], float | None]:
    """Return a function: a step -> its place along an axis, by the nearest record up to it."""
    metric = dict(AXES)[axis]
    known = sorted((r.step, r.metrics[metric]) for r in records if metric in r.metrics)

    def place(step: int) -> float | None:
        if not metric:
            return float(step)
        return max((at for s, at in known if s <= step), default=0.0)

    return place


def _over(line: Line, metric: str) -> Series:
    """Return a line over one axis; records that do not have it are left out."""
    points = [
        (r.metrics[metric] if metric else float(r.step), value)
        for r, value in line.points
        if not metric or metric in r.metrics
    ]
    return Series(line.name, points, line.place)
