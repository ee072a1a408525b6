"""The console: a progress bar on a terminal, plain lines anywhere else.

Owns the form of everything that training prints. Must not know where the figures come from: it sees
only metric names and text. Read `Console` first, then `training_line`.
"""

import atexit
import contextlib
import io
import math
import os
import sys
from collections.abc import Mapping
from typing import TextIO

import rich.box
import rich.console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from spectral_dist.command_line import printable
from spectral_dist.training.metrics import (
    ExtrapolationRow,
    Record,
    dataset_bits,
    extrapolation_rows,
)

# Weight of the newest step time in the moving average behind "left": one slow window, such as the
# one with a save, moves the estimate by less than a third.
SMOOTHING = 0.3


# The rows under a table of datasets: what each is called, and its metric.
MEANS = {
    "mean by weight": "val/bits_per_byte",
    "mean of the texts": "val_of_texts/bits_per_byte",
}
# The figures of a training line, in order: metric, format, factor before printing.
COLUMNS = (
    ("train/loss", "loss {:6.4f}", 1.0),
    ("train/bits_per_byte", "{:6.4f} bits/byte", 1.0),
    ("train/grad_norm", "grad {:7.3g}", 1.0),
    ("optimizer/learning_rate", "lr {:7.1e}", 1.0),
    ("perf/tokens_per_second", "{:>9,.0f} tokens/s", 1.0),
    ("perf/data_wait_seconds", "data wait {:5.1f} ms", 1e3),
    ("perf/mfu", "mfu {:4.1f}%", 1e2),
)


class _Screen(rich.console.Console):
    """A rich console that survives a broken pipe; rich's own ends the program."""

    def on_broken_pipe(self) -> None:
        """Print nothing any more."""
        self.quiet = True
        # Python flushes standard output at its end, and would fail on what is still in the buffer.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


