"""Peak memory of a device: programs and runtime against what the device has, and the verdict.

Owns the audit of the sharding before anything is compiled, the largest arrays by name, the memory
that the CUDA runtime adds, and the verdict. Compiles nothing. Read `judge` first.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from spectral_dist.planning.compile import Program, abstract_batch, leaf_bytes
from spectral_dist.planning.hardware import Gpu
from spectral_dist.settings import Config
from spectral_dist.training.state import abstract_state, model_spec

GIB = 2**30
MIB = 2**20
# JAX takes this share of a GPU's memory for its arrays, unless XLA_PYTHON_CLIENT_MEM_FRACTION says
# otherwise: https://docs.jax.dev/en/latest/gpu_memory_allocation.html
DEFAULT_FRACTION = 0.75
# A parameter of this size that is replicated, though the mesh could shard it, is a mistake in the
# sharding rules. Norms and other short vectors stay far below it.
LARGE_PARAMETER = 16 * MIB


@dataclass(frozen=True)
class Array:
    """One argument of the training step, or one value of its program.

    Attributes:
      name: path in the state, or the operation that makes it.
      shape: global shape of an argument; shape on one device of a value.
      dtype: of its elements; XLA's name ("bf16") for a value.
      spec: PartitionSpec of an argument; empty for a value.
      bytes: on one device.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    bytes: int


@dataclass(frozen=True)
class RuntimeLine:
    """Memory of the CUDA runtime and its libraries, which no compiled program counts."""

    name: str
    bytes: int
    source: str


@dataclass(frozen=True)
class Verdict:
    """Whether the programs fit in the memory of a device.

    Attributes:
      program: the one with the highest peak.
      peak: its bytes per device.
      runtime: bytes that the runtime adds.
      usable: bytes of the device; None where no limit is known.
      fits: None where no limit is known.
      spare: usable - peak - runtime; negative where it does not fit.
      fraction: XLA_PYTHON_CLIENT_MEM_FRACTION to start with, where the default is too small.
    """

    program: str
    peak: int
    runtime: int
    usable: int | None
    fits: bool | None
    spare: int | None
    fraction: float | None


def judge(
    programs: Sequence[Program], runtime: Sequence[RuntimeLine], usable: int | None
) -> Verdict:
    """Return whether programs that run one after another fit on a device."""
    # One after another: the largest peak decides, not their sum.
    largest = max(programs, key=lambda program: program.peak)
    added = sum(line.bytes for line in runtime)
    if usable is None:
        return Verdict(largest.name, largest.peak, added, None, None, None, None)
    spare = usable - largest.peak - added
    # The next hundredth and one more: fragmentation keeps the allocator from using its whole pool.
    share = math.ceil(largest.peak / usable * 100 + 1) / 100
    # Below the default share nothing has to be set.
    fraction = share if spare >= 0 and share > DEFAULT_FRACTION else None
    return Verdict(largest.name, largest.peak, added, usable, spare >= 0, spare, fraction)


