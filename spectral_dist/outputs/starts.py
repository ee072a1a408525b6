"""RUN/starts.jsonl: the starts of a run and how each ended; restarts without progress are stopped.

A line for each start (time, first step, versions, devices, commit, command) and one for its end
(time, step, exit code). A start that has no end was killed. Read `started`.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spectral_dist.command_line import FAULT, error_code, one_line
from spectral_dist.settings import Config

STARTS = "starts.jsonl"


@contextlib.contextmanager
def started(
    config: Config,
    folder: Path,
    first: int,
    facts: Mapping[str, Any],
    step: Callable[[], int],
    warn: Callable[[str], None],
) -> Iterator[None]:
    """Record a start for the length of the block, and how the block ends.

    Args:
      config: the settings.
      folder: the run folder.
      first: completed steps at this start.
      facts: of this start: its `environment`, as in environment.json, and sizes of the run.
      step: returns the completed steps.
      warn: takes one line if nothing can be written.

    Raises:
      ValueError: if `max_failed_starts` in a row have failed from this very step. The next start
        is then tried again: somebody has looked.
    """
    path, limit = folder / STARTS, config.run.max_failed_starts
    failed = failed_in_a_row(read_starts(path), first)
    log = _Log(path, warn)
    log.write({"first_step": first, **facts})
    try:
        if 0 < limit <= failed:
            raise ValueError(
                f"max_failed_starts={limit}: the last {failed} starts of run_name="
                f"{config.run.run_name!r} have all failed between step {first} and the next"
                f" checkpoint, see faults.log and the log of the job in {folder}; this start ends"
                " here so that no scheduler goes on for ever, and the next one is tried again"
            )
        yield
    except BaseException as error:
        end = {"step": step(), "code": error_code(error), "message": one_line(error)}
        log.write(end, quiet=True)
        raise
    else:
        log.write({"step": step(), "code": 0}, quiet=True)


def failed_in_a_row(starts: list[dict[str, Any]], first: int) -> int:
    """Return how many of the last starts failed after beginning at the same step.

    Args:
      starts: of `read_starts`.
      first: the step that they began at.
    """
    count = 0
    for start in reversed(starts):
        # Without an end it was killed, or a lost process ended it.
        if start["first_step"] != first or start.get("end", {}).get("code", FAULT) != FAULT:
            break
        count += 1
    return count


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the starts of a run in order, each with its `end` if it has one; [] without a file."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # a line that a kill cut short
                record = json.loads(line)
                if "first_step" in record:
                    found.append(record)
                elif found:
                    found[-1]["end"] = record
    return found


class _Log:
    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn

    def write(self, values: Mapping[str, Any], quiet: bool = False) -> None:
        now = math.floor(time.time())
        line = json.dumps({"time": now, **values}) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            if quiet:  # the last words of a run are said: a folder that fails is among them
                return
            self._warn(f"{self._path} cannot be written: {error.strerror}; training goes on")
