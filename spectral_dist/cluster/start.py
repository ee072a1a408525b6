"""Distributed start: bring the processes of a run together before JAX looks for devices.

Owns the order of the start. Each process finds its index; process 0 starts the control service; all
report in there; then each connects to JAX's coordination service. Read `start_processes`.
"""

import contextlib
import dataclasses
import http
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral_dist.cluster.agreement import Processes, publish_end
from spectral_dist.cluster.client import UNREACHABLE, Client, connect
from spectral_dist.cluster.heartbeat import HeartbeatMonitor
from spectral_dist.cluster.identity import Identity, find_identity
from spectral_dist.cluster.relay import Relay
from spectral_dist.cluster.secret import find_secret, leave_secret, remove_secret
from spectral_dist.cluster.signals import StopSignal, leave
from spectral_dist.command_line import FAULT, STOPPED, Ending
from spectral_dist.fault_log import FaultLog

_POLL_SECONDS = 0.1
# Between two tries to start the service. An earlier run may hold the port for a while.
_RETRY_SECONDS = 1.0


def start_processes(
    stop: StopSignal, start_timeout: float, hang_timeout: float, folder: Path
) -> Processes:
    """Join the other processes of the run, if the environment names any.

    Args:
      stop: the signal handlers of this process.
      start_timeout: seconds in which every process must report in.
      hang_timeout: seconds without progress in any process after which the run has hung.
      folder: the run folder, which all processes see; the secret of the run is handed over in it.

    Raises:
      Ending: names the processes that did not report in.
      ValueError: if the environment variables are wrong or contradict each other.
    """
    identity = find_identity(os.environ)
    if identity is None:
        return Processes(stop)
    with stop.interruptible("waiting for the other processes"):
        service = None
        if identity.index == 0:
            identity = dataclasses.replace(identity, secret=leave_secret(folder, identity.job))
            service = _start_service(identity, start_timeout)
        # Before JAX's own service, because JAX aborts a process with a stack trace when another one
        # is missing there. Here the missing ones can be named.
        try:
            identity, control, hosts = _report_in(identity, folder, start_timeout)
        finally:
            if identity.index == 0:
                remove_secret(folder, identity.job)
        relay = Relay(identity.host, control.get("jax_port"))
        try:
            _join_jax_service(identity, relay, int(start_timeout))
        finally:
            relay.close()  # one connection is all that JAX makes

    # From here on, no process ends without telling the others why.
    def leave_all(message: str, code: int) -> None:
        publish_end(identity, message, code)
        leave(message if code in (STOPPED, 130) else f"error: {message}", code)

    stop.leave = leave_all
    log = FaultLog(folder, identity.index)
    monitor = HeartbeatMonitor(identity, hosts, stop, hang_timeout, leave_all, log.write_stacks)
    monitor.start()
    return Processes(stop, identity, control, monitor, service)


