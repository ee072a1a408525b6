"""Agreement between the processes of a run: same settings, same step to stop at, a common end.

Everything goes through the control service, and no collective of JAX is used: a process that hangs
inside one can still be named. A single process has nobody to agree with, and every call returns at
once. Read `Processes.should_stop`, which is how a preempted run stops after the same step
everywhere.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from spectral_dist.cluster.heartbeat import UNREACHABLE, HeartbeatMonitor, connect
from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.command_line import Ending

_POLL_SECONDS = 0.1
# Nobody can have come to a sync point so far ahead of the coordinator's (see `should_stop`).
_SYNC_POINTS_AHEAD = 2
_FAREWELL_SECONDS = 10.0


class Processes:
    """A context: the processes of a run, as one of them sees them.

    Attributes:
      index: of this process; 0 is the coordinator.
      count: of processes.
    """

    def __init__(
        self,
        stop: StopSignal,
        identity: Identity | None = None,
        control: Any = None,
        monitor: HeartbeatMonitor | None = None,
        service: "subprocess.Popen[str] | None" = None,
    ) -> None:
        """Take over what `start.start_processes` made: nothing where this process is alone.

        Args:
          stop: the signals of this process.
          identity: of this process.
          control: a client of the control service, for the main thread.
          monitor: of all processes, started.
          service: the control service's own process, in the coordinator.
        """
        self.index, self.count = (0, 1) if identity is None else (identity.index, identity.count)
        self._stop, self._identity, self._control = stop, identity, control
        self._monitor, self._service = monitor, service
        self._stop_at: int | None = None  # the sync point to stop at, once it is known
        self._sync_points = 0

    @property
    def is_coordinator(self) -> bool:
        """Whether this is process 0, which writes and prints for all."""
        return self.index == 0

    def enter(self, phase: str, waits: bool = True) -> None:
        """Record that this process begins a phase of the run; all processes pass the same ones.

        Args:
          phase: what the process does, for the message where it hangs there.
          waits: whether it may wait for others; if not, a busy processor counts as progress.
        """
        if self._monitor is not None:
            self._monitor.busy_is_progress = not waits
            self._monitor.phase = phase
            self._monitor.sync_points += 1

    def note_progress(self) -> None:
        """Show that a long phase is getting on; cheap, from any thread.

        Raises:
          Ending: if a stop was requested. So only for phases that leave nothing to save.
        """
        if self._monitor is not None:
            self._monitor.progress += 1
        self._stop.check()

    def should_stop(self) -> bool:
        """Return whether all processes stop here: the same answer in all of them.

        All call it at the same sync points: before each step and each batch of an evaluation.
        Between two of them a process reads the result of a collective, so whoever reaches one
        knows that all have passed the one before the last. A stop that the coordinator publishes,
        before it goes on, for the sync point after the next is seen by everybody who comes there.
        """
        if self._identity is None:
            return self._stop.received is not None
        assert self._monitor is not None
        self._sync_points += 1
        self._monitor.sync_points += 1
        if self._stop_at is None and self.is_coordinator and self._stop.received is not None:
            self._stop_at = self._sync_points + _SYNC_POINTS_AHEAD
            self._control.put("stop_at", f"{self._stop_at} {int(self._stop.received)}")
        elif self._stop_at is None and not self.is_coordinator:
            sync_point, _, number = self._control.get("stop_at").partition(" ")
            if sync_point:
                self._stop_at = int(sync_point)
                self._stop.ask(signal.Signals(int(number)))
        return self._stop_at is not None and self._sync_points >= self._stop_at

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Wait for all processes, and compare each one's facts with the coordinator's.

        Args:
          what: the subject in a word, for the error; used once in a run.
          facts: anything that JSON holds.

        Raises:
          ValueError: in every process alike; names the first process and fact that differ.
        """
        if self._monitor is None:
            return
        self.enter(f"agreeing on {what}")
        self._control.put(f"{what}/{self.index}", json.dumps(dict(facts), sort_keys=True))
        while len(found := json.loads(self._control.under(what))) < self.count:
            time.sleep(_POLL_SECONDS)
        by_process = {int(i): json.loads(text) for i, text in found.items()}
        for index in range(1, self.count):
            for key in sorted(by_process[0].keys() | by_process[index].keys()):
                expected, other = by_process[0].get(key), by_process[index].get(key)
                if expected != other:
                    raise ValueError(
                        f"{what}: {key}={other} in {self._monitor.name(index)}, but {expected} in"
                        f" {self._monitor.name(0)}"
                    )

    def from_coordinator(self, what: str, make: Callable[[], Any]) -> Any:
        """Broadcast: return in every process what the coordinator makes.

        Args:
          what: the subject in a word, used once in a run.
          make: returns anything that JSON holds.
        """
        if self._monitor is None:
            return make()
        self.enter(what)
        if self.is_coordinator:
            made = make()
            self._control.put(f"from_coordinator/{what}", json.dumps(made))
            return made
        while not (text := self._control.get(f"from_coordinator/{what}")):
            time.sleep(_POLL_SECONDS)
        return json.loads(text)

    def __enter__(self) -> "Processes":
        """Return itself; `start.start_processes` has started everything."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave together; or, after an error, report it to the others and leave alone.

        Raises:
          Ending: where what broke here broke because another process is gone.
        """
        if self._monitor is None:
            return
        if error is None or isinstance(error, SystemExit):
            self._farewell()
            return
        if not isinstance(error, ValueError | Ending | KeyboardInterrupt):
            self._monitor.suspect()
        code = error.code if isinstance(error, Ending) else 2
        code = 130 if isinstance(error, KeyboardInterrupt) else code
        assert self._identity is not None
        message = " ".join(str(error).split()) or type(error).__name__
        publish_end(self._identity, message, code)
        # Threads of the runtime may wait for the others for ever, and Python for those threads.
        timer = threading.Timer(_FAREWELL_SECONDS, os._exit, [code])
        timer.daemon = True
        timer.start()

    def _farewell(self) -> None:
        """Wait until all processes are through, so that nobody finds the service gone."""
        assert self._monitor is not None
        from spectral_dist.cluster import jax_service  # loads JAX, as the run has by now

        self.enter("the end")
        with contextlib.suppress(*UNREACHABLE):
            # First all have done their work, and may leave JAX's service; then all have left it,
            # and the coordinator may end the service.
            for word in ("done", "gone"):
                if word == "gone":
                    self._monitor.close()
                    jax_service.disconnect()
                self._control.put(f"{word}/{self.index}", "1")
                until = time.monotonic() + _FAREWELL_SECONDS
                while len(json.loads(self._control.under(word))) < self.count:
                    if word == "gone" and (not self.is_coordinator or time.monotonic() > until):
                        break
                    time.sleep(_POLL_SECONDS)
        if self._service is not None:
            self._service.kill()
            self._service.wait()
        self._monitor = None


def publish_end(identity: Identity, message: str, code: int) -> None:
    """Report to the other processes that this one ends early, if the service can be reached."""
    with contextlib.suppress(*UNREACHABLE):
        end = json.dumps({"message": message, "code": code})
        connect(identity).put(f"ended/{identity.index}", end)
