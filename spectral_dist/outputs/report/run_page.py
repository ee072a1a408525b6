"""report.html: one page about a run, drawn from its metrics.jsonl and config.yaml.

Owns the contents of the page; the layout is in templates/run.html.jinja. Must not know the training
loop: the run may be finished, still training, or copied from elsewhere. Read `write_report` first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from spectral_dist.atomic_file import write_text
from spectral_dist.outputs.jsonl import read_metrics
from spectral_dist.outputs.report.charts import Series, draw_chart
from spectral_dist.outputs.report.render import SHARED, Row, Table, render
from spectral_dist.outputs.report.scales import colour_of
from spectral_dist.training.metrics import Record, dataset_bits, extrapolation_rows

# The figures at the top of the page: metric, label, format.
_HEADLINE = (
    ("train/loss", "training loss, nats per token", "{:.4f}"),
    ("val/bits_per_byte", "held-out bits per byte", "{:.4f}"),
    ("perf/tokens_per_second", "tokens per second", "{:,.0f}"),
    ("train/skipped_steps", "skipped steps", "{:.0f}"),
)


@dataclass(frozen=True)
class Figure:
    """One chart with its title and legend.

    Attributes:
      title: the heading above the chart.
      legend: CSS class and name of each line; empty for a single line.
      chart: the chart as SVG.
      not_finite: how many points are NaN or infinite, as text; empty for none.
    """

    title: str
    legend: list[tuple[str, str]]
    chart: Markup
    not_finite: str


def write_report(folder: Path) -> Path:
    """Draw the report of a run folder; return its path, folder/report.html.

    Raises:
      ValueError: if the folder has no readable metrics.jsonl.
      OSError: if the page cannot be written.
    """
    records = read_metrics(folder / "metrics.jsonl")
    # The page is worth having without its settings: somebody may have copied the metrics alone.
    settings = folder / "config.yaml"
    text = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    path = folder / "report.html"
    write_text(path, draw_page(folder.resolve().name, records, text))
    return path


def draw_page(name: str, records: Sequence[Record], settings: str) -> str:
    """Return the HTML page: headline figures, charts, extrapolation table, settings."""
    # From all records: a run that was resumed may have got another dataset.
    datasets = list(dict.fromkeys(s for record in records for s in dataset_bits(record.metrics)))
    held_out = [Series(each, _points(records, f"val/{each}/bits_per_byte")) for each in datasets]
    loss, rate, speed = (
        [Series(metric.partition("/")[2], _points(records, metric))]
        for metric in ("train/loss", "optimizer/learning_rate", "perf/tokens_per_second")
    )
    figures = [
        _figure("Training loss", "nats per token", loss),
        _figure("Held-out text, by dataset", "bits per byte", held_out, named=True),
        _figure("Learning rate", "learning rate", rate, from_zero=True),
        _figure("Throughput", "tokens per second", speed, from_zero=True),
    ]
    return render(
        SHARED,
        "run.html.jinja",
        title=name,
        steps=f"{max((record.step for record in records), default=0):,}",
        headline=_headline(records),
        figures=figures,
        extrapolation=_extrapolation(records),
        settings=settings,
    )


def _points(records: Sequence[Record], name: str) -> list[tuple[int, float]]:
    """Return step and value of a metric from each record that has it, sorted by step."""
    # Sorted, because a file joined from several runs by hand may go back in steps.
    found = [(r.step, r.metrics[name]) for r in records if name in r.metrics]
    return sorted(found, key=lambda point: point[0])


def _headline(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return the last value and the label of each figure at the top of the page."""
    last = [(_points(records, name)[-1:], label, form) for name, label, form in _HEADLINE]
    return [(form.format(points[0][1]), label) for points, label, form in last if points]


def _figure(
    title: str, unit: str, lines: Sequence[Series], named: bool = False, from_zero: bool = False
) -> Figure:
    """Return one chart with its title and, for several named lines, a legend."""
    # Said under the chart: a gap in a line is easily missed.
    bad = sum(not math.isfinite(value) for line in lines for _, value in line.points)
    several = named and len(lines) > 1
    return Figure(
        title=title,
        legend=[(colour_of(i), line.name) for i, line in enumerate(lines) if several],
        chart=draw_chart(title, unit, lines, named=named, from_zero=from_zero),
        not_finite=f"{bad:,}" if bad else "",
    )


def _extrapolation(records: Sequence[Record]) -> dict[str, Any] | None:
    """Return the newest extrapolation table and its step; None if none was measured."""
    measured = [(r.step, extrapolation_rows(r.metrics)) for r in records]
    step, rows = next(((s, rows) for s, rows in reversed(measured) if rows), (0, []))
    if not rows:
        return None
    datasets = list(dict.fromkeys(each for row in rows for each in row.by_dataset))
    heads = ["context", "bits per byte", "difference to 1x", "upper 95% bound", "verdict"]
    body: list[Row] = []
    for row in rows:
        cells = [f"{row.multiple}x", _cell(row.bits_per_byte)]
        for value in (row.difference, row.upper):
            # At 1x the difference to 1x is no measurement.
            cells.append(_cell(None if row.multiple == 1 else value, "{:+.4f}"))
        cells.append("-" if row.success is None else "success" if row.success else "no success")
        body.append([*cells, *(_cell(row.by_dataset.get(each)) for each in datasets)])
    table = Table("bits per byte by length of context", [*heads, *datasets], body)
    return {"step": f"{step:,}", "table": table}


def _cell(value: float | None, form: str = "{:.4f}") -> str:
    return "-" if value is None else form.format(value)
