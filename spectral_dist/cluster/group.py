"""The processes of one run, seen from one of them: agree, stop together, leave.

Owns what all processes must do alike. Talks to the control service alone; no collective of JAX is
used, so that a process that hangs inside one can still be named. A single process has nobody to
talk to: everything here returns at once. Read `Processes.should_stop`.
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

from spectral_dist.cluster.place import Place
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.cluster.watch import UNREACHABLE, Watch, connect
from spectral_dist.command_line import Ending

_POLL_SECONDS = 0.1
_PLACES_AHEAD = 2
_FAREWELL_SECONDS = 10.0


class Processes:
    """A context: the processes of a run, from the first word to the last.

    Attributes:
      index: of this process; 0 is the lead.
      count: of processes.
    """

    def __init__(
        self,
        stop: StopSignal,
        place: Place | None = None,
        control: Any = None,
        watch: Watch | None = None,
        service: "subprocess.Popen[str] | None" = None,
    ) -> None:
        """Know what `start.start_processes` has made; nothing of it where this process is alone.

        Args:
          stop: the signals of this process.
          place: of this process.
          control: the control service, for the main thread.
          watch: of all processes, begun.
          service: the control service's process, in the lead.
        """
        self.index, self.count = (0, 1) if place is None else (place.index, place.count)
        self._stop, self._place, self._control = stop, place, control
        self._watch, self._service = watch, service
        self._stop_at: int | None = None
        self._places = 0

    @property
    def lead(self) -> bool:
        """Whether this process speaks for all."""
        return self.index == 0

    def enter(self, phase: str, waits: bool = True) -> None:
        """Say that this process begins a part of the run.

        Args:
          phase: what it does there, for an error.
          waits: whether it may wait for others; if not, a busy processor is a sign of life.
        """
        if self._watch is not None:
            self._watch.busy_is_moving = not waits
            self._watch.phase = phase
            self._watch.at_place += 1

    def move(self) -> None:
        """Give a sign of life in the middle of a long part; cheap, from any thread.

        Raises:
          Ending: if a stop was asked for. Only for parts whose loss is none.
        """
        if self._watch is not None:
            self._watch.moves += 1
        self._stop.check()

    def should_stop(self) -> bool:
        """Whether all processes stop here: the same answer in all of them.

        To be called by all at the same places, where reaching one means that every process has
        passed the one before the last: a result of a collective was read in between. So when the
        lead, asked to stop, publishes the place after the next before it goes on, nobody can be
        there already, and everybody who comes there finds it.
        """
        if self._place is None:
            return self._stop.received is not None
        assert self._watch is not None
        self._places += 1
        self._watch.at_place += 1
        if self._stop_at is None and self.lead and self._stop.received is not None:
            self._stop_at = self._places + _PLACES_AHEAD
            self._control.put("stop_at", f"{self._stop_at} {int(self._stop.received)}")
        elif self._stop_at is None and not self.lead:
            place, _, number = self._control.get("stop_at").partition(" ")
            if place:
                self._stop_at = int(place)
                self._stop.ask(signal.Signals(int(number)))
        return self._stop_at is not None and self._places >= self._stop_at

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Wait for all processes and compare what each knows.

        Args:
          what: in a word, for the error.
          facts: anything that JSON holds.

        Raises:
          ValueError: in every process; names the first process and fact that differ from the lead.
        """
        if self._watch is None:
            return
        self.enter(f"agreeing on {what}")
        self._control.put(f"{what}/{self.index}", json.dumps(dict(facts), sort_keys=True))
        while len(found := json.loads(self._control.under(what))) < self.count:
            time.sleep(_POLL_SECONDS)
        told = {int(i): json.loads(text) for i, text in found.items()}
        for index in range(1, self.count):
            for key in sorted(told[0].keys() | told[index].keys()):
                mine, theirs = told[0].get(key), told[index].get(key)
                if mine != theirs:
                    raise ValueError(
                        f"{what}: {key}={theirs} in {self._watch.name(index)}, but {mine} in"
                        f" {self._watch.name(0)}"
                    )

    def from_lead(self, what: str, make: Callable[[], Any]) -> Any:
        """Return what the lead makes, in every process; only the lead makes it.

        Args:
          what: in a word, used once in a run.
          make: returns anything that JSON holds.
        """
        if self._watch is None:
            return make()
        self.enter(what)
        if self.lead:
            made = make()
            self._control.put(f"from_lead/{what}", json.dumps(made))
            return made
        while not (text := self._control.get(f"from_lead/{what}")):
            time.sleep(_POLL_SECONDS)
        return json.loads(text)

    def __enter__(self) -> "Processes":
        """Begin to watch."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave together; or, after an error, tell the others and go alone.

        Raises:
          Ending: in place of what broke here because another process is gone.
        """
        if self._watch is None:
            return
        if error is None or isinstance(error, SystemExit):
            self._farewell()
            return
        if not isinstance(error, ValueError | Ending | KeyboardInterrupt):
            self._watch.suspect()
        code = error.code if isinstance(error, Ending) else 2
        code = 130 if isinstance(error, KeyboardInterrupt) else code
        assert self._place is not None
        message = " ".join(str(error).split()) or type(error).__name__
        publish_end(self._place, message, code)
        # Threads that wait for the others would keep this process for ever.
        timer = threading.Timer(_FAREWELL_SECONDS, os._exit, [code])
        timer.daemon = True
        timer.start()

    def _farewell(self) -> None:
        """Wait until everybody is through, so that nobody finds the service gone."""
        assert self._watch is not None
        from jax._src import distributed

        state = distributed.global_state
        self.enter("the end")
        with contextlib.suppress(*UNREACHABLE):
            for word in ("done", "gone"):
                if word == "gone":
                    self._watch.close()
                    assert state.client is not None
                    state.client.shutdown()
                    state.client = None
                self._control.put(f"{word}/{self.index}", "1")
                until = time.monotonic() + _FAREWELL_SECONDS
                while len(json.loads(self._control.under(word))) < self.count:
                    if word == "gone" and (not self.lead or time.monotonic() > until):
                        break
                    time.sleep(_POLL_SECONDS)
        if self._service is not None:
            self._service.kill()
            self._service.wait()
        self._watch = None


def publish_end(place: Place, message: str, code: int) -> None:
    """Tell the other processes that this one ends before its time, if they can still be told."""
    with contextlib.suppress(*UNREACHABLE):
        end = json.dumps({"message": message, "code": code})
        connect(place).put(f"ended/{place.index}", end)
