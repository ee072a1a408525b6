"""Specifications of the GPUs that can be planned for, each figure with its source.

Owns the table of links and the target descriptions in targets/, one text for each GPU in the format
that XLA's compiler reads in place of an attached card. A figure of such a text stands nowhere else;
peak FLOP/s come from `training.metrics`. Imports no JAX. Read `find_gpu` first.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from spectral_dist.training.metrics import find_peak

TARGETS = Path(__file__).parent / "targets"
CPU = "cpu"  # in place of a GPU's name: the fake devices that XLA makes of this machine's CPU


@dataclass(frozen=True)
class Link:
    """An interconnect between devices, such as NVLink, PCIe or InfiniBand.

    Attributes:
      name: as the report shows it.
      bytes_per_second: bandwidth out of a device (inside a host) or of a host (between hosts), one
        direction, by the specification. A collective reaches less.
      source: where the figure is from.
    """

    name: str
    bytes_per_second: float
    source: str


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. Sizes in bytes, rates in bytes/s and dense FLOP/s.

    Attributes:
      name: the value of --gpu.
      device_kind: JAX's name of it.
      memory_bytes: device memory that a process can use, the CUDA context included.
      memory_bandwidth: of the device memory, reads and writes together.
      bfloat16: peak of bfloat16 products accumulated in float32.
      float32: peak of float32 products as JAX computes them by default (TF32).
      compute_capability: CUDA's, major and minor.
      cores: SMs.
      l2_bytes: L2 cache.
      shared_memory_bytes: of an SM.
      registers: 32-bit registers of an SM.
      inside: link between the GPUs of a host, for each GPU.
      between: default network between hosts, for each host.
      target: its description for XLA's compiler, a text proto.
      sources: name of a figure -> where it is from.
    """

    name: str
    device_kind: str
    memory_bytes: int
    memory_bandwidth: float
    bfloat16: float
    float32: float
    compute_capability: tuple[int, int]
    cores: int
    l2_bytes: int
    shared_memory_bytes: int
    registers: int
    inside: Link
    between: Link
    target: str
    sources: dict[str, str]


# 16e9 x 16 lanes x 128 / 130 / 8 bits. Cards without NVLink reach each other over it.
_PCIE = Link("PCIe 4.0 x16", 31.5e9, "PCI Express 4.0: 16 GT/s x 16 lanes, 128b/130b")
# The network belongs to the machine and not to the GPU. So this one is an assumption, and rankings
# rest on it: level 3 over four hosts of L4 prefers fsdp over all of them at its full rate.
_ETHERNET = Link("100 Gbit/s Ethernet", 12.5e9, "assumed: one such port a host")
_HDR = Link("8 x HDR InfiniBand", 200e9, "NVIDIA DGX A100 data sheet: eight ports of 200 Gbit/s")
_NDR = Link("8 x NDR InfiniBand", 400e9, "NVIDIA DGX H100 data sheet: eight ports of 400 Gbit/s")


def _nvlink(generation: int, both_directions: float, source: str) -> Link:
    # Data sheets add both directions up. A ring sends and receives at once, each at half of that.
    return Link(f"NVLink {generation}", both_directions / 2, f"{source}, half of both directions")


_NVLINK_3 = _nvlink(3, 600e9, "NVIDIA A100 data sheet: 600 GB/s")
_NVLINK_4 = _nvlink(4, 900e9, "NVIDIA H100 data sheet: 900 GB/s")
_NVLINK_5 = _nvlink(5, 1800e9, "NVIDIA HGX B200 data sheet: 1.8 TB/s")

# Between the GPUs of a host, and between hosts. The network is that of NVIDIA's own machine for the
# GPUs of such machines, and Ethernet for the others.
_LINKS: dict[str, tuple[Link, Link]] = {
    "l4": (_PCIE, _ETHERNET),
    "a10g": (_PCIE, _ETHERNET),
    "l40s": (_PCIE, _ETHERNET),
    "a100-40gb": (_NVLINK_3, _HDR),
    "a100-80gb": (_NVLINK_3, _HDR),
    "h100": (_NVLINK_4, _NDR),
    "h200": (_NVLINK_4, _NDR),
    "b200": (_NVLINK_5, _NDR),
    "rtx4090": (_PCIE, _ETHERNET),
}
GPU_NAMES = tuple(_LINKS)


