"""Pool of worker processes that compile the candidates of `--mesh=auto`, with a cache of results.

Owns the worker processes: how many, their environment, their time limit, and what becomes of one
that dies. A process of its own for each candidate, because a compilation may crash or run out of
memory, and because this process may hold the GPUs. Read `Workers`.
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
# A worker that compiles a step of level 3 takes 0.95 GB, and 1.24 GB was the most in a search.
_WORKER_BYTES = 2 * 2**30
# Limits on a training step and on all programs, far above the minute that one takes on two cores.
_STEP_SECONDS = 600.0
_ALL_SECONDS = 3600.0


@dataclass(frozen=True)
class Cluster:
    """The devices to choose for.

    Attributes:
      gpu: their kind; None for fake CPU devices.
      hosts: number of hosts.
      per_host: devices of each host.
      usable: bytes of a device; None where no limit is known.
      pool: whether `usable` is JAX's memory pool for arrays, which excludes what the runtime takes.
    """

    gpu: Gpu | None
    hosts: int
    per_host: int
    usable: int | None = None
    pool: bool = False

    @property
    def count(self) -> int:
        """The number of devices."""
        return self.hosts * self.per_host

    @property
    def text(self) -> str:
        """The cluster as messages name it, such as 4 x 8 NVIDIA L4."""
        kind = "fake device" if self.gpu is None else self.gpu.device_kind
        return f"{self.hosts} x {self.per_host} {kind}"


@dataclass(frozen=True)
class Outcome:
    """Peak memory and predicted step time of a compiled candidate.

    Attributes:
      peak: bytes on a device, the most of the programs that were compiled.
      kernel_seconds: of the kernels.
      communication_seconds: of all collectives, hidden or exposed.
      exposed_seconds: communication that does not overlap with kernels.
      tokens_per_second: over all devices.
    """

    peak: int
    kernel_seconds: float
    communication_seconds: float
    exposed_seconds: float
    tokens_per_second: float

    @property
    def step_seconds(self) -> float:
        """Predicted time of a step."""
        return self.kernel_seconds + self.exposed_seconds

    @property
    def exposed_share(self) -> float:
        """The share of the communication that is exposed, in [0, 1]; 1 where there is none."""
        # 1 and not 0: the search takes the least over all candidates, and one that communicates
        # nothing must not lower it.
        whole = self.communication_seconds
        return self.exposed_seconds / whole if whole > 0 else 1.0


@dataclass(frozen=True)
class Failure:
    """Why a candidate could not be compiled.

    Attributes:
      reason: in one line.
      lasting: whether another try would fail too; only then is it cached.
    """

    reason: str
    lasting: bool


Found = Outcome | Failure


@dataclass(frozen=True)
class Task:
    """One training step to compile.

    Attributes:
      config: the candidate.
      unlimited: with unlimited device memory, so that XLA recomputes only what activation
        checkpointing says.
    """

    config: Config
    unlimited: bool


class Workers:
    """A pool of processes that compile candidates for one cluster.

    Use it as a context manager: leaving the block ends the processes that still run.
    """

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        *,
        count: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Set up the pool; no process starts yet.

        Args:
          cluster: the devices to compile for.
          cache: of results.
          count: processes at a time (default: one for each core, as far as memory allows).
          seconds: time limit of one process.
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
        """End every process that still runs."""
        # First the flag: a thread that is about to start a process then stops it itself.
        self._closed = True
        for process in list(self._running.values()):
            if process is not None:
                process.stop(grace=0)

    @property
    def busy(self) -> int:
        """The number of tasks that are running."""
        return len(self._running)

    def recall(self, task: Task) -> Found | None:
        """Return the cached result of a task, or None."""
        return _read_found(self._cache.read(self._question(task, whole=False)))

    def start(self, task: Task) -> None:
        """Start compiling a task, without waiting for it."""
        self._running[task] = None

        def work() -> None:
            self._done.put((task, self._run(task, whole=False)[0]))

        # The thread only waits for its process. A daemon, so that Ctrl-C does not wait for it.
        threading.Thread(target=work, daemon=True).start()

    def wait(self) -> tuple[Task, Found]:
        """Wait for the next task that finishes; return it and its result."""
        task, found = self._done.get()
        del self._running[task]
        return task, found

    def whole(self, config: Config) -> list[Program] | Failure:
        """Return all programs of a candidate, cached or compiled now; the first has its text."""
        task = Task(config, unlimited=False)
        if programs := _read_programs(self._cache.read(self._question(task, whole=True))):
            return programs
        found, programs = self._run(task, whole=True)
        self._running.pop(task, None)
        return found if isinstance(found, Failure) else programs

    def _question(self, task: Task, *, whole: bool) -> dict[str, Any]:
        """Return everything that an answer depends on: the key of the cache."""
        gpu = self._cluster.gpu
        # Settings that change no program, as the name of a run, must not cause a cache miss.
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
            "links": gpu and [gpu.inside.bytes_per_second, gpu.between.bytes_per_second],
            "per_host": self._cluster.per_host,
            "unlimited": task.unlimited and gpu is not None,
            "whole": whole,
        }

    def _run(self, task: Task, *, whole: bool) -> tuple[Found, list[Program]]:
        """Compile in a process of its own, and cache the result unless it may be chance."""
        limit = self._seconds or (_ALL_SECONDS if whole else _STEP_SECONDS)
        request = self._request(task, whole=whole)
        try:
            process = ModuleProcess(
                _WORKER, request=request, environment=_environment(), seconds=limit
            )
        except OSError as error:
            return Failure(f"no worker process could be started: {error}", lasting=False), []
        with process:
            # From here on __exit__ can stop it; if it has run already, the flag tells us.
            self._running[task] = process
            if self._closed:
                process.stop(grace=0)
            events = list(process.events())
            ending = process.ending()
        answer = events[-1] if events else None
        found, programs = _read_found(answer), _read_programs(answer)
        # A crash, a kill for lack of memory or the time limit may not happen again: not cached.
        if found is None or (whole and not programs and isinstance(found, Outcome)):
            return Failure(f"its worker process {ending}", lasting=False), []
        assert answer is not None
        self._cache.write(self._question(task, whole=whole), answer)
        return found, programs


def _read_found(answer: Any) -> Found | None:
    """Return the result in a worker's answer, or None if there is none."""
    # Whatever a cached file or a dying process holds, it is at worst no answer.
    with contextlib.suppress(KeyError, TypeError):
        if "error" in answer:
            return Failure(str(answer["error"]), lasting=True)
        return Outcome(**answer["outcome"])
    return None


def _read_programs(answer: Any) -> list[Program]:
    with contextlib.suppress(KeyError, TypeError):
        return [Program(**p | {"warnings": tuple(p["warnings"])}) for p in answer["programs"]]
    return []


def _environment() -> dict[str, str | None]:
    """Return the changes to this process's environment: a worker sees no accelerator."""
    # A second JAX process on this machine's GPUs would find their memory taken, or take it.
    return {
        "JAX_PLATFORM_NAME": None,
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "XLA_FLAGS": _xla_flags(),
        "TF_CPP_MIN_LOG_LEVEL": "0",  # the compiler's warnings are part of the report
    }


def _xla_flags() -> str:
    """Return XLA_FLAGS without the count of fake devices: a worker makes as many as it needs."""
    words = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(w for w in words if "xla_force_host_platform_device_count" not in w)


def default_count() -> int:
    """Return the number of workers that this machine has cores and memory for, at least one."""
    # The affinity counts the cores that Slurm or taskset gives us, not those of the machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, free_bytes() // _WORKER_BYTES))


def free_bytes() -> int:
    """Return the available memory of this host in bytes, or an estimate where it is unknown."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    # Other systems than Linux do not say what is free: half of all memory.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return _WORKER_BYTES
