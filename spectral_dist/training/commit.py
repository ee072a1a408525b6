"""The commit of a checkpoint by several processes: all have written their part, or none counts.

Owns the barrier of a save and what the processes agree on. A failure in one process ends the
waiting in all. (Orbax's own barrier would wait twenty minutes for a process whose disk is full, and
the training with it.) Knows nothing of files. Read `Commit.barrier`.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.client import UNREACHABLE, Client
from spectral_dist.training.manifest import Unreadable

_POLL_SECONDS = 0.1
# How long the coordinator waits, after a failed save, for the last writes of the others. It deletes
# the files after that; a write that ends later would leave some behind.
_SETTLE_SECONDS = 10.0
T = TypeVar("T")


class SaveFailed(Exception):
    """A save failed in another process; the text says in which, and why."""


class Commit:
    """The messages between the processes of a run about the save in flight.

    They go through the control service, as all else that processes agree on. (JAX's own store would
    do, but whoever reaches its port can write to it.) A single process sends none.
    """

    # Not by collectives: those belong to the main thread, and on CPU one that shares no data with
    # the step may run between its parts (gloo then ends the process: "collective mismatch").

    def __init__(self, processes: Processes | None = None) -> None:
        """Speak for one of the processes of a run; by default it is alone."""
        self._index, self._count = (processes.index, processes.count) if processes else (0, 1)
        self._control: Client | None = processes.control if processes else None
        self._folder = processes.new_folder() if processes else ""
        self._number = self._round = 0

    def begin(self) -> None:
        """Begin a save: every process calls it, after the last save has ended."""
        self._number += 1
        if self._control is not None and self._index == 0 and self._number > 2:
            # All processes have begun save n - 1, so none reads the messages of save n - 2.
            self._control.remove(self._key(self._number - 2))

    def barrier(self, *, key: str, timeout_ms: int) -> None:
        """Wait at a barrier for all processes; Orbax calls it before and after the commit.

        Raises:
          SaveFailed: if the save failed in one of them.
          TimeoutError: after timeout_ms.
        """
        if self._control is None:
            return
        until = time.monotonic() + timeout_ms / 1e3
        self._control.put(f"{self._key()}/{key}/{self._index}", "here")
        # Polled: a blocking read of one key would not notice that another process failed.
        while len(self._control.under(f"{self._key()}/{key}")) < self._count:
            for index, reason in self._control.under(f"{self._key()}/failed").items():
                raise SaveFailed(f"in process {index}: {reason}")
            if time.monotonic() > until:
                raise TimeoutError(f"not all processes came to {key} in {timeout_ms / 1e3:.0f} s")
            time.sleep(_POLL_SECONDS)

    def fail(self, reason: str) -> None:
        """Report that the save failed here; process 0 then waits until all have reported it."""
        if self._control is None:
            return
        failed = f"{self._key()}/failed"
        until = time.monotonic() + _SETTLE_SECONDS
        # If the service itself is gone, no report is possible; `cluster.heartbeat` ends the run.
        with contextlib.suppress(*UNREACHABLE):
            self._control.put(f"{failed}/{self._index}", reason)
            while self._index == 0 and time.monotonic() < until:
                if len(self._control.under(failed)) == self._count:
                    return
                time.sleep(_POLL_SECONDS)

    def as_coordinator_sees(self, steps: list[int]) -> list[int]:
        """Return process 0's list of steps, so that all processes decide alike."""
        if self._control is None:
            return steps
        # A network file system may show a new folder to one host seconds before another.
        return self._exchange(steps)[0]

    def on_all(self, action: Callable[[], T]) -> T:
        """Run `action` on every process; if it fails on one, raise on all.

        Raises:
          Unreadable: `action` raised it here, or failed on another process.
          OSError: `action` raised it here.
        """
        error: Unreadable | OSError | None = None
        result: Any = None
        try:
            result = action()
        except (Unreadable, OSError) as caught:
            error = caught
        if self._control is not None:
            # Sent also where it worked: a process that raised at once would leave others waiting.
            answers = self._exchange(error is not None)
            failed = [index for index, has_failed in sorted(answers.items()) if has_failed]
            if error is None and failed:
                error = Unreadable(f"failed on process {failed[0]}")
        if error is not None:
            raise error
        return result

    def _exchange(self, message: Any) -> dict[int, Any]:
        """All-gather a message: {process index: its message}. Every process calls it in turn."""
        assert self._control is not None
        self._round += 1
        folder = f"{self._folder}/rounds/{self._round}"
        self._control.put(f"{folder}/{self._index}", message)
        while len(found := self._control.under(folder)) < self._count:
            time.sleep(_POLL_SECONDS)
        # A process that wrote in this round has read the last one: its messages can go.
        if self._index == 0 and self._round > 1:
            self._control.remove(f"{self._folder}/rounds/{self._round - 1}")
        return {int(index): message for index, message in found.items()}

    def _key(self, number: int | None = None) -> str:
        return f"{self._folder}/saves/{self._number if number is None else number}"
