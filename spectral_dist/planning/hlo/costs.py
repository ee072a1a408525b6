"""FLOPs and memory traffic of one kernel of a compiled program, counted from its HLO.

Owns the counting rules; knows no device's speed. XLA's own `cost_analysis` is not implemented for
programs of described devices. Read `flops`, then `moved_bytes`.

Matrix products and convolutions count, with 2 FLOPs for a multiplication and an addition, and what
a kernel of ours declares.
Elementwise operations and reductions do not: they are bound by memory, not by arithmetic.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from spectral_dist.planning.hlo.collectives import kind_of
from spectral_dist.planning.hlo.parse import Computation, HloProgram, Instruction, executed, runs

Flops = Counter[str]

# No kernel runs for these: they name an existing buffer, or only steer what runs.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "add-dependency",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "while",
    "call",
    "conditional",
    "domain",
}
_SLICES = {"slice", "dynamic-slice", "gather"}
# Writes its update into the buffer of its first operand: opcode -> index of the update's operand.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
# Library calls that are a matrix product: cuBLAS, cuBLASLt and, on a CPU, oneDNN.
_GEMMS = ("__cublas$gemm", "__cublas$lt$matmul", "__onednn$matmul")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# What a kernel of ours declares (model/kernels): Pallas writes its metadata, a JSON object, into
# the call's configuration as a string, in which XLA writes a quote as \22.
_DECLARED = re.compile(r"flops\\22: \\22(\d+)\\22, \\22operands\\22: \\22(\w+?)\\22")
# The summed dimensions of the left operand, in a dot and in a cuBLAS call's JSON.
_CONTRACTED = (
    re.compile(r"lhs_contracting_dims=\{([\d,]*)\}"),
    re.compile(r'"lhs_contracting_dimensions":\[([\d",]*)\]'),
)
# dim_labels=b0f_0io->b0f: the middle part labels the dimensions of the kernel.
_CONV_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")
# Precision.HIGH or HIGHEST: the product may not round its operands to TF32.
_EXACT = re.compile(r'operand_precision=\{high|"operand_precision":\["HIGH')


def is_kernel(instruction: Instruction) -> bool:
    """Whether the device launches a compute kernel for an instruction; a collective is none."""
    opcode = instruction.opcode
    # The "-done" of an asynchronous operation waits; its "-start" is what runs.
    if opcode.endswith(("-done", "-update")) or opcode in _FREE or kind_of(instruction):
        return False
    return not runs(instruction)[0]


def flops(program: HloProgram, computation: Computation, instruction: Instruction) -> Flops:
    """Return the FLOPs of an instruction by the type of its operands.

    "tf32" stands for float32 operands that may be rounded to TF32, "f32" for those that may not;
    other types have XLA's names ("bf16"). A fusion has the FLOPs of everything inside it.
    """
    if instruction.opcode == "fusion":
        total: Flops = Counter()
        for name in instruction.called("calls"):
            inner = program.computations[name]
            for part in inner.instructions.values():
                total += flops(program, inner, part)
        return total
    target = _TARGET.search(instruction.attributes)
    if instruction.opcode == "dot" or (target and target.group(1).startswith(_GEMMS)):
        return _dot(computation, instruction)
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    return _declared(instruction)


def _declared(instruction: Instruction) -> Flops:
    """Return the FLOPs that a kernel declares itself; none for another's."""
    found = _DECLARED.search(instruction.attributes)
    return Counter({found.group(2): int(found.group(1))}) if found else Counter()


def _dot(computation: Computation, instruction: Instruction) -> Flops:
    left = computation.operands(instruction)[0].shapes[0]
    found = [m for m in (rule.search(instruction.attributes) for rule in _CONTRACTED) if m]
    if not found:  # oneDNN sums over the last dimension, unless its operand is transposed
        transposed = '"transpose_a":true' in instruction.attributes
        summed = left.dims[-2 if transposed else -1]
    else:
        dims = [int(dim) for dim in re.findall(r"\d+", found[0].group(1))]
        summed = math.prod(left.dims[dim] for dim in dims)
    kind = _precision(left.dtype, instruction)
    # A library call returns its workspace too: only the first result is the product.
    return Counter({kind: 2 * instruction.shapes[0].size * summed})