class Console:
    """Prints a run; an `Output`.

    On a terminal, a progress bar at the bottom shows the last figures, and everything else is
    printed above it. In a file or a pipe, each record is one line without control characters. If
    nothing can be printed any more (a closed pipe, a lost terminal), training goes on in silence.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        stream: TextIO | None = None,
        enabled: bool = True,
    ) -> None:
        """Prepare the console; it can print notes before `start`.

        Args:
          total_steps: length of the run, in steps.
          stream: where to print; standard output by default.
          enabled: False prints nothing, as in all processes but the coordinator.
        """
        self._total = total_steps
        self._step_seconds: float | None = None
        self._skipped = 0.0
        self._enabled = enabled
        self._progress: Progress | None = None
        self._task = TaskID(0)
        out = sys.stdout if stream is None else stream  # now, not at import: tests replace it
        self._encoding = getattr(out, "encoding", None) or "utf-8"
        terminal = _is_terminal(out)
        self._rich = _Screen(
            file=out,
            # Said outright: rich would draw a bar into a file where FORCE_COLOR is set.
            force_terminal=terminal,
            color_system="auto" if terminal else None,
            width=None if terminal else 100,
            # The name of a file or a text of the model may hold "[/b]" or ":smile:".
            markup=False,
            highlight=False,
            emoji=False,
        )
        self._terminal = terminal

    def start(self, start_step: int) -> None:
        """Show the progress bar on a terminal; the run has completed `start_step` steps."""
        if self._enabled and self._terminal:
            self._start_bar(start_step)

    def _start_bar(self, start_step: int) -> None:
        progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),  # what the texts leave; nothing on a narrow terminal
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._rich,
            refresh_per_second=4,  # looks alive; each refresh takes time of the host
            expand=True,
        )
        self._task = progress.add_task("", total=self._total, completed=start_step, figures="")
        progress.start()
        self._progress = progress
        # The bar hides the cursor, which must come back however the run ends.
        atexit.register(self.close)

    def write(self, record: Record) -> None:
        """Print one record: its training figures, its evaluation, or both."""
        metrics = record.metrics
        seconds = metrics.get("perf/step_seconds")
        if seconds is not None and math.isfinite(seconds):
            before = seconds if self._step_seconds is None else self._step_seconds
            self._step_seconds = (1 - SMOOTHING) * before + SMOOTHING * seconds
        if any(name.startswith(("train/", "perf/", "optimizer/")) for name in metrics):
            left = self._time_left(record.step)
            if self._progress is None:
                self._print(training_line(record, self._total, left))
            else:
                self._progress.update(
                    self._task, completed=record.step, figures=bar_figures(metrics, left)
                )
                self._warn_skipped(record)
        if any(name.startswith(("val/", "extrapolation/")) for name in metrics):
            self._print(evaluation_line(record, self._total), style="bold")

    def _warn_skipped(self, record: Record) -> None:
        """Warn of skipped steps above the progress bar, which has no room for them."""
        skipped = record.metrics.get("train/skipped_steps", 0.0)  # a total, so warn only on growth
        if skipped > self._skipped:
            self.warn(
                f"{skipped:.0f} steps skipped so far because loss or gradient was not finite (at"
                f" step {record.step})"
            )
        self._skipped = max(skipped, self._skipped)

    def _time_left(self, step: int) -> str:
        """Return the time left as text, estimated from the recent steps."""
        if self._step_seconds is None:
            return "-"
        return duration(max(self._total - step, 0) * self._step_seconds)

    def note(self, text: str) -> None:
        """Print one line."""
        self._print(printable(text))

    def warn(self, text: str) -> None:
        """Print one warning."""
        self._print(f"warning: {printable(text)}", style="yellow")

    def show_tables(self, metrics: Mapping[str, float], title: str = "Validation") -> None:
        """Print two tables, if `metrics` has them: bits per byte by dataset, and extrapolation.

        Args:
          metrics: of an evaluation.
          title: of the first table.
        """
        datasets, rows = dataset_bits(metrics), extrapolation_rows(metrics)
        if datasets:
            self._print_table(_dataset_table(title, datasets, metrics))
        if rows:
            self._print_table(_extrapolation_table(rows))

    def show_sample(self, prompt: str | bytes, text: str | bytes) -> None:
        """Print generated text after its prompt; invalid UTF-8 is replaced."""
        self._print("")
        self._print("Sample (the prompt, then what the model wrote):", style="bold")
        self._print(_printable(prompt), style="dim", end="")
        self._print(_printable(text))

    def close(self) -> None:
        """Stop the progress bar, leaving its last state; printing still works afterwards."""
        progress, self._progress = self._progress, None
        if progress is not None:
            atexit.unregister(self.close)
            try:
                progress.stop()
            except (OSError, ValueError):
                self._enabled = False

    def _print(self, text: str, style: str | None = None, end: str = "\n") -> None:
        if not self._enabled:
            return
        # In a narrow encoding such as ASCII, a missing letter becomes "?" instead of an error.
        safe = text.encode(self._encoding, "replace").decode(self._encoding)
        try:
            # Not wrapped: one record stays one line, for grep.
            self._rich.print(Text(safe, style=style or ""), end=end, soft_wrap=True)
        except (OSError, ValueError):  # a closed pipe or file; ValueError is a closed TextIO's
            self._enabled = False

    def _print_table(self, table: Table) -> None:
        # Drawn to text first, so that `_print` handles encodings and closed pipes for it too.
        width = max(self._rich.width, 60)  # narrower, the numbers would be cut
        drawn = rich.console.Console(
            file=io.StringIO(), width=width, markup=False, emoji=False, color_system=None
        )
        with drawn.capture() as capture:
            drawn.print(table)
        lines = [line.rstrip() for line in capture.get().splitlines()]
        self._print("\n" + "\n".join(lines))


def _is_terminal(stream: TextIO) -> bool:
    """Return whether the stream is a terminal on which a progress bar can be redrawn."""
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty()) and os.environ.get("TERM") not in ("dumb", "unknown")


def training_line(record: Record, total: int, left: str) -> str:
    """Return the training metrics of a record as one line, with columns aligned over the run.

    Args:
      record: with any metrics; a missing one is left out of the line.
      total: length of the run, in steps.
      left: time left, as text.
    """
    metrics = record.metrics
    parts = [_step(record.step, total)]
    for name, form, scale in COLUMNS:
        if name in metrics:
            parts.append(_formatted(form, metrics[name] * scale))
    parts += [f"{name[6:]} {_formatted('{:.4g}', metrics[name])}" for name in _others(metrics)]
    parts.append(f"left {left}")
    parts += _skipped(metrics)
    return "  ".join(parts)


def _others(metrics: Mapping[str, float]) -> list[str]:
    """Return the metrics train/<name> without a column of their own; train/a/b is not printed."""
    # A figure of the user's own is printed by this rule, with no change here. The skipped steps
    # stand at the end of the line.
    known = {name for name, _, _ in COLUMNS} | {"train/skipped_steps"}
    return [n for n in metrics if n.startswith("train/") and n.count("/") == 1 and n not in known]


def bar_figures(metrics: Mapping[str, float], left: str) -> str:
    """Return the text beside the progress bar: loss, bits per byte, tokens/s, time left."""
    parts: list[str] = []
    for name, form in (
        ("train/loss", "loss {:.3f}"),
        ("train/bits_per_byte", "{:.3f} bits/byte"),
        ("perf/tokens_per_second", "{:,.0f} tokens/s"),
    ):
        if name in metrics:
            parts.append(_formatted(form, metrics[name]))
    return "  ".join([*parts, f"left {left}"])


def evaluation_line(record: Record, total: int) -> str:
    """Return the evaluation of a record as one line: by dataset, then by context length."""
    metrics = record.metrics
    parts = [_step(record.step, total)]
    if "val/bits_per_byte" in metrics:
        parts.append(_formatted("validation {:.4f} bits/byte", metrics["val/bits_per_byte"]))
    parts += [f"{_name(n)} {_number(v)}" for n, v in dataset_bits(metrics).items()]
    for row in extrapolation_rows(metrics):
        if row.difference is not None and row.multiple != 1:  # 1x is what others differ from
            verdict = f" {_verdict(row)}" if row.success is not None else ""
            parts.append(f"{row.multiple}x {_formatted('{:+.4f}', row.difference)}{verdict}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration in seconds as m:ss, h:mm:ss or 2d hh:mm:ss."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _step(step: int, total: int) -> str:
    return f"step {step:>{len(str(total))}}/{total}"  # padded, so that all lines align


def _skipped(metrics: Mapping[str, float]) -> list[str]:
    skipped = metrics.get("train/skipped_steps", 0.0)
    return [f"skipped {skipped:.0f}"] if skipped > 0 else []


def _formatted(form: str, value: float) -> str:
    """Format one value; nan and inf keep the width of the column."""
    if math.isfinite(value):
        return form.format(value)
    start, end = form.index("{"), form.index("}") + 1
    width = len(form[start:end].format(0.0))  # "{:6.4f}" is six wide, so "nan" gets six too
    word = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return f"{form[:start]}{word:>{width}}{form[end:]}"


def _number(value: float | None) -> str:
    return "-" if value is None else _formatted("{:.4f}", value)


def _verdict(row: ExtrapolationRow) -> str:
    if row.success is None:
        return "-"
    return "success" if row.success else "no success"


def _name(name: str) -> str:
    """Return a dataset's name as one line that a terminal can show."""
    return " ".join(_printable(name).split())


