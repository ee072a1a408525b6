"""metrics.jsonl: the metrics of a run, one JSON object per line.

Owns the file: its lines, what a resumed run drops from it, and what happens if the disk is full
(training goes on). Must not know what the metrics mean. Read `MetricsFile`, which writes, then
`read_metrics`.
"""

import json
import math
import os
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from spectral_dist.atomic_file import write_bytes
from spectral_dist.outputs import warn_on_stderr
from spectral_dist.training.metrics import Record


class MetricsFile:
    """Appends records to a JSON-lines file; an `Output`.

    A run that is killed loses at most the line that it was writing. A write that fails (a full
    disk, a lost mount) is reported once, and training goes on; the next record is tried again.
    """

    def __init__(
        self,
        path: Path,
        resume_step: int = 0,
        *,
        warn: Callable[[str], None] = warn_on_stderr,
        on_loss: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file, dropping the records that a resumed run will write again.

        Args:
          path: metrics.jsonl, in an existing folder.
          resume_step: completed steps of the restored state; 0 begins a new file.
          warn: called with one line at the first write that fails.
          on_loss: called when the file was deleted, once its folder is there again; it may raise
            OSError or ValueError.
          clock: returns unix seconds.
        """
        self._path, self._on_loss = path, on_loss
        self._warn = warn
        self._clock = clock
        self._warned = False
        self._torn = False
        self._file: FileIO | None = None
        try:
            if path.exists():
                _drop_after(path, resume_step)
            self._open()
        except OSError as error:
            self._failed(error)

    def write(self, record: Record) -> None:
        """Append one record; an error of the disk is a warning."""
        values: dict[str, Any] = {"step": record.step, "time": round(self._clock(), 3)}
        values |= {name: _strict(value) for name, value in record.metrics.items()}
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        try:
            file = self._open()  # tries again after a failure
            # A line that a full disk cut short must not run into this one.
            line = b"\n" + line if self._torn else line
            # One system call for the line: readers that follow the file see whole lines.
            written = file.write(line) or 0
            self._torn = 0 < written < len(line) or (self._torn and not written)
            if written != len(line):
                raise OSError("the line was written in part (is the disk full?)")
        except OSError as error:
            self._failed(error)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self._failed(error)

    def _open(self) -> FileIO:
        if self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0:
            self._warn(f"{self._path} was deleted; what it held is lost, and a new one is begun")
            self._file.close()
            self._file = None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._restore()
        # Unbuffered: a buffer would write a failed line again later, after its successors.
        if self._file is None:
            self._file = FileIO(self._path, "a")
        return self._file

    def _restore(self) -> None:
        try:
            self._on_loss()
        except (OSError, ValueError) as error:
            self._warn(f"{self._path.parent}: not all of it could be written again: {error}")

    def _failed(self, error: OSError) -> None:
        if not self._warned:
            reason = error.strerror or str(error)
            # Once: a full disk would otherwise give a warning for every record.
            self._warn(f"metrics are not written to {self._path}: {reason}; training goes on")
        self._warned = True


def _strict(value: float) -> float | None:
    """Return the value for strict JSON, which has no NaN and no infinity: those become null."""
    return float(value) if math.isfinite(value) else None


def _drop_after(path: Path, resume_step: int) -> None:
    """Rewrite the file without the records after `resume_step` and without damaged lines."""
    # The run repeats the steps after its last checkpoint: each must stand in the file once.
    kept = bytearray()
    content = path.read_bytes()
    for line in content.splitlines():  # bytes: only \n and \r end a line, not U+2028 in a name
        values = _parse(line)
        if values is not None and values["step"] <= resume_step and resume_step > 0:
            kept += line + b"\n"
    if kept == content:
        return
    write_bytes(path, kept)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of one line, or None if the line is damaged or has no step."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    # `isinstance` would take `true` for an integer.
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    return values


def read_metrics(path: Path) -> list[Record]:
    """Read the records of a metrics.jsonl, in the order of the file.

    A null (a value that was not finite) becomes NaN; damaged lines are skipped.

    Raises:
      ValueError: if the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"metrics file {str(path)!r}: cannot be read: {error.strerror}") from error
    records = (parse_record(line) for line in content.splitlines())
    return [record for record in records if record is not None]


def last_value(path: Path, name: str) -> float:
    """Return the last value of a metric in a metrics.jsonl; 0 where there is none."""
    try:
        records = read_metrics(path)
    except ValueError:
        return 0.0
    return next((r.metrics[name] for r in reversed(records) if name in r.metrics), 0.0)


def parse_record(line: bytes) -> Record | None:
    """Return the record of one line, or None if the line is damaged; a null becomes NaN."""
    values = _parse(line)
    if values is None:
        return None
    step = values.pop("step")
    values.pop("time", None)  # of the write; no metric
    metrics = {
        name: math.nan if value is None else float(value)
        for name, value in values.items()
        if value is None or isinstance(value, int | float)
    }
    return Record(step=step, metrics=metrics)
