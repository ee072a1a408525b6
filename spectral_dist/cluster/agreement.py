"""Agreement between the processes of a run: same settings, same step to stop at, a common end.

Everything goes through the control service. JAX's collectives are not used here, because a process
that hangs in one could not say so. In a run of one process every call returns at once. Read
`Processes.should_stop`: it makes a preempted run stop after the same step everywhere.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from spectral_dist.cluster.client import UNREACHABLE, Client, connect
from spectral_dist.cluster.heartbeat import HeartbeatMonitor
from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.command_line import Ending, error_code, one_line

_POLL_SECONDS = 0.1
# No process can be this many sync points ahead of the coordinator (see `should_stop`).
_SYNC_POINTS_AHEAD = 2
# How many hang_timeouts a phase may take without progress; any other phase one. A full state on a
# slow disk takes longer than a step, and the disk says nothing meanwhile.
_PATIENCE = {
    "saving a checkpoint": 6.0,
    "reading the checkpoint": 6.0,
    "preparing text": 3.0,
    "reading the store": 6.0,
}
# How long the end of a run waits for the other processes.
_END_SECONDS = 10.0


class Processes:
    """The processes of a run, seen from one of them; a context manager.

    Attributes:
      index: index of this process; process 0 is the coordinator.
      count: number of processes.
      control: a client of the control service, for all threads; None in a run of one process.
    """

    def __init__(
        self,
        stop: StopSignal,
        identity: Identity | None = None,
        control: Client | None = None,
        monitor: HeartbeatMonitor | None = None,
        service: "subprocess.Popen[str] | None" = None,
    ) -> None:
        """Take over what `start.start_processes` made; nothing but `stop` for a single process.

        Args:
          stop: the signal handlers of this process.
          identity: index and addresses of this process.
          control: a client of the control service.
          monitor: the heartbeat monitor, started.
          service: the process of the control service, in the coordinator.
        """
        self.index, self.count = (0, 1) if identity is None else (identity.index, identity.count)
        self._stop, self._identity, self.control = stop, identity, control
        self._monitor, self._service = monitor, service
        self._stop_at: int | None = None  # the sync point to stop at, once it is known
        self._saves: list[int] = []  # the sync points of timed saves, the last two
        self._saved_at = 0  # the last of them that is past
        self._sync_points = 0
        self._folders = 0

    @property
    def is_coordinator(self) -> bool:
        """Whether this is process 0, which writes and prints for all."""
        return self.index == 0

    def enter(self, phase: str, waits: bool = True) -> None:
        """Record that a phase of the run begins; all processes enter the same phases in order.

        Args:
          phase: what the process does, for the message if it hangs there.
          waits: whether it may wait for other processes. If not, processor time counts as progress.
        """
        if self._monitor is not None:
            self._monitor.busy_is_progress = not waits
            self._monitor.phase, self._monitor.patience = phase, _PATIENCE.get(phase, 1.0)
            self._monitor.sync_points += 1

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Be in a phase for the length of a block, and then in the one before."""
        if self._monitor is None:
            yield
            return
        before = self._monitor.phase
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def note_progress(self) -> None:
        """Report progress in a long phase, so that it does not count as a hang; from any thread.

        Raises:
          Ending: if a stop was requested. Call it only where there is nothing to save.
        """
        if self._monitor is not None:
            self._monitor.progress += 1
        self._stop.check()

    def report(self, figures: Mapping[str, float]) -> None:
        """Tell the other processes what this one measures of itself, with its next heartbeat."""
        if self._monitor is not None:
            self._monitor.figures = dict(figures)

    def hosts(self) -> dict[str, dict[str, float]]:
        """Return the newest figures of each process, by its name; {} in a run of one process."""
        return {} if self._monitor is None else self._monitor.hosts()

    def should_stop(self) -> bool:
        """Return whether a preempted run stops here: the same answer in every process.

        All processes call it at the same sync points: before each step and each batch of an
        evaluation. It costs no collective.
        """
        if self._identity is None:
            return self._stop.received is not None
        assert self._monitor is not None
        assert self.control is not None
        self._sync_points += 1
        self._monitor.sync_points += 1
        # Between two sync points every process waits for the result of a collective, and that needs
        # all of them. So nobody is two sync points ahead of the coordinator: what it publishes
        # here, before it continues, is there when the first process reaches `_stop_at`.
        if self._stop_at is None and self.is_coordinator and self._stop.received is not None:
            self._stop_at = self._sync_points + _SYNC_POINTS_AHEAD
            self.control.put("planned/stop", [self._stop_at, int(self._stop.received)])
        elif self._stop_at is None and not self.is_coordinator:
            planned = self.control.under("planned")
            self._saves = planned.get("saves", [])
            if "stop" in planned:
                self._stop_at, number = planned["stop"]
                # Noted as this process's own signal, so that all leave with one exit code.
                self._stop.ask(signal.Signals(number))
        return self._stop_at is not None and self._sync_points >= self._stop_at

    def should_save(self, due: bool) -> bool:
        """Return whether all processes save here because of the time: the same answer in each.

        All call it after each step. The clock of the coordinator decides, and the save comes a few
        steps later. It costs no collective and no call of its own.

        Args:
          due: whether the time has come, by the clock of this process.
        """
        if self.control is None:
            return due
        if self.is_coordinator and due and self._saves[-1:] <= [self._saved_at]:
            # One more than for a stop: this is published after the step, and the others have read
            # it at the sync point before theirs. The last two, for those who are behind.
            self._saves = [*self._saves[-1:], self._sync_points + _SYNC_POINTS_AHEAD + 1]
            self.control.put("planned/saves", self._saves)
        # An evaluation passes many sync points between two steps, so it may be passed by.
        past = [at for at in self._saves if self._saved_at < at <= self._sync_points]
        self._saved_at = max([self._saved_at, *past])
        return bool(past)

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Wait for all processes, and compare the facts of each with those of the coordinator.

        Args:
          what: the subject in one word, for the error; each may be used once in a run.
          facts: values that JSON can write.

        Raises:
          ValueError: the same in every process; names the first process and fact that differ.
        """
        if self._monitor is None:
            return
        assert self.control is not None
        self.enter(f"agreeing on {what}")
        # The table is never emptied: a second use of a subject would compare with the first one's.
        self.control.put(f"{what}/{self.index}", dict(facts))
        while len(found := self.control.under(what)) < self.count:
            time.sleep(_POLL_SECONDS)
        # Every process compares all of them, so that all end with the same message.
        by_process = {int(i): facts for i, facts in found.items()}
        for index in range(1, self.count):
            for key in sorted(by_process[0].keys() | by_process[index].keys()):
                expected, other = by_process[0].get(key), by_process[index].get(key)
                if expected != other:
                    raise ValueError(
                        f"{what}: {key}={other} in {self._monitor.name(index)}, but {expected} in"
                        f" {self._monitor.name(0)}"
                    )

    def new_folder(self) -> str:
        """Return a folder of keys that nobody has used; every process calls it in turn."""
        self._folders += 1
        return f"folders/{self._folders}"

    def from_coordinator(self, what: str, make: Callable[[], Any]) -> Any:
        """Broadcast: call `make` in the coordinator, and return its result in every process.

        Args:
          what: the subject in one word; each may be used once in a run.
          make: returns a value that JSON can write.
        """
        if self._monitor is None:
            return make()
        assert self.control is not None
        self.enter(what)
        if self.is_coordinator:
            made = make()
            self.control.put(f"from_coordinator/{what}", [made])  # in a list: it may be None
            return made
        while not (found := self.control.get(f"from_coordinator/{what}")):
            time.sleep(_POLL_SECONDS)
        return found[0]

    def __enter__(self) -> "Processes":
        """Return itself; `start.start_processes` has started everything."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End together with the other processes; or, after an error, report it and end alone.

        Raises:
          Ending: if the error came from the loss of another process.
        """
        if self._monitor is None:
            return
        if error is None or isinstance(error, SystemExit):
            self._end_together()
            return
        # Any other error may be a collective that broke because a process is gone. That process is
        # the cause to name, so the monitor gets the time to find it.
        if not isinstance(error, ValueError | Ending | KeyboardInterrupt):
            self._monitor.suspect()
        code = error_code(error)
        assert self._identity is not None
        message = one_line(error)
        publish_end(self._identity, message, code)
        # Python waits for its threads at the end, and the runtime's may wait for lost processes for
        # ever. This timer ends the process then.
        timer = threading.Timer(_END_SECONDS, os._exit, [code])
        timer.daemon = True
        timer.start()

    def _end_together(self) -> None:
        """Wait until all processes are done, so that none finds the service gone."""
        assert self._monitor is not None
        assert self.control is not None
        from spectral_dist.cluster import jax_service  # loads JAX: free by now, slow at the start

        self.enter("the end")
        with contextlib.suppress(*UNREACHABLE):
            # Two rounds: JAX's service must stay until all have done their work. Once all have left
            # it, the coordinator ends it.
            for word in ("done", "gone"):
                if word == "gone":
                    self._monitor.close()
                    jax_service.disconnect()
                self.control.put(f"{word}/{self.index}", True)
                until = time.monotonic() + _END_SECONDS
                while len(self.control.under(word)) < self.count:
                    # The last save of another process may take long; leaving does not.
                    if word == "gone" and (not self.is_coordinator or time.monotonic() > until):
                        break
                    time.sleep(_POLL_SECONDS)
        if self._service is not None:
            self._service.kill()
            self._service.wait()
        self._monitor = None


def publish_end(identity: Identity, message: str, code: int) -> None:
    """Report to the other processes that this one ends early; do nothing if that fails."""
    with contextlib.suppress(*UNREACHABLE):
        # A connection of its own: another thread may wait for an answer on the run's.
        connect(identity).put(f"ended/{identity.index}", {"message": message, "code": code})
