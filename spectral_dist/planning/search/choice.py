"""`--mesh=auto`: from a configuration and the devices to the configuration to run.

Owns the order of things: search by the training step, then all programs of the best candidate, and
the next one where those do not fit. Read `choose`; training calls `choose_mesh`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from spectral_dist.planning.compile import Program
from spectral_dist.planning.hardware import CPU, GPU_NAMES, find_gpu
from spectral_dist.planning.memory import GIB
from spectral_dist.planning.search.cache import Cache, default_cache
from spectral_dist.planning.search.search import Candidate, chosen_config, room, search
from spectral_dist.planning.search.workers import Cluster, Failure, Workers
from spectral_dist.settings import Config


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
      config: of the best candidate that fits as a whole; where none does, of the nearest.
      fits: whether it does.
      programs: all of it, compiled; the text of the first alone.
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
    """Choose mesh, batch_size, accum_steps and remat for a cluster.

    The step's batch stays: batch_size x accum_steps as given.

    Args:
      config: the run; its mesh is not looked at.
      cluster: the devices.
      say: told what is compiled.
      cache: where results are kept (default: the user's).
      workers: processes at a time (default: what this machine has cores and memory for).

    Raises:
      ValueError: if nothing can run on these devices, or nothing could be compiled.
    """
    ruled_out: dict[Config, str] = {}
    with Workers(cluster, cache or default_cache(), count=workers) as compiling:
        while True:
            ranking = search(config, cluster, compiling, ruled_out=ruled_out, say=say)
            best = ranking[0]
            chosen = chosen_config(config, best)
            say(f"all programs of {best.flags}")
            programs = compiling.whole(chosen)
            if isinstance(programs, Failure):
                if best.reason:
                    raise ValueError(f"mesh=auto: nothing fits; {best.flags}: {programs.reason}")
                ruled_out[chosen] = programs.reason
                continue
            largest = max(programs, key=lambda program: program.peak)
            limit = room(chosen, cluster)
            over = 0 if limit is None else largest.peak - limit
            if over <= 0 or best.reason:
                return Choice(chosen, over <= 0, programs, ranking)
            ruled_out[chosen] = f"{largest.name}: {over / GIB:.2f} GiB too much"


def choose_mesh(config: Config, cluster: Cluster, say: Callable[[str], None]) -> Config:
    """Return the configuration to train with on attached devices.

    To be called before anything is made on them; where several processes train together, by one.

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
    gpu_name: str, hosts: int | None, per_host: int | None, usable: int | None
) -> Cluster:
    """Return the cluster that a dry run describes.

    Args:
      gpu_name: a GPU of the table, or "cpu".
      hosts: how many; None for one, of all fake devices that XLA_FLAGS asks for.
      per_host: devices of each; None in the same case.
      usable: bytes of a device, in place of the table's.

    Raises:
      ValueError: if the table has no such GPU.
    """
    gpu = None if gpu_name == CPU else find_gpu(gpu_name)
    usable = gpu.memory_bytes if usable is None and gpu is not None else usable
    return Cluster(gpu, hosts or 1, per_host or len(jax.devices("cpu")), usable)


def attached(devices: list[Any] | None = None) -> Cluster:
    """Return the cluster that this process is part of.

    A kind of GPU that is not in the table is stood for by fake devices of the processor, with the
    GPU's own limit of memory if JAX tells it.

    Args:
      devices: all of them (default: JAX's).
    """
    devices = jax.devices() if devices is None else devices
    hosts = len({device.process_index for device in devices})
    gpus = (find_gpu(name) for name in GPU_NAMES)
    gpu = next((gpu for gpu in gpus if gpu.device_kind == devices[0].device_kind), None)
    own = next(device for device in devices if device.process_index == jax.process_index())
    pool = (own.memory_stats() or {}).get("bytes_limit")
    usable = gpu.memory_bytes if pool is None and gpu is not None else pool
    return Cluster(gpu, hosts, len(devices) // hosts, usable, pool=pool is not None)
