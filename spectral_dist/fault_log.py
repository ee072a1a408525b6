"""RUN/faults.log: what nobody foresaw, and where every thread stood when a run hung.

A scheduler starts a run again before anybody has read the console. Read `FaultLog`.
"""

import faulthandler
import threading
from datetime import UTC, datetime
from pathlib import Path

FAULTS = "faults.log"
_PATIENCE_SECONDS = 5.0  # the disk may be what hangs


class FaultLog:
    """The part of one process in the log of a run folder."""

    def __init__(self, folder: Path, process: int) -> None:
        """Name the file; nothing is written.

        Args:
          folder: the run folder.
          process: index of this process.
        """
        self.path, self._process = folder / FAULTS, process

    def write(self, text: str) -> None:
        """Add a text under the time and this process's index; raises OSError if that fails."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{self._title()}\n{text}")

    def write_stacks(self) -> None:
        """Add the Python stacks of all threads; give up where the disk does not answer."""
        writing = threading.Thread(target=self._write_stacks, name="stacks", daemon=True)
        writing.start()
        writing.join(_PATIENCE_SECONDS)

    def _write_stacks(self) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{self._title()}: no progress; the stacks of all threads\n")
                file.flush()
                faulthandler.dump_traceback(file)
        except OSError:  # a full disk, or no folder yet: the line on the console stands
            return

    def _title(self) -> str:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return f"---- {now}, process {self._process}"
