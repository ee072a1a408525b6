"""`python -m benchmarks.links`: the rates of the links between the attached devices.

An all-gather between the devices of each host, and one between hosts with all their devices at
once, as a training step has them. Its figures are flags of the dry run. On several hosts start it
once on each, under SLURM: `srun --ntasks-per-node=1 python -m benchmarks.links`. Read `measure`.
"""

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_dist.command_line import Parser, run_main

WARM_UP = 3


@dataclass(frozen=True)
class Rate:
    """The measured rate of one kind of link.

    Attributes:
      flag: of the dry run, which takes it.
      where: the link, in words.
      seconds: of one all-gather, the median.
      sent: bytes that one device sends in it.
      bytes_per_second: of a device (inside a host), or of a host with all its devices (between).
    """

    flag: str
    where: str
    seconds: float
    sent: float
    bytes_per_second: float


def by_host(devices: Sequence[Any]) -> np.ndarray:
    """Return the devices as an array [hosts, devices of a host].

    Raises:
      ValueError: if the hosts do not have the same number of devices.
    """
    hosts: dict[int, list[Any]] = defaultdict(list)
    for device in devices:
        hosts[device.process_index].append(device)
    counts = {len(found) for found in hosts.values()}
    if len(counts) > 1:
        raise ValueError(f"devices: hosts have {sorted(counts)} of them; must be equally many")
    return np.array([hosts[index] for index in sorted(hosts)])


def measure(devices: np.ndarray, megabytes: int, repeats: int) -> list[Rate]:
    """Return the rate of each kind of link that joins the devices.

    Args:
      devices: [hosts, devices of a host].
      megabytes: 2^20 bytes that each device contributes to an all-gather.
      repeats: how often it is timed.
    """
    mesh = Mesh(devices, ("host", "device"))
    hosts, count = devices.shape
    kinds = [
        ("device", count, "--inside_gb_per_s", f"inside a host, {count} devices", 1),
        (
            "host",
            hosts,
            "--between_gb_per_s",
            f"between {hosts} hosts, {count} devices each",
            count,
        ),
    ]
    found = []
    for axis, size, flag, where, streams in kinds:
        if size > 1:
            seconds = _gather_seconds(mesh, axis, megabytes * 2**20, repeats)
            sent = (size - 1) * megabytes * 2.0**20  # around a ring, each device's part to the next
            found.append(Rate(flag, where, seconds, sent, streams * sent / seconds))
    return found


def _gather_seconds(mesh: Mesh, axis: str, size: int, repeats: int) -> float:
    """Return the median time of an all-gather over one axis, of `size` bytes from each device."""
    parts = PartitionSpec(("host", "device"))
    gather = jax.jit(
        jax.shard_map(
            partial(jax.lax.all_gather, axis_name=axis, tiled=True),
            mesh=mesh,
            in_specs=parts,
            out_specs=parts,  # each device keeps what it gathered
        )
    )
    place = NamedSharding(mesh, parts)
    make = jax.jit(lambda: jnp.ones(mesh.size * size // 4, jnp.float32), out_shardings=place)
    array, times = jax.block_until_ready(make()), []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        jax.block_until_ready(gather(array))
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def main(argv: Sequence[str]) -> int:
    """Measure the links; print their rates, and the flags for the dry run."""
    parser = Parser(prog="python -m benchmarks.links", description=main.__doc__)
    parser.add_argument("--mib", type=int, default=64, help="from each device, MiB (default: 64)")
    parser.add_argument("--repeats", type=int, default=10, help="times of each (default: 10)")
    flags = parser.read(argv)
    for name in ("mib", "repeats"):
        if not 0 < getattr(flags, name) < 2**16:
            raise ValueError(f"{name}={getattr(flags, name)}: must be positive, below 65536")
    if (tasks := int(os.environ.get("SLURM_NTASKS", "1"))) > 1:
        # Several processes of one host would count as hosts, and its slots as the network.
        if (nodes := int(os.environ.get("SLURM_NNODES", "1"))) != tasks:
            raise ValueError(
                f"SLURM_NTASKS={tasks}: must be one for each of {nodes} hosts; start it by"
                " srun --ntasks-per-node=1"
            )
        jax.distributed.initialize()  # SLURM's environment says who is who
    devices = by_host(jax.devices())
    rates = measure(devices, flags.mib, flags.repeats)
    if jax.process_index() == 0:
        sys.stdout.writelines(f"{line}\n" for line in lines(rates, devices.flat[0].device_kind))
    return 0


def lines(rates: Sequence[Rate], kind: str) -> list[str]:
    """Return the report: a line for each link, and the flags."""
    if not rates:
        return [f"a single {kind}: there is no link to measure"]
    shown = [
        f"{rate.where}: {rate.bytes_per_second / 1e9:.2f} GB/s ({kind};"
        f" {rate.sent / 2**20:,.0f} MiB of each device in {rate.seconds * 1e3:.1f} ms, median)"
        for rate in rates
    ]
    flags = " ".join(f"{rate.flag}={rate.bytes_per_second / 1e9:.3g}" for rate in rates)
    return [*shown, f"for the dry run: {flags}"]


if __name__ == "__main__":
    run_main(main)
