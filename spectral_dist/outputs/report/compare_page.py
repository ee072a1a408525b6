"""compare.html: several runs over each other, what they came to, and which settings differ.

Read `write_comparison`.
"""

from collections.abc import Sequence
from pathlib import Path

from spectral_dist.atomic_file import write_text
from spectral_dist.outputs.report.facts import Facts
from spectral_dist.outputs.report.figures import Line, axes_of, figure, points_of
from spectral_dist.outputs.report.render import SHARED, Row, Table, render

_OURS = "<!-- spectral_dist comparison -->"  # a page that may be replaced
# title, unit, metric
_CURVES = (
    ("Held-out text", "bits per byte", "val/bits_per_byte"),
    ("Training", "bits per byte", "train/bits_per_byte"),
    ("Throughput", "tokens per second", "perf/tokens_per_second"),
    ("Gradient norm", "norm before clipping", "train/grad_norm"),
)


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Draw a page about several runs; return its path.

    Args:
      folders: of the runs, at least two.
      out: the page; a file that is no such page is not replaced.

    Raises:
      ValueError: if a run has no metrics, or something is in the way, or cannot be written.
    """
    runs = [Facts.read(folder) for folder in folders]
    try:
        if out.exists() and _OURS not in out.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"out={str(out)!r}: is in the way and is not replaced; name another")
        write_text(out, draw_comparison(runs))
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: cannot be written: {error.strerror}") from error
    return out


def draw_comparison(runs: Sequence[Facts]) -> str:
    """Return the HTML page."""
    names = _names(runs)
    axes = axes_of([record for run in runs for record in run.records])
    figures = []
    for title, unit, metric in _CURVES:
        lines = [
            Line(name, points_of(run.records, metric), place)
            for place, (name, run) in enumerate(zip(names, runs, strict=True))
        ]
        if any(line.points for line in lines):
            figures.append(figure(title, unit, lines, axes, legend=True))
    tables = [("Figures", _figures_table(names, runs))]
    if (settings := _settings_table(names, runs)) is not None:
        tables.append(("Settings that differ", settings))
    page = render(
        SHARED,
        "compare.html.jinja",
        title=" / ".join(names),
        axes=axes,
        figures=figures,
        tables=tables,
    )
    return f"{page}{_OURS}\n"


def _names(runs: Sequence[Facts]) -> list[str]:
    """Return the runs' names; with their folder where two have one name."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.folder)
        for name, run in zip(names, runs, strict=True)
    ]


def _figures_table(names: Sequence[str], runs: Sequence[Facts]) -> Table:
    """Return what each run has come to."""
    heads = ["run", "steps", "held out, best", "held out, last", "training, last", "tokens"]
    heads += ["FLOPs", "hours", "tokens/s", "end"]
    rows: list[Row] = []
    for name, run in zip(names, runs, strict=True):
        cells = [name, f"{run.step:,}"]
        for value, form in (
            (run.best("val/bits_per_byte"), "{:.4f}"),
            (run.last("val/bits_per_byte"), "{:.4f}"),
            (run.last("train/bits_per_byte"), "{:.4f}"),
            (run.last("progress/tokens"), "{:,.0f}"),
            (run.last("progress/flops"), "{:.3g}"),
            (run.last("progress/train_hours"), "{:,.3g}"),
            (run.last("perf/tokens_per_second"), "{:,.0f}"),
        ):
            cells.append("-" if value is None else form.format(value))
        rows.append([*cells, run.state])
    return Table("figures of each run", heads, rows)


def _settings_table(names: Sequence[str], runs: Sequence[Facts]) -> Table | None:
    """Return the settings in which the runs differ; None if they have none, or differ in none."""
    flat = [run.config.flat() if run.config is not None else {} for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows: list[Row] = []
    for key in keys:
        found = [values.get(key, "-") for values in flat]
        if key not in ("run_name", "derived") and any(value != found[0] for value in found):
            rows.append([key, *(_shown(value) for value in found)])
    heads = ["setting", *names]
    return Table("settings that differ", heads, rows, words=len(heads)) if rows else None


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
