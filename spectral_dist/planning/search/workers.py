"""Compiling candidates in processes of their own, and keeping what came out.

Owns the worker processes: how many, their environment, their time, and what becomes of one that
dies. Its results are kept by content. This process compiles nothing and keeps its devices to
itself. Read `Workers`.
"""

import contextlib
import dataclasses
import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_dist.planning.compile import Program, find_compiler
from spectral_dist.planning.hardware import Gpu
from spectral_dist.planning.search.cache import Cache
from spectral_dist.settings import SETTINGS, Config
from spectral_dist.subprocesses import ModuleProcess

_WORKER = "spectral_dist.planning.search.worker"
# A worker that compiles a step of level 3 takes 0.95 GB.
_WORKER_BYTES = 2 * 2**30
_STEP_SECONDS = 600.0
_ALL_SECONDS = 3600.0


@dataclass(frozen=True)
class Cluster:
    """The devices to choose for.

    Attributes:
      gpu: their kind; None for fake devices of the processor.
      hosts: how many.
      per_host: devices of each.
      usable: bytes of a device; None where no limit is known.
      pool: whether `usable` is the pool that JAX keeps its arrays in, so that what the runtime
        takes beside it is no part of it.
    """

    gpu: Gpu | None
    hosts: int
    per_host: int
    usable: int | None = None
    pool: bool = False

    @property
    def count(self) -> int:
        """All devices."""
        return self.hosts * self.per_host

    @property
    def text(self) -> str:
        """What the user calls them."""
        kind = "fake device" if self.gpu is None else self.gpu.device_kind
        return f"{self.hosts} x {self.per_host} {kind}"


@dataclass(frozen=True)
class Outcome:
    """What compiling a candidate showed: bytes of a device, seconds of a step by the model.

    Attributes:
      peak: of the programs that were compiled.
      kernel_seconds: of the kernels.
      communication_seconds: of all collectives.
      exposed_seconds: the part of them that no kernel hides.
      tokens_per_second: over all devices.
    """

    peak: int
    kernel_seconds: float
    communication_seconds: float
    exposed_seconds: float
    tokens_per_second: float

    @property
    def step_seconds(self) -> float:
        """Of a step."""
        return self.kernel_seconds + self.exposed_seconds

    @property
    def exposed_share(self) -> float:
        """The part of the communication that is exposed; 1 where there is none."""
        whole = self.communication_seconds
        return self.exposed_seconds / whole if whole > 0 else 1.0


@dataclass(frozen=True)
class Failure:
    """Why a candidate could not be compiled.

    Attributes:
      reason: in one line.
      lasting: whether another try would fail too.
    """

    reason: str
    lasting: bool


Found = Outcome | Failure


@dataclass(frozen=True)
class Task:
    """One training step to compile.

    Attributes:
      config: the candidate.
      unlimited: as if the device's memory had no end; then the compiler computes nothing again
        that it was told to keep.
    """

    config: Config
    unlimited: bool


