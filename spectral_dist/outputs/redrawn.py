"""The report as an output: redrawn after every evaluation, beside the training.

Read `RedrawnReport`.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from spectral_dist.outputs.report import write_report
from spectral_dist.training.metrics import Record


class RedrawnReport:
    """Draws report.html of a run whenever a record holds an evaluation; an `Output`."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        """Draw nothing yet.

        Args:
          folder: the run folder.
          warn: takes one line, once, if the report cannot be drawn.
        """
        self._folder, self._warn = folder, warn
        self._thread: threading.Thread | None = None
        self._warned = False

    def write(self, record: Record) -> None:
        """Begin to draw, in a thread, if the record holds an evaluation and none is being drawn."""
        drawing = self._thread is not None and self._thread.is_alive()
        if "val/bits_per_byte" in record.metrics and not drawing:
            self._thread = threading.Thread(target=self._draw, name="report", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait for the drawing, and draw once more: a run that was stopped has its last steps."""
        if self._thread is not None:
            self._thread.join()
        if (self._folder / "metrics.jsonl").exists():
            # The last words of a run are said: a folder that fails is among them.
            self._warned = True
            self._draw()

    def _draw(self) -> None:
        try:
            write_report(self._folder)
        except (OSError, ValueError) as error:  # a full disk, for example; training goes on
            if not self._warned:
                self._warn(f"the report could not be drawn: {error}")
            self._warned = True
