"""Waiting that goes by progress: a slow machine is not a hung program.

A wait ends when its condition holds, and fails when nothing has moved for a long while: the
processes waited for have used almost no processor time and what they said has not grown. Beside
many busy processes a program takes ten times as long and still moves. Read `wait_until`.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

QUIET_SECONDS = 120.0
# Less than this in QUIET_SECONDS is no progress: a hung process still beats once a second.
_WORK_SECONDS = 3.0
# Looking at all processes takes milliseconds.
_LOOK_SECONDS = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Patience:
    """Lasts as long as something moves."""

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        said: Callable[[], object] = lambda: None,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        """Begin to watch.

        Args:
          pids: the processes waited for; their descendants count, too.
          said: what they have said; moves when it changes.
          quiet_seconds: without a move after which patience ends.
        """
        self._pids, self._said, self._quiet = pids, said, quiet_seconds
        self._seen: tuple[object, float] | None = None
        self._moved = self._looked = time.monotonic()

    def left(self) -> bool:
        """Return whether something has moved lately."""
        now = time.monotonic()
        if self._seen is not None and now - self._looked < min(_LOOK_SECONDS, self._quiet):
            return True
        self._looked = now
        said, worked = self._said(), processor_seconds(self._pids())
        enough = _WORK_SECONDS * self._quiet / QUIET_SECONDS
        # What an ended process has used is gone from the sum, which also is a move.
        if self._seen is None or said != self._seen[0] or not 0 <= worked - self._seen[1] < enough:
            self._seen, self._moved = (said, worked), now
        return now - self._moved <= self._quiet


def processor_seconds(pids: Iterable[int]) -> float:
    """Return what processes, their descendants and ended children have used, in seconds."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            words = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parents[int(folder.name)] = int(words[1])
            used[int(folder.name)] = sum(map(int, words[11:15]))
    wanted = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    return sum(used.get(pid, 0) for pid in wanted) / _TICKS


def wait_until(
    condition: Callable[[], object],
    what: object,
    patience: Patience | None = None,
    interval: float = 0.02,
) -> None:
    """Wait for a condition; fail with `what` (called, if it can be) when nothing moves any more.

    Args:
      condition: to hold.
      what: is waited for.
      patience: of those that make it hold; without one, the clock alone counts.
      interval: seconds between two looks.
    """
    patience = patience or Patience(tuple)
    while not condition():
        if not patience.left():
            pytest.fail(f"nothing moves: {what() if callable(what) else what}")
        time.sleep(interval)


def finish(process: "subprocess.Popen[Any]") -> tuple[Any, Any]:
    """Wait for the end of a process as long as it works; return what it wrote to its pipes."""
    patience = Patience(lambda: [process.pid])
    while True:
        try:
            return process.communicate(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if not patience.left():
                process.kill()
                out, err = process.communicate()
                pytest.fail(f"nothing moves: {process.args}\n{out}\n{err}")
