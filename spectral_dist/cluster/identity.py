"""Process index, process count and the coordinator's address, from SLURM's or JAX's variables.

Owns those environment variables. Starts nothing, imports no JAX. Read `find_identity`.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# SLURM assigns no port, so it is derived from the job's number: all processes of a job find the
# same one without talking to each other. Linux gives outgoing connections ports up to 60999.
_FIRST_PORT, _PORTS = 61440, 4096
_SLURM = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
_JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclass(frozen=True)
class Identity:
    """One process of a run, as the launcher or the scheduler numbered it.

    Attributes:
      host: host of process 0, the coordinator.
      port: port of the control service, on that host.
      index: index of this process, from 0.
      count: number of processes.
      local_devices: indices of this process's GPUs on its host; None for all visible ones.
      job: a text that is the same in all processes of a job, and different in every other job.
      secret: of the run (secret.py); "" until it is known.
    """

    host: str
    port: int
    index: int
    count: int
    local_devices: tuple[int, ...] | None
    job: str
    secret: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """Host and port of the control service, joined as in a URL."""
        return join_address(self.host, self.port)

    @property
    def is_local(self) -> bool:
        """Whether all processes are on one host, so that no other host need reach the services."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address stands for this host alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def join_address(host: str, port: int) -> str:
    """Return host:port; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def find_identity(environment: Mapping[str, str]) -> Identity | None:
    """Return the identity of this process, or None for a run of a single process.

    It is read from JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
    else from the variables that srun sets for each task of a step.

    Raises:
      ValueError: names the variable that is missing or has a wrong value.
    """
    # JAX's variables first: `spectral_dist.launch` sets them, also inside a SLURM job.
    if any(name in environment for name in _JAX):
        return _from_jax(environment)
    # The step's count, not the job's: a batch script itself is one process of a job of many tasks.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _from_slurm(environment)
    return None


def _from_jax(environment: Mapping[str, str]) -> Identity | None:
    for name in _JAX:
        if not environment.get(name):
            raise ValueError(f"{name}: must be set, because others of {', '.join(_JAX)} are")
    count, index = (_number(environment, name) for name in _JAX[1:])
    if not 0 <= index < count:
        raise ValueError(f"JAX_PROCESS_ID={index}: must be below JAX_NUM_PROCESSES={count}")
    if count == 1:
        return None
    address = environment["JAX_COORDINATOR_ADDRESS"]
    host, _, port = address.rpartition(":")  # the last colon: an IPv6 address holds more
    if not host or not port.isdigit():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address!r}: must be host:port")
    devices = None
    if given := environment.get("JAX_LOCAL_DEVICE_IDS"):
        if not all(part.strip().isdigit() for part in given.split(",")):
            raise ValueError(f"JAX_LOCAL_DEVICE_IDS={given!r}: must be numbers joined by commas")
        devices = tuple(int(part) for part in given.split(","))
    return Identity(host.strip("[]"), int(port), index, count, devices, address)


def _from_slurm(environment: Mapping[str, str]) -> Identity:
    for name in _SLURM:
        if not environment.get(name):
            raise ValueError(f"{name}: srun did not set it; start the tasks with srun")
    job = environment["SLURM_JOB_ID"]
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    # A restarted job uses another port: a process left from before may still hold the old one.
    shift = int(job) + _PORTS // 16 * int(restart)
    port = environment.get("JAX_COORDINATOR_PORT") or _FIRST_PORT + shift % _PORTS
    # With several tasks on a host, each takes the GPU of its local number, unless SLURM shows it
    # one GPU only. The count reads "2(x3)" where three hosts have two tasks each.
    alone = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0] == "1"
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    one = alone or (visible != "" and "," not in visible)
    step = environment.get("SLURM_STEP_ID", "0")
    return Identity(
        host=first_host(environment["SLURM_STEP_NODELIST"]),
        port=int(port),
        index=_number(environment, "SLURM_PROCID"),
        count=_number(environment, "SLURM_STEP_NUM_TASKS"),
        local_devices=None if one else (_number(environment, "SLURM_LOCALID"),),
        job=f"{job}.{step}.{restart}",
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name}={text!r}: must be a number")
    return int(text)


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list, as in "gpu[003-008,011],login"."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", nodes)
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes!r}: no host in it")
    return "".join(part or "" for part in found.groups())
