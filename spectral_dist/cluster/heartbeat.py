"""Heartbeats: every process watches all others for an early end, for silence and for a hang.

Owns the thread that sends this process's heartbeat to the control service each second, and judges
the heartbeats of the others. If another process is lost, this one says so and ends at once, because
its main thread may hang in a collective for ever. Knows nothing of training. Read
`HeartbeatMonitor.judge` for the rules.

Two counts tell a hang from a long wait: `sync_points`, which every process passes, and `progress`,
which grows with any sign of work. The run hangs if neither changes in any process; those with the
fewest sync points are to blame.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spectral_dist.cluster.client import UNREACHABLE, connect
from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.command_line import FAULT

HEARTBEAT_SECONDS = 1.0
_BUSY_SHARE = 0.1  # of one core's time between two heartbeats; a process that sleeps takes less
# A process is lost after this long without a heartbeat. JAX's own service waits as long. Less would
# end runs in which a process swaps or is paused for a minute, and then comes back.
_SILENT_SECONDS = 100.0
# The limit after a collective has broken: then some process is probably lost, and worth naming.
_SUSPECT_SECONDS = 4.0

# How long a service that refuses connections counts as one that is busy.
_REFUSED_SECONDS = 4.0


@dataclass
class _Seen:
    """The last heartbeat of one process, and when it came (seconds of this host's clock)."""

    host: str
    heartbeat: dict[str, Any]
    heard: float


class HeartbeatMonitor:
    """One process's view of all processes, and the thread that keeps it."""

    def __init__(
        self,
        identity: Identity,
        hosts: Mapping[int, str],
        stop: StopSignal,
        hang_timeout: float,
        leave: Callable[[str, int], None],
        on_fault: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to watch all processes; `start` begins.

        Args:
          identity: index and addresses of this process.
          hosts: host name of every process, by index.
          stop: signal handlers of this process; a signal in another process is passed on to it.
          hang_timeout: seconds without progress in any process after which the run has hung.
          leave: ends this process, given a message and an exit code.
          on_fault: called before this process leaves because of a fault here or elsewhere.
          clock: returns monotonic seconds.
        """
        self._identity, self._stop, self._clock = identity, stop, clock
        self._leave_now, self._on_fault = leave, on_fault
        self.hang_timeout = hang_timeout
        self.silent_after = min(hang_timeout, _SILENT_SECONDS)
        self.sync_points, self.progress, self.phase = 0, 0, "start"
        self.patience = 1.0  # of the phase, in hang_timeouts
        self.figures: dict[str, float] = {}  # what this process measures of itself
        # True in phases without collectives. In a collective, a process that waits for others may
        # use a whole core, so there a busy processor shows no progress.
        self.busy_is_progress = False
        self._worked = time.process_time()
        self._sent = 0
        self._named = False  # whether strangers were named
        self._now = self._progressed = clock()
        self._seen = {i: _Seen(host, {}, self._now) for i, host in hosts.items()}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to send heartbeats and to watch the others'."""
        self._thread.start()

    def close(self) -> None:
        """Stop sending heartbeats and watching the others."""
        self._closed.set()
        self._thread.join()

    def suspect(self) -> None:
        """Look for a lost process now, because a collective has failed.

        Ends this process if another one is silent; otherwise returns after a few seconds.
        """
        self.silent_after = min(self.silent_after, _SUSPECT_SECONDS)
        self._closed.wait(2 * _SUSPECT_SECONDS)

    def name(self, index: int) -> str:
        """Return how messages name a process: its index and host."""
        return f"process {index} of {self._identity.count} ({self._seen[index].host})"

    def hosts(self) -> dict[str, dict[str, float]]:
        """Return the newest figures of each process, by its name."""
        return {self.name(i): seen.heartbeat.get("figures", {}) for i, seen in self._seen.items()}

    def _run(self) -> None:
        control = connect(self._identity)
        while not self._closed.is_set():
            try:
                answer = control.heartbeat(self._identity.index, self._heartbeat())
                heartbeats, ended, strangers = answer
                self.hear(heartbeats)
                self._name_strangers(strangers)
                self.judge(ended)
            except (*UNREACHABLE, ValueError) as error:
                control.reconnect()
                self._judge_service(error)
            self._closed.wait(HEARTBEAT_SECONDS)

    def _name_strangers(self, strangers: Mapping[str, int]) -> None:
        """Say once, in process 0, who called the control service without the run's secret."""
        if strangers and self._identity.index == 0 and not self._named:
            self._named = True
            who = ", ".join(f"{address} ({count})" for address, count in sorted(strangers.items()))
            sys.stderr.write(
                "warning: calls of the control service without the secret of this run were refused,"
                f" from {who}; they change nothing\n"
            )

    def _heartbeat(self) -> dict[str, Any]:
        self._sent += 1  # only a new number is a sign of life: the service repeats the last text
        worked, before = time.process_time(), self._worked
        self._worked = worked
        if self.busy_is_progress and worked - before > _BUSY_SHARE * HEARTBEAT_SECONDS:
            self.progress += 1
        requested = self._stop.received
        return {
            "number": self._sent,
            "sync_points": self.sync_points,
            "progress": self.progress,
            "phase": self.phase,
            "patience": self.patience,
            "figures": self.figures,
            "stop_signal": 0 if requested is None else int(requested),
        }

    def hear(self, heartbeats: Mapping[int, dict[str, Any]]) -> None:
        """Record the last heartbeat of every process."""
        before, self._now = self._now, self._clock()
        if self._now - before > self.silent_after / 2:
            # This process itself was paused, so it cannot say that the others were silent. Without
            # this, a host that wakes from a pause would end the run.
            self._progressed = self._now
            for seen in self._seen.values():
                seen.heard = self._now
        for index, heartbeat in heartbeats.items():
            if index not in self._seen:
                continue  # none of the run
            seen = self._seen[index]
            last, seen.heartbeat = seen.heartbeat, heartbeat
            if heartbeat["number"] != last.get("number"):
                seen.heard = self._now
            if any(heartbeat[count] != last.get(count) for count in ("sync_points", "progress")):
                self._progressed = self._now
            # A scheduler may signal one process only. The coordinator must hear of it, because it
            # alone chooses the step to stop at.
            if heartbeat["stop_signal"]:
                self._stop.ask(signal.Signals(heartbeat["stop_signal"]))

    def judge(self, ended: Mapping[int, dict[str, Any]]) -> None:
        """End this process if another one has ended early, is silent or hangs.

        Args:
          ended: message and exit code of each process that ended early, by its index.
        """
        # In this order, because the first rule names the cause: a process that has ended falls
        # silent a while later, and those that wait for it make no progress.
        for index, last in sorted(ended.items()):
            if index in self._seen and index != self._identity.index:
                self._leave(f"{self.name(index)} ended: {last['message']}", last["code"])
        silent = [i for i, s in self._seen.items() if self._now - s.heard > self.silent_after]
        if silent:
            names = ", ".join(map(self.name, silent))
            seconds = self._now - min(self._seen[i].heard for i in silent)
            self._leave(f"{names}: no heartbeat for {seconds:.0f} s", FAULT)
        passed = {i: seen.heartbeat.get("sync_points", 0) for i, seen in self._seen.items()}
        # The others wait for these in a collective, and so have passed one sync point more.
        behind = [i for i, count in passed.items() if count == min(passed.values())]
        # So it is the phase of these that says how long a wait may be.
        patience = max(self._seen[i].heartbeat.get("patience", 1.0) for i in behind)
        if self._now - self._progressed > patience * self.hang_timeout:
            names = ", ".join(
                f"{self.name(i)} in {self._seen[i].heartbeat.get('phase', 'start')}" for i in behind
            )
            times = "" if patience == 1 else f"{patience:g} times "
            self._leave(
                f"{names}: no process has made progress for {times}hang_timeout="
                f"{self.hang_timeout:g} s, and {'this one is' if len(behind) == 1 else 'these are'}"
                " furthest behind",
                FAULT,
            )

    def _leave(self, message: str, code: int) -> None:
        """End this process; where the machine failed, it is first recorded where each thread is."""
        if code == FAULT:
            self._on_fault()
        self._leave_now(message, code)

    def _judge_service(self, error: Exception) -> None:
        # The service runs on the host of process 0. One that refuses has ended; one that does not
        # answer may be on a host or a network that comes back.
        refused = isinstance(error, ConnectionRefusedError)
        if self._clock() - self._now > (_REFUSED_SECONDS if refused else self.silent_after):
            what = "has ended" if refused else f"cannot be reached: {error}"
            self._leave(
                f"{self.name(0)}: its control service at {self._identity.address} {what}", FAULT
            )
