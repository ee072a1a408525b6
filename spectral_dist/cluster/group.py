"""The processes of one run, seen from one of them: start, agree, stop together, leave.

Owns what all processes must do alike. Talks to the control service alone, which the lead starts;
no collective of JAX is used, so that a process that hangs inside one can still be named. A single
process has nobody to talk to: everything here returns at once. Read `start_processes`, then
`Processes.should_stop`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from spectral_dist.cluster.place import Place, find_place
from spectral_dist.cluster.signals import StopSignal, leave
from spectral_dist.cluster.watch import Watch, connect, host_name
from spectral_dist.command_line import LOST, Ending

_POLL_SECONDS = 0.1
_PLACES_AHEAD = 2
_FAREWELL_SECONDS = 10.0
_UNREACHABLE = (OSError, xmlrpc.client.Error)


class Processes:
    """A context: the processes of a run, from the first word to the last.

    Attributes:
      index: of this process; 0 is the lead.
      count: of processes.
    """

    def __init__(self, stop: StopSignal, place: Place | None = None) -> None:
        """Know the place; `start_processes` does the rest.

        Args:
          stop: the signals of this process.
          place: None where it is alone.
        """
        self.index, self.count = (0, 1) if place is None else (place.index, place.count)
        self._stop, self._place = stop, place
        self._watch: Watch | None = None
        self._service: subprocess.Popen[str] | None = None
        self._control: Any = None  # of the main thread
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
        self._publish_end(" ".join(str(error).split()) or type(error).__name__, code)
        # Threads that wait for the others would keep this process for ever.
        timer = threading.Timer(_FAREWELL_SECONDS, os._exit, [code])
        timer.daemon = True
        timer.start()

    def _leave(self, message: str, code: int) -> None:
        """End this process at once, the others told."""
        self._publish_end(message, code)
        prefix = "" if self._stop.received is not None and code != LOST else "error: "
        leave(prefix + message, code)

    def _publish_end(self, message: str, code: int) -> None:
        assert self._place is not None
        with contextlib.suppress(*_UNREACHABLE):
            end = json.dumps({"message": message, "code": code})
            connect(self._place).put(f"ended/{self.index}", end)

    def _farewell(self) -> None:
        """Wait until everybody is through, so that nobody finds the service gone."""
        assert self._watch is not None
        from jax._src import distributed

        state = distributed.global_state
        self.enter("the end")
        with contextlib.suppress(*_UNREACHABLE):
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


def start_processes(stop: StopSignal, start_timeout: float, hang_timeout: float) -> Processes:
    """Bring the processes of a run together, before JAX looks for devices.

    Args:
      stop: the signals of this process.
      start_timeout: seconds for every process to report in.
      hang_timeout: seconds without a move after which a run has hung.

    Raises:
      Ending: names the processes that did not come.
      ValueError: if the environment says something impossible.
    """
    place = find_place(os.environ)
    processes = Processes(stop, place)
    if place is None:
        return processes
    with stop.interruptible("waiting for the other processes"):
        if processes.lead:
            processes._service = _start_service(place)
        processes._control = connect(place)
        hosts = _report_in(processes._control, place, start_timeout)
        _connect_jax(place, int(processes._control.get("jax_port")), int(start_timeout))
    processes._watch = Watch(place, hosts, stop, hang_timeout, processes._leave)
    stop.leave = processes._leave
    processes._watch.start()
    return processes


def _start_service(place: Place) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "spectral_dist.cluster.control"]
    service = subprocess.Popen(
        [*command, str(place.port), str(place.count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert service.stdout is not None
    said = service.stdout.readline().strip()
    if said != "ready":
        raise ValueError(f"the control service cannot start: {said or 'it ended at once'}")
    return service


def _report_in(control: Any, place: Place, start_timeout: float) -> dict[int, str]:
    """Report this process, wait for all, and return their hosts."""
    until = time.monotonic() + start_timeout
    here: dict[str, str] = {}
    me = {"host": host_name(), "pid": os.getpid(), "job": place.job}
    reported = False
    while len(here) < place.count:
        if time.monotonic() > until:
            message = _who_is_missing(place, here, start_timeout)
            with contextlib.suppress(*_UNREACHABLE):  # for those that come too late
                control.put("gave_up", message)
            raise Ending(message, LOST)
        try:
            if not reported:
                control.put(f"here/{place.index}", json.dumps(me))
                reported = True
            here = json.loads(control.under("here"))
            ended = control.get("gave_up")
        except _UNREACHABLE:
            with contextlib.suppress(OSError):
                control("close")()
            ended = ""
        if ended:
            raise Ending(f"the others have given up: {ended}", LOST)
        time.sleep(_POLL_SECONDS)
    told = {int(index): json.loads(text) for index, text in here.items()}
    if told[place.index] != me:
        other = told[place.index]
        raise ValueError(
            f"two processes are number {place.index} of {place.count}: {other['pid']} on"
            f" {other['host']} and {me['pid']} on {me['host']}"
        )
    strangers = [i for i, one in told.items() if one["job"] != place.job]
    if strangers:
        raise ValueError(
            f"port {place.port} of {place.host} serves another job too; set JAX_COORDINATOR_PORT"
        )
    return {index: one["host"] for index, one in sorted(told.items())}


def _who_is_missing(place: Place, here: Mapping[str, str], start_timeout: float) -> str:
    limit = f"within start_timeout={start_timeout:g} s"
    if not here:
        return f"process 0 of {place.count} not reached at {place.host}:{place.port} {limit}"
    missing = [str(i) for i in range(place.count) if str(i) not in here]
    word = "process" if len(missing) == 1 else "processes"
    have = "has" if len(missing) == 1 else "have"
    return f"{word} {', '.join(missing)} of {place.count} {have} not reported in {limit}"


def _connect_jax(place: Place, port: int, start_timeout: int) -> None:
    """Join JAX's own service, as jax.distributed.initialize does but for starting the service."""
    import jax
    from jax._src import distributed
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    if place.local_devices is not None:
        visible = ",".join(map(str, place.local_devices))
        jax.config.update("jax_cuda_visible_devices", visible)
    host = f"[{place.host}]" if ":" in place.host else place.host
    state: Any = distributed.global_state
    state.client = _jax.get_distributed_runtime_client(
        f"{host}:{port}",
        place.index,
        init_timeout=start_timeout,
        heartbeat_timeout=3600,  # `Watch` is closer at it
        shutdown_on_destruction=False,
        use_compression=True,
    )
    state.client.connect()
    state.process_id, state.num_processes = place.index, place.count
    state.coordinator_address = f"{host}:{port}"