def _start_service(identity: Identity, start_timeout: float) -> "subprocess.Popen[str]":
    """Start the control service; retry as long as its port is taken, by an ending run for example.

    Raises:
      Ending: if it cannot listen within start_timeout seconds.
      ValueError: if this version of JAX has no coordination service that can be started.
    """
    command = [sys.executable, "-m", "spectral_dist.cluster.service"]
    until = time.monotonic() + start_timeout
    while True:
        service = subprocess.Popen(
            [*command, identity.host, str(identity.port), str(identity.count)],
            stdin=subprocess.PIPE,  # its end tells the service that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # It finds this package where we do: a checkout need not be installed.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert service.stdin is not None
        assert service.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its answer says why
            service.stdin.write(identity.secret + "\n")
            service.stdin.flush()
        answer = service.stdout.readline().strip()
        if answer == "ready":
            return service
        if service.wait() == 2:  # retrying would not help
            raise ValueError(answer)
        if time.monotonic() > until:
            why = answer or "it ended at once"
            raise Ending(f"the control service of the run cannot start: {why}", FAULT)
        time.sleep(_RETRY_SECONDS)


def _report_in(
    identity: Identity, folder: Path, start_timeout: float
) -> tuple[Identity, Client, dict[int, str]]:
    """Report this process and wait for all others.

    Returns:
      this process's identity, with the run's secret; a client of the control service; and the host
      of each process by its index.
    """
    until = time.monotonic() + start_timeout
    control, here, refused = connect(identity), dict[int, Any](), False
    me = {
        # SLURM's name: several of its nodes can be on one host, in tests for example.
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "pid": os.getpid(),
        "job": identity.job,
    }
    while len(here) < identity.count:
        if time.monotonic() > until:
            message = _who_is_missing(identity, here, start_timeout)
            if refused:
                message += (
                    f": the service there refuses the secret in {folder}; another run has its"
                    " port, or process 0 another folder"
                )
            elif not identity.secret:
                message += f": it has left no secret in {folder}, which all must see"
            # Those that report in later would otherwise wait in vain for us.
            with contextlib.suppress(*UNREACHABLE):
                control.put("gave_up", message)
            raise Ending(message, FAULT)
        if identity.index != 0:
            # Once all have reported in the file is gone: what was read before stays.
            found = find_secret(folder, identity.job) or identity.secret
            if found != identity.secret:
                identity = dataclasses.replace(identity, secret=found)
                control = connect(identity)
            if not found:  # process 0 may start later than this one
                time.sleep(_POLL_SECONDS)
                continue
        try:
            here = control.report(identity.index, me)
            ended = control.get("gave_up")
        except UNREACHABLE as error:
            # Process 0 may have started later than this one, and what lay in the folder was left by
            # an earlier start: try again.
            control.reconnect()
            ended, refused = None, getattr(error, "errcode", None) == http.HTTPStatus.UNAUTHORIZED
        if ended:
            raise Ending(f"another process gave up waiting: {ended}", FAULT)
        time.sleep(_POLL_SECONDS)
    _check_reports(here, me, identity)
    return identity, control, {index: here[index]["host"] for index in sorted(here)}


def _check_reports(
    reports: Mapping[int, Mapping[str, Any]], me: Mapping[str, Any], identity: Identity
) -> None:
    """Raise ValueError if two processes have one index, or belong to different jobs."""
    other = reports[identity.index]
    if other != me:
        raise ValueError(
            f"two processes have the index {identity.index} of {identity.count}: process id"
            f" {other['pid']} on {other['host']} and {me['pid']} on {me['host']}"
        )
    # SLURM's port follows from the job's number, and two jobs of one host can get the same.
    if any(report["job"] != identity.job for report in reports.values()):
        raise ValueError(
            f"port {identity.port} of {identity.host} is used by another job too; set"
            " JAX_COORDINATOR_PORT to a free one"
        )


def _who_is_missing(identity: Identity, here: Mapping[int, Any], start_timeout: float) -> str:
    limit = f"within start_timeout={start_timeout:g} s"
    if not here:
        return f"process 0 of {identity.count} not reached at {identity.address} {limit}"
    missing = [str(i) for i in range(identity.count) if i not in here]
    word = "process" if len(missing) == 1 else "processes"
    have = "has" if len(missing) == 1 else "have"
    return f"{word} {', '.join(missing)} of {identity.count} {have} not reported in {limit}"


def _join_jax_service(identity: Identity, relay: Relay, timeout: int) -> None:
    """Connect JAX to the other processes, and tell it which GPUs of this host to use."""
    import jax  # only now, so that all can report in before a slow disk has loaded it

    from spectral_dist.cluster import jax_service

    if identity.local_devices is not None:
        visible = ",".join(map(str, identity.local_devices))
        jax.config.update("jax_cuda_visible_devices", visible)
    jax_service.connect(relay.address, identity.index, identity.count, timeout)