@dataclass(frozen=True)
class Instance:
    """A machine that clouds rent out.

    Attributes:
      gpu: the name of its GPUs.
      gpus: how many it has.
      gigabits: of its network, per second, the most that the provider names.
      source: where the figures are from.
    """

    gpu: str
    gpus: int
    gigabits: float
    source: str


_GOOGLE = "Google Cloud documentation, GPU network bandwidth: G2, up to 100 Gbit/s"
_ASSUMED = "assumed, not read in the provider's table: measure it (python -m benchmarks.links)"
# No provider names the rate between the GPUs of such a machine: it stays that of the PCIe slots.
INSTANCES = {
    "g2-standard-24": Instance("l4", 2, 32, _ASSUMED),
    "g2-standard-48": Instance("l4", 4, 50, _ASSUMED),
    "g2-standard-96": Instance("l4", 8, 100, _GOOGLE),
    "g6.12xlarge": Instance("l4", 4, 40, _ASSUMED),
    "g6.24xlarge": Instance("l4", 4, 50, _ASSUMED),
    "g6.48xlarge": Instance("l4", 8, 100, _ASSUMED),
}


def find_instance(name: str) -> Instance:
    """Return a machine by its name.

    Raises:
      ValueError: if the table has none of that name.
    """
    if name not in INSTANCES:
        raise ValueError(f"instance={name!r}: must be one of {', '.join(INSTANCES)}")
    return INSTANCES[name]


def with_links(
    gpu: "Gpu", inside: float | None, between: float | None, source: str = "as given"
) -> "Gpu":
    """Return a GPU with other rates of its links.

    Args:
      gpu: the GPU.
      inside: bytes/s from a GPU to others of its host; None keeps the table's.
      between: bytes/s from a host to others; None keeps the table's.
      source: where the rates are from.
    """
    links = {}
    for name, rate in (("inside", inside), ("between", between)):
        if rate is not None:
            kept = getattr(gpu, name).name.partition(" at ")[0]
            links[name] = Link(f"{kept} at {rate / 1e9:g} GB/s", rate, source)
    sources = gpu.sources | dict.fromkeys(links, source)
    return dataclasses.replace(gpu, sources=sources, **links)


def find_gpu(name: str) -> Gpu:
    """Return the specification of a GPU by its name.

    Raises:
      ValueError: if the table has none of that name.
    """
    if name not in _LINKS:
        raise ValueError(f"gpu={name!r}: must be one of {', '.join((*GPU_NAMES, CPU))}")
    text = (TARGETS / f"{name}.txtpb").read_text(encoding="ascii")
    figures, sources = _read_target(text)
    kind = figures["device_description_str"].strip('"')
    # The table that a run's MFU uses, so that predicted and reported MFU share their peaks.
    peak = find_peak(kind)
    assert peak is not None, f"{kind} has no peak in training.metrics"
    inside, between = _LINKS[name]
    capability = re.search(r"major: (\d+) minor: (\d+)", text)
    assert capability is not None
    sources |= {"peak": peak.source, "inside": inside.source, "between": between.source}
    return Gpu(
        name=name,
        device_kind=kind,
        memory_bytes=int(figures["device_memory_size"]),
        memory_bandwidth=float(figures["memory_bandwidth"]),
        bfloat16=peak.bfloat16,
        float32=peak.float32,
        compute_capability=(int(capability[1]), int(capability[2])),
        cores=int(figures["core_count"]),
        l2_bytes=int(figures["l2_cache_size"]),
        shared_memory_bytes=int(figures["shared_memory_per_core"]),
        registers=int(figures["registers_per_core_limit"]),
        inside=inside,
        between=between,
        target=text,
        sources=sources,
    )


def _read_target(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the figures of a target description and the sources in their comments, by name."""
    figures, sources = {}, {}
    # A line without a source does not match: the missing figure then fails in find_gpu.
    for name, value, source in re.findall(r"^ *(\w+): (.+?)  # (.+)$", text, re.MULTILINE):
        figures[name], sources[name] = value, source
    return figures, sources
