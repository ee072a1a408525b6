"""Every process watches every other one: who has ended, who is silent, who has hung.

Owns the thread that tells the control service each second that this process lives, and the verdict
on the others; a process that must end says why and ends at once, whatever its main thread does.
Knows nothing of training. Read `Watch.judge` for the rules.

Two counts tell a hang from a long wait: `place`, raised where all processes pass alike, and
`moves`, raised by any sign of life. The run hangs when neither changes anywhere; those that are
behind in `place` are to blame.
"""

import contextlib
import http.client
import json
import signal
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spectral_dist.cluster.place import Place
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.command_line import LOST

BEAT_SECONDS = 1.0
_CALL_SECONDS = 10.0
_BUSY_SHARE = 0.1  # of a processor's time between two beats
# A process that has not beaten for so long is gone, as in JAX's own service.
_SILENT_SECONDS = 100.0
# How soon silence tells, once something else has gone wrong.
_SUSPECT_SECONDS = 4.0


# What a call of the control service raises where it cannot be had.
UNREACHABLE = (OSError, http.client.HTTPException, xmlrpc.client.Error)


class _Transport(xmlrpc.client.Transport):
    """HTTP whose calls end after a while."""

    def make_connection(self, host: Any) -> Any:
        connection = super().make_connection(host)
        connection.timeout = _CALL_SECONDS
        return connection


def connect(place: Place) -> Any:
    """Return the control service of a run; for one thread. Its calls raise `UNREACHABLE`."""
    host = f"[{place.host}]" if ":" in place.host else place.host
    return xmlrpc.client.ServerProxy(f"http://{host}:{place.port}", transport=_Transport())


@dataclass
class _Seen:
    """What is known of one process, and since when, in seconds of the monotonic clock."""

    host: str
    beat: dict[str, Any]
    heard: float


class Watch:
    """One process's view of all."""

    def __init__(
        self,
        place: Place,
        hosts: Mapping[int, str],
        stop: StopSignal,
        hang_timeout: float,
        leave: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know everybody, watch nobody yet.

        Args:
          place: of this process.
          hosts: of every process, by index.
          stop: is asked when another process was.
          hang_timeout: seconds without a move after which a run has hung.
          leave: ends this process, given a line and an exit code.
          clock: monotonic seconds.
        """
        self._place, self._stop, self._leave, self._clock = place, stop, leave, clock
        self.hang_timeout = hang_timeout
        self.silent_after = min(hang_timeout, _SILENT_SECONDS)
        self.at_place, self.moves, self.phase = 0, 0, "start"
        self.busy_is_moving = False  # in a part where a process waits for nobody
        self._worked = time.process_time()
        self._beats = 0
        self._now = self._moved = clock()
        self._seen = {i: _Seen(host, {}, self._now) for i, host in hosts.items()}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def close(self) -> None:
        """Stop beating; nobody is judged any more."""
        self._closed.set()
        self._thread.join()

    def suspect(self) -> None:
        """Something broke that several processes share: wait whether one of them falls silent.

        Returns if none does; otherwise this process has ended.
        """
        self.silent_after = min(self.silent_after, _SUSPECT_SECONDS)
        self._closed.wait(2 * _SUSPECT_SECONDS)

    def name(self, index: int) -> str:
        """Return how to call a process."""
        return f"process {index} of {self._place.count} ({self._seen[index].host})"

    def _run(self) -> None:
        control = connect(self._place)
        while not self._closed.is_set():
            try:
                answer = json.loads(control.beat(str(self._place.index), json.dumps(self._beat())))
                self.hear({int(i): json.loads(b) for i, b in answer["beats"].items()})
                self.judge({int(i): json.loads(e) for i, e in answer["ended"].items()})
            except (*UNREACHABLE, ValueError) as error:
                with contextlib.suppress(OSError):
                    control("close")()
                self._judge_service(error)
            self._closed.wait(BEAT_SECONDS)

    def _beat(self) -> dict[str, Any]:
        self._beats += 1
        worked, before = time.process_time(), self._worked
        self._worked = worked
        if self.busy_is_moving and worked - before > _BUSY_SHARE * BEAT_SECONDS:
            self.moves += 1
        wanted = self._stop.received
        return {
            "beats": self._beats,
            "place": self.at_place,
            "moves": self.moves,
            "phase": self.phase,
            "wanted": 0 if wanted is None else int(wanted),
        }

    def hear(self, beats: Mapping[int, dict[str, Any]]) -> None:
        """Take in everybody's last beat."""
        before, self._now = self._now, self._clock()
        if self._now - before > self.silent_after / 2:  # it was this process that slept
            self._moved = self._now
            for seen in self._seen.values():
                seen.heard = self._now
        for index, beat in beats.items():
            seen = self._seen[index]
            if beat["beats"] != seen.beat.get("beats"):
                seen.heard = self._now
            if any(beat[key] != seen.beat.get(key) for key in ("place", "moves")):
                self._moved = self._now
            seen.beat = beat
            if beat["wanted"]:
                self._stop.ask(signal.Signals(beat["wanted"]))

    def judge(self, ended: Mapping[int, dict[str, Any]]) -> None:
        """End this process if another one has ended, fallen silent or hung.

        Args:
          ended: message and exit code of each process that ended before its time.
        """
        for index, last in sorted(ended.items()):
            if index != self._place.index:
                self._leave(f"{self.name(index)} ended: {last['message']}", last["code"])
        silent = [i for i, s in self._seen.items() if self._now - s.heard > self.silent_after]
        if silent:
            names = ", ".join(map(self.name, silent))
            seconds = self._now - min(self._seen[i].heard for i in silent)
            self._leave(f"{names}: not heard of for {seconds:.0f} s", LOST)
        if self._now - self._moved > self.hang_timeout:
            places = {i: seen.beat.get("place", 0) for i, seen in self._seen.items()}
            behind = [i for i, at in places.items() if at == min(places.values())]
            names = ", ".join(
                f"{self.name(i)} in {self._seen[i].beat.get('phase', 'start')}" for i in behind
            )
            self._leave(
                f"{names}: no process has moved for hang_timeout={self.hang_timeout:g} s, and"
                f" {'it is' if len(behind) == 1 else 'they are'} the last",
                LOST,
            )

    def _judge_service(self, error: Exception) -> None:
        if self._clock() - self._now > self.silent_after:
            self._leave(
                f"{self.name(0)}: its control service at {self._place.host}:{self._place.port}"
                f" cannot be reached: {error}",
                LOST,
            )