def _convolution(computation: Computation, instruction: Instruction) -> Flops:
    """Return the FLOPs of a convolution, padding included."""
    # Each element of the output sums over the kernel's elements of one output feature.
    labels = _CONV_LABELS.search(instruction.attributes)
    kernel = computation.operands(instruction)[1].shapes[0]
    features = kernel.dims[labels.group(1).index("o")] if labels else 1
    total = 2 * instruction.shapes[0].size * kernel.size // features
    return Counter({_precision(kernel.dtype, instruction): total})


def _precision(dtype: str, instruction: Instruction) -> str:
    # JAX's default precision lets a GPU round float32 operands to TF32, for its tensor cores.
    return "tf32" if dtype == "f32" and not _EXACT.search(instruction.attributes) else dtype


def uncounted_calls(program: HloProgram) -> tuple[str, ...]:
    """Return the calls whose FLOPs are unknown, each name once: the report lists them."""
    names = (
        target.group(1)
        for e in executed(program)
        if e.instruction.opcode == "custom-call"
        and not _declared(e.instruction)
        and (target := _TARGET.search(e.instruction.attributes))
    )
    return tuple(sorted({name for name in names if not name.startswith(_GEMMS)}))


def moved_bytes(program: HloProgram, computation: Computation, instruction: Instruction) -> int:
    """Return the bytes that an instruction reads from device memory and writes to it.

    These are its operands and its result. Of an operand that is only sliced, the slices count, and
    of an in-place update the update. Intermediates of a fusion stay on the chip.
    """
    if not is_kernel(instruction):
        return 0
    opcode, operands = instruction.opcode, computation.operands(instruction)
    if opcode == "fusion":
        fused = program.computations[instruction.called("calls")[0]]
        return _read_by_fusion(fused) + sum(_written(fused, part) for part in _results(fused))
    # In the loop over layers a slice takes one layer of the stacked weights: with whole operands
    # each iteration would be charged for all layers.
    if opcode in _SLICES:
        return 2 * instruction.bytes + sum(index.bytes for index in operands[1:])
    if opcode in _IN_PLACE:
        update = _IN_PLACE[opcode]
        return operands[update].bytes + sum(o.bytes for o in operands[1:])
    read = sum(operand.bytes for operand in operands)
    if opcode == "copy-start":  # its result is a tuple of both buffers: a read and a write
        return 2 * read
    target = _TARGET.search(instruction.attributes)
    if target and target.group(1).startswith(_GEMMS):  # as in _dot: its other results are workspace
        return read + instruction.shapes[0].bytes
    return read + instruction.bytes


def _read_by_fusion(fused: Computation) -> int:
    """Return the bytes that a fusion reads of its parameters."""
    results = {part.name for part in _results(fused)}
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for user in fused.instructions.values():
        for position, name in enumerate(user.operands):
            users.setdefault(name, []).append((user, position))

    def uses(name: str) -> Iterator[int | None]:
        """Yield the bytes that each use reads; None stands for the whole array."""
        for user, position in users.get(name, []):
            # A bitcast is the same buffer under another shape: what uses it uses this array.
            if user.opcode == "bitcast" and user.name not in results:
                yield from uses(user.name)
            elif user.opcode in _SLICES and position == 0:
                yield user.bytes
            # An updated buffer that the fusion returns is written in part and not read.
            elif user.opcode in _IN_PLACE and position == 0 and user.name in results:
                yield 0
            else:
                yield None

    total = 0
    for part in fused.instructions.values():
        if part.opcode == "parameter":
            read = list(uses(part.name))
            known = [r for r in read if r is not None]
            # Overlapping slices may add up to more than the array, which is read once at most.
            total += min(part.bytes, sum(known)) if len(known) == len(read) else part.bytes
    return total


def _results(fused: Computation) -> list[Instruction]:
    """Return the instructions that compute a fusion's results, below tuples and bitcasts."""
    parts = fused.operands(fused.root) if fused.root.opcode == "tuple" else [fused.root]
    found = []
    for part in parts:
        while part.opcode == "bitcast":
            part = fused.operands(part)[0]
        found.append(part)
    return found


def _written(fused: Computation, part: Instruction) -> int:
    update = _IN_PLACE.get(part.opcode)
    return part.bytes if update is None else fused.operands(part)[update].bytes
