"""`--mesh=auto`: choose mesh, batch split and activation checkpointing for given devices.

Owns the two stages: a search by the training step alone, then a check of all programs of the best
candidate, and of the next one where those do not fit. Read `choose`; training calls `choose_mesh`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from spectral_dist.mesh import attached_devices
from spectral_dist.planning.compile import Program
from spectral_dist.planning.hardware import GPU_NAMES, Gpu, find_gpu
from spectral_dist.planning.memory import GIB
from spectral_dist.planning.search.cache import Cache, default_cache
from spectral_dist.planning.search.candidates import Candidate, chosen_config
from spectral_dist.planning.search.search import room, search
from spectral_dist.planning.search.workers import Cluster, Failure, Workers
from spectral_dist.settings import Config


@dataclass(frozen=True)
class Choice:
    """The chosen configuration, its compiled programs and the ranking that it comes from.

    Attributes:
      config: of the best candidate whose programs all fit; if none do, of the nearest.
      fits: whether its programs fit.
      programs: all of its programs; only the first, the training step, has its text.
      ranking: every candidate, the best first.
    """

    config: Config
    fits: bool
    programs: list[Program]
    ranking: list[Candidate]


def choose(
    config: Config,
    cluster: Cluster,
    say: Callable[[str], None],
    cache: Cache | None = None,
    workers: int | None = None,
) -> Choice:
    """Choose mesh, batch_size, accum_steps, remat and unroll for a cluster.

    The batch of a step, batch_size x accum_steps, stays as given.

    Args:
      config: the run; its mesh is ignored.
      cluster: the devices.
      say: called with each line of progress.
      cache: of compilation results (default: the user's).
      workers: processes at a time (default: as many as this machine has cores and memory for).

    Raises:
      ValueError: if nothing can run on these devices, or nothing could be compiled.
    """
    ruled_out: dict[Config, str] = {}
    with Workers(cluster, cache or default_cache(), count=workers) as compiling:
        while True:
            ranking = search(config, cluster, compiling, ruled_out=ruled_out, say=say)
            best = ranking[0]
            chosen = chosen_config(config, best)
            # The search compiles training steps alone; an evaluation with a long context may need
            # more memory. All programs of all candidates would take several times as long.
            say(f"all programs of {best.flags}")
            programs = compiling.whole(chosen)
            if isinstance(programs, Failure):
                # A best candidate with a reason does not fit: then none does, and this is the
                # nearest.
                if best.reason:
                    raise ValueError(f"mesh=auto: nothing fits; {best.flags}: {programs.reason}")
                ruled_out[chosen] = programs.reason
                continue
            largest = max(programs, key=lambda program: program.peak)
            limit = room(chosen, cluster)
            over = 0 if limit is None else largest.peak - limit
            if over <= 0 or best.reason:
                return Choice(chosen, over <= 0, programs, ranking)
            # The next search finds everything in the cache, except what this opens up.
            ruled_out[chosen] = f"{largest.name}: {over / GIB:.2f} GiB too much"


def choose_mesh(config: Config, cluster: Cluster, say: Callable[[str], None]) -> Config:
    """Return the configuration to train with on attached devices.

    Call it before anything is allocated on them, and in one process only if several train together.

    Raises:
      ValueError: if nothing fits.
    """
    choice = choose(config, cluster, say)
    best = choice.ranking[0]
    if not choice.fits:
        raise ValueError(
            f"mesh=auto: none of {len(choice.ranking)} candidates fits on {cluster.text};"
            f" the nearest is {best.flags} ({best.reason})"
        )
    say(f"mesh=auto: {best.flags}, the best of {len(choice.ranking)} candidates")
    return choice.config


def described(
    gpu: Gpu | None, hosts: int | None, per_host: int | None, usable: int | None
) -> Cluster:
    """Return the cluster that a dry run describes.

    Args:
      gpu: of each device; None for the CPU.
      hosts: number of hosts; None for a single host with the fake devices of XLA_FLAGS.
      per_host: devices of each host; None in the same case.
      usable: bytes of a device, in place of the table's.
    """
    usable = gpu.memory_bytes if usable is None and gpu is not None else usable
    return Cluster(gpu, hosts or 1, per_host or len(jax.devices("cpu")), usable)


def attached(devices: list[Any] | None = None) -> Cluster:
    """Return the cluster of the attached devices.

    Fake CPU devices stand in for a GPU that is not in the table, with the GPU's own memory limit
    where JAX knows it.

    Args:
      devices: all devices of all processes (default: JAX's).
    """
    devices = attached_devices() if devices is None else devices
    hosts = len({device.process_index for device in devices})
    gpus = (find_gpu(name) for name in GPU_NAMES)
    gpu = next((gpu for gpu in gpus if gpu.device_kind == devices[0].device_kind), None)
    # memory_stats() works for the devices of this process only; all are taken to be alike.
    own = next(device for device in devices if device.process_index == jax.process_index())
    # The pool is what JAX took of the memory: 0.75 of it unless XLA_PYTHON_CLIENT_MEM_FRACTION is
    # set. That is the limit for arrays, and not the memory of the GPU.
    pool = (own.memory_stats() or {}).get("bytes_limit")
    usable = gpu.memory_bytes if pool is None and gpu is not None else pool
    return Cluster(gpu, hosts, len(devices) // hosts, usable, pool=pool is not None)
