"""Remedies for a configuration that does not fit in memory, each tried by compiling it.

Owns the list of changes, the cheapest first, and the search through it. Read `find_remedy`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from spectral_dist.planning.compile import compile_programs, described_mesh
from spectral_dist.planning.hardware import Gpu
from spectral_dist.planning.memory import arguments, runtime_lines
from spectral_dist.settings import Config, with_values

# How many times the micro-batch is halved: each try is a compilation, which may take a minute.
_CHEAPEST_BATCHES = 3


@dataclass(frozen=True)
class Remedy:
    """A changed configuration that was compiled, and whether it fits.

    Attributes:
      flags: to add to the command line.
      devices: number of devices that it needs.
      peak: bytes per device of its largest program, of those that were compiled.
      spare: bytes left on the device; negative where it does not fit.
    """

    flags: str
    devices: int
    peak: int
    spare: int

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return self.spare >= 0


def try_remedies(
    config: Config, gpu: Gpu | None, usable: int | None, most: int, say: Callable[[str], None]
) -> list[Remedy]:
    """Return the changes that were tried, the last of which fits if any does.

    Args:
      config: the run that does not fit.
      gpu: of each device; None for the CPU.
      usable: bytes of a device.
      most: the number of devices that fsdp may grow to.
      say: called with a line for each.
    """
    remedies = []
    for remedy in find_remedy(config, _trial(gpu, usable, most), most):
        remedies.append(remedy)
        say(f"tried {remedy.flags}: {'fits' if remedy.fits else 'does not fit'}")
    return remedies


def _trial(gpu: Gpu | None, usable: int | None, most: int) -> Callable[[Config], tuple[int, int]]:
    """Return a function that compiles a configuration until one of its programs does not fit."""

    def try_one(config: Config) -> tuple[int, int]:
        assert usable is not None, "a remedy is looked for where there is a limit"
        count = math.prod(config.mesh.shape)
        mesh = described_mesh(gpu, config.mesh.shape, min(count, most), config.mesh.axes)
        added = sum(line.bytes for line in runtime_lines(gpu, config)) if gpu else 0
        peak = sum(array.bytes for array in arguments(config, mesh))
        # Where the state alone is too large, compiling says nothing more.
        if peak + added <= usable:
            for program in compile_programs(config, mesh):
                peak = max(peak, program.peak)
                if peak + added > usable:
                    break
        return peak, usable - added - peak

    return try_one


def find_remedy(
    config: Config, try_one: Callable[[Config], tuple[int, int]], gpus_per_host: int
) -> Iterator[Remedy]:
    """Yield changes as they are tried, up to the first that fits.

    The batch of a step stays: where batch_size is halved, accum_steps is doubled.

    Args:
      config: the run that does not fit.
      try_one: compiles a configuration; returns the peak and the spare bytes of a device.
      gpus_per_host: the most devices that fsdp may grow to.
    """
    for flags in changes(config, gpus_per_host):
        try:
            changed = with_values(config, flags)
            peak, spare = try_one(changed)
        except ValueError:  # the mesh cannot divide the batch or an array
            continue
        text = " ".join(f"--{name}={value}" for name, value in flags.items())
        size = changed.mesh.shape
        remedy = Remedy(text, size[0] * size[1] * size[2], peak, spare)
        yield remedy
        if remedy.fits:
            return


def changes(config: Config, gpus_per_host: int) -> Iterator[dict[str, Any]]:
    """Yield the settings to change, the cheapest first.

    First those that cost time (smaller micro-batches, activation checkpointing), then those that
    cost communication (fsdp in place of data), then more devices.
    """
    full: dict[str, Any] = {} if config.model.remat == "full" else {"remat": "full"}
    batches = list(_smaller_batches(config))
    # One halving first, as it costs least: remat=full adds 2 FLOPs to the 6 of a weight and token.
    yield from batches[:1]
    if full:
        yield full
    yield from (batch | full for batch in (batches if full else batches[1:]))
    smallest = (batches[-1] if batches else {}) | full
    data, fsdp, tensor = config.mesh.shape
    # Sharding over fsdp in place of replicating over data divides the state, on the same devices.
    while data % 2 == 0:
        data, fsdp = data // 2, fsdp * 2
        yield {"mesh": f"{data}x{fsdp}x{tensor}"} | smallest
    while data * fsdp * tensor < gpus_per_host:
        fsdp *= 2
        # More shards need more sequences in a micro-batch, so the halvings are counted anew.
        moved = dataclasses.replace(config.mesh, mesh=f"{data}x{fsdp}x{tensor}")
        batches = list(_smaller_batches(dataclasses.replace(config, mesh=moved)))
        yield {"mesh": moved.mesh} | (batches[-1] if batches else {}) | full


def _smaller_batches(config: Config) -> Iterator[dict[str, Any]]:
    shards = config.mesh.shape[0] * config.mesh.shape[1]
    batch, accum = config.data.batch_size, config.data.accum_steps
    for _ in range(_CHEAPEST_BATCHES):
        if batch % 2 or batch // 2 % shards:
            return
        batch, accum = batch // 2, accum * 2
        yield {"batch_size": batch, "accum_steps": accum}