class Workers:
    """Processes that compile for one cluster, a few at a time."""

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        *,
        count: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
          cluster: the devices to compile for.
          cache: where results are kept.
          count: processes at a time (default: the cores, as far as memory allows).
          seconds: limit of one process.
        """
        self.count = count or default_count()
        self._cluster, self._cache, self._seconds = cluster, cache, seconds
        self._done: queue.SimpleQueue[tuple[Task, Found]] = queue.SimpleQueue()
        self._running: dict[Task, ModuleProcess | None] = {}
        self._closed = False

    def __enter__(self) -> "Workers":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every process that is still running."""
        self._closed = True
        for process in list(self._running.values()):
            if process is not None:
                process.stop(grace=0)

    @property
    def busy(self) -> int:
        """Tasks that are being worked on."""
        return len(self._running)

    def recall(self, task: Task) -> Found | None:
        """Return what came out of a task before, if it is known."""
        return _read_found(self._cache.read(self._question(task, whole=False)))

    def start(self, task: Task) -> None:
        """Begin a task."""
        self._running[task] = None

        def work() -> None:
            self._done.put((task, self._run(task, whole=False)[0]))

        threading.Thread(target=work, daemon=True).start()

    def wait(self) -> tuple[Task, Found]:
        """Return the next task that is through, and what came out."""
        task, found = self._done.get()
        del self._running[task]
        return task, found

    def whole(self, config: Config) -> list[Program] | Failure:
        """Return all programs of a candidate, from before or compiled now; one text, the first."""
        task = Task(config, unlimited=False)
        if programs := _read_programs(self._cache.read(self._question(task, whole=True))):
            return programs
        found, programs = self._run(task, whole=True)
        self._running.pop(task, None)
        return found if isinstance(found, Failure) else programs

    def _question(self, task: Task, *, whole: bool) -> dict[str, Any]:
        """Return all that an answer depends on."""
        gpu = self._cluster.gpu
        flat = task.config.flat()
        settings = {k: v for k, v in flat.items() if k in SETTINGS and SETTINGS[k].traits.compiled}
        return self._request(task, whole=whole) | {
            "config": settings,
            "target": None if gpu is None else gpu.target,
            "compiler": dataclasses.asdict(find_compiler(gpu)),
            "flags": _xla_flags(),
        }

    def _request(self, task: Task, *, whole: bool) -> dict[str, Any]:
        gpu = self._cluster.gpu
        return {
            "config": task.config.flat(),
            "gpu": None if gpu is None else gpu.name,
            "per_host": self._cluster.per_host,
            "unlimited": task.unlimited and gpu is not None,
            "whole": whole,
        }

    def _run(self, task: Task, *, whole: bool) -> tuple[Found, list[Program]]:
        """Compile in a process of its own, and keep what came out unless it may be chance."""
        limit = self._seconds or (_ALL_SECONDS if whole else _STEP_SECONDS)
        request = self._request(task, whole=whole)
        try:
            process = ModuleProcess(
                _WORKER, request=request, environment=_environment(), seconds=limit
            )
        except OSError as error:
            return Failure(f"no worker process could be started: {error}", lasting=False), []
        with process:
            self._running[task] = process
            if self._closed:
                process.stop(grace=0)
            events = list(process.events())
            ending = process.ending()
        said = events[-1] if events else None
        found, programs = _read_found(said), _read_programs(said)
        if found is None or (whole and not programs and isinstance(found, Outcome)):
            return Failure(f"its worker process {ending}", lasting=False), []
        assert said is not None
        self._cache.write(self._question(task, whole=whole), said)
        return found, programs


def _read_found(said: Any) -> Found | None:
    """Read an answer; None if it is none."""
    with contextlib.suppress(KeyError, TypeError):
        if "error" in said:
            return Failure(str(said["error"]), lasting=True)
        return Outcome(**said["outcome"])
    return None


def _read_programs(said: Any) -> list[Program]:
    with contextlib.suppress(KeyError, TypeError):
        return [Program(**p | {"warnings": tuple(p["warnings"])}) for p in said["programs"]]
    return []


def _environment() -> dict[str, str | None]:
    """Return what a worker's environment has in place of ours: it sees no accelerator."""
    return {
        "JAX_PLATFORM_NAME": None,
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "XLA_FLAGS": _xla_flags(),
        "TF_CPP_MIN_LOG_LEVEL": "0",  # the compiler's warnings are part of the report
    }


def _xla_flags() -> str:
    """Return XLA_FLAGS but for the count of fake devices: a worker makes what its mesh needs."""
    words = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(w for w in words if "xla_force_host_platform_device_count" not in w)


def default_count() -> int:
    """Return how many workers this machine has cores and memory for, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, free_bytes() // _WORKER_BYTES))


def free_bytes() -> int:
    """Return the memory of this machine that is free or can be freed, as far as it can be told."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return _WORKER_BYTES