def _printable(text: str | bytes) -> str:
    """Return what a model wrote without control characters; invalid UTF-8 is replaced."""
    return printable(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def _dataset_table(
    title: str, datasets: Mapping[str, float], metrics: Mapping[str, float]
) -> Table:
    table = Table(title=title, title_justify="left", box=rich.box.ASCII2)
    table.add_column("dataset", overflow="fold")
    table.add_column("bits/byte", justify="right")
    for name, value in datasets.items():
        table.add_row(Text(_name(name)), _number(value))
    for name, metric in MEANS.items():
        if metric in metrics:
            table.add_section()
            table.add_row(name, _number(metrics[metric]))
    return table


def _extrapolation_table(rows: list[ExtrapolationRow]) -> Table:
    table = Table(
        title="Extrapolation: the same targets, more context",
        title_justify="left",
        box=rich.box.ASCII2,
    )
    for heading in ("context", "bits/byte", "difference to 1x", "upper 95% bound"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    datasets = list(dict.fromkeys(name for row in rows for name in row.by_dataset))
    for name in datasets if len(datasets) > 1 else []:  # a single one equals the total
        table.add_column(_printable(name), justify="right")
    for row in rows:
        signed = [
            "-" if value is None or row.multiple == 1 else _formatted("{:+.4f}", value)
            for value in (row.difference, row.upper)
        ]
        cells = [f"{row.multiple}x", _number(row.bits_per_byte), *signed, _verdict(row)]
        by_dataset = [_number(row.by_dataset.get(name)) for name in datasets]
        table.add_row(*cells, *(by_dataset if len(datasets) > 1 else []))
    return table