def arguments(config: Config, mesh: Mesh) -> list[Array]:
    """Return every argument of the training step with its sharding, the largest shard first."""
    tree = {"state": abstract_state(config, mesh), "batch": abstract_batch(config, mesh)}
    found = [_describe(path, leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
    return sorted(found, key=lambda array: -array.bytes)


def parameter_count(config: Config) -> int:
    """Return the number of parameters: the elements of all arrays in params."""
    return model_spec(config).size


def _describe(path: Any, leaf: jax.ShapeDtypeStruct) -> Array:
    assert isinstance(leaf.sharding, NamedSharding)
    # A path mixes keys of dicts, fields of dataclasses and indices of tuples.
    words = (getattr(key, "key", None) or getattr(key, "name", None) or key.idx for key in path)
    spec = "P(" + ", ".join(map(_part, leaf.sharding.spec)) + ")"
    name = "/".join(map(str, words))
    return Array(name, leaf.shape, str(leaf.dtype), spec, leaf_bytes(leaf))


def _part(part: str | tuple[str, ...] | None) -> str:
    return "+".join(part) if isinstance(part, tuple) else part or "None"


def audit(found: Sequence[Array], mesh: Mesh) -> None:
    """Refuse a sharding that replicates a large parameter on every device.

    Runs before anything is compiled: it takes no time, and such a program would waste memory.

    Args:
      found: the arguments.
      mesh: the devices.

    Raises:
      ValueError: names the parameters.
    """
    # Only over data every parameter is replicated.
    if mesh.size == mesh.shape["data"]:
        return
    whole = [
        array
        for array in found
        if array.name.startswith("state/")
        and array.bytes >= LARGE_PARAMETER
        and not re.search("fsdp|tensor|sequence", array.spec)
    ]
    if whole:
        names = ", ".join(
            f"{array.name} {list(array.shape)} ({array.bytes / MIB:.0f} MiB)" for array in whole
        )
        raise ValueError(
            f"mesh={'x'.join(map(str, mesh.shape.values()))}: these parameters lie whole on every"
            f" device, though the mesh could divide them: {names}"
        )


def runtime_lines(gpu: Gpu, config: Config) -> list[RuntimeLine]:
    """Return the memory that CUDA, cuBLAS, cuFFT and NCCL add on one device, each with its source.

    These are documented defaults, not measurements.
    """
    # XLA's own workspaces for matrix products are not here: they are temporaries of the programs.
    lines = [
        RuntimeLine(
            "CUDA context and kernels",
            512 * MIB,
            "assumed; reports of CUDA 11.7 and newer, which load kernels lazily, start at 300 MiB",
        ),
        RuntimeLine(
            "cuBLAS workspace",
            (32 if gpu.compute_capability >= (9, 0) else 4) * MIB,
            "cuBLAS documentation, cublasSetWorkspace: default pool, 32 MiB from Hopper on, else 4",
        ),
    ]
    if config.mixers.spectral.form == "fft":
        lines.append(
            RuntimeLine("cuFFT plans", 64 * MIB, "assumed; a plan takes its workspace when it runs")
        )
    # One communicator for each mesh axis that joins devices.
    spans = [size for size in config.mesh.shape if size > 1]
    if spans:
        # NVLink needs more channels to be filled than PCIe does.
        channels = 16 if "NVLink" in gpu.inside.name else 4
        size = len(spans) * channels * 2 * 2 * 4 * MIB
        source = (
            f"NCCL documentation, NCCL_BUFFSIZE: 4 MiB; assumed {len(spans)} communicators x"
            f" {channels} channels x send and receive x ring and tree"
        )
        lines.append(RuntimeLine("NCCL buffers", size, source))
    return lines


# An instruction and its result: "  %fusion.3 = bf16[4,512]{1,0} fusion(...". Tuples do not match.
_VALUE = re.compile(
    r"^\s+(?:ROOT )?%(?P<name>[\w.-]+) = (?P<dtype>[a-z]+\d*\w*)\[(?P<dims>[\d,]+)\]\S*"
    r" (?P<op>[\w-]+)\("
)
# Bytes of an element. Of other types the first number in the name is the width in bits.
_WIDTHS = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}
# These allocate nothing: they name a buffer that exists.
_NO_VALUE = frozenset({"parameter", "get-tuple-element", "bitcast", "tuple", "while", "constant"})


def largest_values(text: str, count: int) -> list[Array]:
    """Return the largest intermediate arrays of a compiled program, one for each op and shape.

    They say where to look for memory. Their sum is not the temporaries: the text does not say which
    of them are alive at the same time.
    """
    # What is inside a fusion or a reduction stays in registers: those computations are skipped.
    inner = set(re.findall(r"(?:calls|to_apply)=%([\w.-]+)", text))
    found: dict[tuple[str, tuple[int, ...], str], Array] = {}
    skip = False
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            skip = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%") in inner
        match = None if skip else _VALUE.match(line)
        if match is None or match["op"] in _NO_VALUE:
            continue
        shape = tuple(int(size) for size in match["dims"].split(","))
        origin = re.search(r'op_name="([^"]*)"', line)
        # JAX's path names the operation in the model; XLA's own name ("fusion.3") says little.
        name = _short(origin[1]) if origin else match["name"]
        bits = re.search(r"\d+", match["dtype"])
        width = _WIDTHS.get(match["dtype"]) or (int(bits[0]) // 8 if bits else 1)
        array = Array(name, shape, match["dtype"], "", math.prod(shape) * width)
        found[name, shape, array.dtype] = array
    return sorted(found.values(), key=lambda array: -array.bytes)[:count]


def _short(op_name: str) -> str:
    """Return the last three parts of JAX's path to an operation: the others are loops and calls."""
    return "/".join(op_name.split("/")[-3:])
