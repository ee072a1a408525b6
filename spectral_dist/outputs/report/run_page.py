"""report.html: one page about a run, drawn from the files of its folder.

Owns the contents of the page; the layout is in templates/run.html.jinja. Must not know the training
loop: the run may be finished, stopped, still training, or copied from elsewhere. Read
`write_report` first.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from spectral_dist.atomic_file import write_text
from spectral_dist.command_line import FAULT
from spectral_dist.data.phases import stretches
from spectral_dist.outputs.report.charts import Mark, Series, draw_chart
from spectral_dist.outputs.report.facts import Facts
from spectral_dist.outputs.report.figures import (
    Figure,
    Line,
    axes_of,
    figure,
    place_of,
    points_of,
)
from spectral_dist.outputs.report.render import SHARED, Row, Table, render
from spectral_dist.training.metrics import (
    ExtrapolationRow,
    Record,
    dataset_bits,
    extrapolation_rows,
)

# The figures at the top of the page: metric, label, format.
_HEADLINE = (
    ("train/bits_per_byte", "training, bits per byte", "{:.4f}"),
    ("val/bits_per_byte", "held-out bits per byte", "{:.4f}"),
    ("perf/tokens_per_second", "tokens per second", "{:,.0f}"),
    ("train/skipped_steps", "skipped steps", "{:.0f}"),
)
# The charts of the host and of the optimizer: title, unit, metric, factor, whether from zero.
_OTHERS = (
    ("Gradient norm", "norm before clipping", "train/grad_norm", 1.0, True),
    ("Learning rate", "learning rate", "optimizer/learning_rate", 1.0, True),
    ("Throughput", "tokens per second", "perf/tokens_per_second", 1.0, True),
    ("Model FLOPs utilisation", "% of the peak", "perf/mfu", 100.0, True),
    ("Memory", "GiB, the peak of a device", "perf/memory_bytes", 2.0**-30, True),
    ("Wait for data", "ms in a step", "perf/data_wait_seconds", 1e3, True),
)


def write_report(folder: Path) -> Path:
    """Draw the report of a run folder; return its path, folder/report.html.

    Raises:
      ValueError: if the folder has no readable metrics.jsonl.
      OSError: if the page cannot be written.
    """
    facts = Facts.read(folder)
    path = folder / "report.html"
    write_text(path, draw_page(facts))
    return path


def draw_page(facts: Facts) -> str:
    """Return the HTML page: headline figures, charts, tables, samples, settings."""
    records = facts.records
    axes = axes_of(records)
    marks = _marks(facts)
    tables = (
        ("The run", facts.overview()),
        ("Starts", facts.starts_table()),
        ("Settings that are not the defaults", facts.differing()),
    )
    return render(
        SHARED,
        "run.html.jinja",
        title=facts.name,
        steps=f"{facts.step:,}",
        state=facts.state,
        headline=_headline(facts),
        axes=axes,
        figures=[*_figures(records, axes, marks), *_curriculum(facts)],
        marks=", ".join(dict.fromkeys(kind for _, kind, _ in marks)),
        extrapolation=_extrapolation(records),
        tables=[(heading, table) for heading, table in tables if table is not None],
        samples=facts.samples(),
        settings=facts.settings_text,
    )


def _curriculum(facts: Facts) -> list[Figure]:
    """Return the figure of the mixture over all steps of the run, those to come included."""
    if facts.config is None or not facts.config.phases:
        return []
    parts = stretches(facts.config)
    names = [str(dataset.name) for dataset in facts.config.datasets]
    lines = [
        Series(
            name,
            [
                (at, part.weights[i])
                for part in parts
                for at in (part.first, part.first + part.steps)
            ],
        )
        for i, name in enumerate(names)
    ]
    chart = draw_chart(
        "Mixture",
        "share",
        lines,
        named=True,
        from_zero=True,
        marks=[Mark(facts.step, "now", f"step {facts.step:,}, the last that is known")],
    )
    legend = [(line.colour(i), line.name) for i, line in enumerate(lines)]
    return [Figure("Mixture of the curriculum", legend, [chart], "")]


def _figures(
    records: Sequence[Record], axes: Sequence[str], marks: list[tuple[int, str, str]]
) -> list[Figure]:
    """Return every figure that there are values for, the loss at least."""
    # From all records: a run that was resumed may have got another dataset.
    datasets = list(dict.fromkeys(s for record in records for s in dataset_bits(record.metrics)))
    unit = "bits per byte"
    loss = [
        Line("training", points_of(records, "train/bits_per_byte")),
        Line("held out", points_of(records, "val/bits_per_byte")),
    ]
    held_out = [Line(each, points_of(records, f"val/{each}/{_BITS}")) for each in datasets]
    at = _marks_along(records, marks)
    found = [
        figure("Loss", unit, loss, axes, legend=True, marks=at),
        figure("Held-out text, by dataset", unit, held_out, axes, legend=True),
    ]
    lengths = list(
        dict.fromkeys(row.multiple for r in records for row in extrapolation_rows(r.metrics))
    )
    more = [
        Line(f"{k}x context", points_of(records, f"extrapolation/{k}x/difference"))
        for k in sorted(lengths)
        if k > 1
    ]
    if more:
        found.append(figure("Extrapolation", "bits per byte, difference to 1x", more, legend=True))
    hosts = _hosts(records)
    if hosts:
        found.append(figure("Arithmetic of each host alone", "ms", hosts, legend=True))
    for title, label, metric, factor, from_zero in _OTHERS:
        points = [(r, value * factor) for r, value in points_of(records, metric)]
        if points:
            line = Line(metric.partition("/")[2], points)
            found.append(figure(title, label, [line], from_zero=from_zero))
    return found


_BITS = "bits_per_byte"


def _hosts(records: Sequence[Record]) -> list[Line]:
    """Return a line for each process of the run, by its own probe."""
    names = dict.fromkeys(name for record in records for name in record.metrics)
    ours = [n for n in names if n.startswith("hosts/") and n.endswith("/probe_seconds")]
    return [
        Line(f"process {name.split('/')[1]}", [(r, 1e3 * v) for r, v in points_of(records, name)])
        for name in ours
    ]


def _marks(facts: Facts) -> list[tuple[int, str, str]]:
    """Return what happened at which step: (step, kind, text), of starts, faults, saves, skips."""
    found = []
    for start in facts.starts:
        found.append((start["first_step"], "start", f"started from step {start['first_step']:,}"))
        end = start.get("end")
        if end is not None and end["code"] == FAULT:
            found.append((end["step"], "fault", str(end.get("message", "a fault"))))
    for kind, metric, text in (
        ("save", "progress/saved_step", "saved step {:,.0f}"),
        ("skip", "train/skipped_steps", "{:,.0f} steps skipped so far"),
    ):
        before = 0.0
        for record, value in points_of(facts.records, metric):
            if value != before:
                at = int(value) if kind == "save" else record.step
                found.append((at, kind, text.format(value)))
            before = value
    return found


def _marks_along(
    records: Sequence[Record], marks: list[tuple[int, str, str]]
) -> Callable[[str], list[Mark]]:
    def along(axis: str) -> list[Mark]:
        place = place_of(records, axis)
        placed = [(place(step), kind, text) for step, kind, text in marks]
        return [Mark(x, kind, text) for x, kind, text in placed if x is not None]

    return along


def _headline(facts: Facts) -> list[tuple[str, str]]:
    """Return the last value and the label of each figure at the top of the page."""
    last = [(facts.last(name), label, form) for name, label, form in _HEADLINE]
    return [(form.format(value), label) for value, label, form in last if value is not None]


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
    chart = _by_length(rows, datasets) if len(rows) > 1 else ""
    return {"step": f"{step:,}", "table": table, "chart": chart}


def _by_length(rows: Sequence[ExtrapolationRow], datasets: Sequence[str]) -> Markup:
    """Return the chart of the difference to the training length, by length of context."""
    mean = [(float(row.multiple), row.bits_per_byte) for row in rows]
    of_each = {
        each: [(float(row.multiple), row.by_dataset.get(each)) for row in rows] for each in datasets
    }
    lines = []
    for name, points in {"mean": mean, **of_each}.items():
        if (first := points[0][1]) is None:
            continue
        lines.append(Series(name, [(x, math.nan if y is None else y - first) for x, y in points]))
    title = "Difference to the shortest context"
    return draw_chart(title, "bits per byte", lines, named=True, across="training lengths")


def _cell(value: float | None, form: str = "{:.4f}") -> str:
    return "-" if value is None else form.format(value)
