"""Bringing the processes of a run together, before JAX looks for devices.

Owns the order of the beginning: who am I, the lead starts the control service, everybody reports
in, and only then JAX's own service is joined, because that ends a process by an abort when another
one is missing. Read `start_processes`.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from spectral_dist.cluster.group import Processes, publish_end
from spectral_dist.cluster.place import Place, find_place
from spectral_dist.cluster.signals import StopSignal, leave
from spectral_dist.cluster.watch import UNREACHABLE, Watch, connect
from spectral_dist.command_line import LOST, STOPPED, Ending

_POLL_SECONDS = 0.1
_RETRY_SECONDS = 1.0


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
    if place is None:
        return Processes(stop)
    with stop.interruptible("waiting for the other processes"):
        service = _start_service(place, start_timeout) if place.index == 0 else None
        control = connect(place)
        hosts = _report_in(control, place, start_timeout)
        _connect_jax(place, int(control.get("jax_port")), int(start_timeout))

    def leave_all(message: str, code: int) -> None:
        publish_end(place, message, code)
        leave(message if code in (STOPPED, 130) else f"error: {message}", code)

    stop.leave = leave_all
    watch = Watch(place, hosts, stop, hang_timeout, leave_all)
    watch.start()
    return Processes(stop, place, control, watch, service)


def _start_service(place: Place, start_timeout: float) -> "subprocess.Popen[str]":
    """Start the control service; where its port is taken, by a run that is ending say, wait."""
    command = [sys.executable, "-m", "spectral_dist.cluster.control"]
    until = time.monotonic() + start_timeout
    while True:
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
        if said == "ready":
            return service
        service.wait()
        if time.monotonic() > until:
            why = said or "it ended at once"
            raise Ending(f"the control service of the run cannot start: {why}", LOST)
        time.sleep(_RETRY_SECONDS)


def _report_in(control: Any, place: Place, start_timeout: float) -> dict[int, str]:
    """Report this process, wait for all, and return their hosts."""
    until = time.monotonic() + start_timeout
    here: dict[str, str] = {}
    me = {
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "pid": os.getpid(),
        "job": place.job,
    }
    while len(here) < place.count:
        if time.monotonic() > until:
            message = _who_is_missing(place, here, start_timeout)
            with contextlib.suppress(*UNREACHABLE):  # for those that come too late
                control.put("gave_up", message)
            raise Ending(message, LOST)
        try:
            here = json.loads(control.report(str(place.index), json.dumps(me)))
            ended = control.get("gave_up")
        except UNREACHABLE:
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
