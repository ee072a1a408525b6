"""What one kernel of a compiled program costs: FLOPs of its dense products, bytes it moves.

Owns the counting rules, nothing of how fast a device is. Read `flops`, then `moved_bytes`.

Counted are products of matrices and convolutions, 2 FLOPs for a multiplication and an addition.
Not counted is what runs element by element, or sums: its bytes take longer than its arithmetic.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from spectral_dist.planning.hlo.collectives import kind_of
from spectral_dist.planning.hlo.parse import Computation, HloProgram, Instruction, executed, runs

Flops = Counter[str]

# No kernel: names for what exists already, or the waiting end of something begun elsewhere.
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
# Writes its update into the first operand, where that lies: opcode -> place of the update.
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
_GEMMS = ("__cublas$gemm", "__cublas$lt$matmul", "__onednn$matmul")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONTRACTED = (
    re.compile(r"lhs_contracting_dims=\{([\d,]*)\}"),
    re.compile(r'"lhs_contracting_dimensions":\[([\d",]*)\]'),
)
_CONV_LABELS = re.compile(r"dim_labels=\w+_(\w+)->\w+")
_EXACT = re.compile(r'operand_precision=\{high|"operand_precision":\["HIGH')


def is_kernel(instruction: Instruction) -> bool:
    """Whether the device starts something for it that is no collective."""
    opcode = instruction.opcode
    if opcode.endswith(("-done", "-update")) or opcode in _FREE or kind_of(instruction):
        return False
    return not runs(instruction)[0]


def flops(program: HloProgram, computation: Computation, instruction: Instruction) -> Flops:
    """Return the FLOPs of an instruction by the type of its operands.

    "tf32" stands for float32 operands that may be rounded to that format, "f32" for those that
    may not; other types are named as XLA does ("bf16"). A fusion has those of all inside it.
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
    return Counter()


def _dot(computation: Computation, instruction: Instruction) -> Flops:
    left = computation.operands(instruction)[0].shapes[0]
    found = [m for m in (rule.search(instruction.attributes) for rule in _CONTRACTED) if m]
    if not found:  # oneDNN says only what is transposed: the last dimension but for that
        transposed = '"transpose_a":true' in instruction.attributes
        summed = left.dims[-2 if transposed else -1]
    else:
        dims = [int(dim) for dim in re.findall(r"\d+", found[0].group(1))]
        summed = math.prod(left.dims[dim] for dim in dims)
    kind = _precision(left.dtype, instruction)
    # A library call returns its workspace too: the product is the first result.
    return Counter({kind: 2 * instruction.shapes[0].size * summed})


def _convolution(computation: Computation, instruction: Instruction) -> Flops:
    """Each output element sums over the kernel's elements of one output feature; padding too."""
    labels = _CONV_LABELS.search(instruction.attributes)
    kernel = computation.operands(instruction)[1].shapes[0]
    features = kernel.dims[labels.group(1).index("o")] if labels else 1
    total = 2 * instruction.shapes[0].size * kernel.size // features
    return Counter({_precision(kernel.dtype, instruction): total})


def _precision(dtype: str, instruction: Instruction) -> str:
    return "tf32" if dtype == "f32" and not _EXACT.search(instruction.attributes) else dtype


def uncounted_calls(program: HloProgram) -> tuple[str, ...]:
    """Return the library calls whose FLOPs are not known here, each name once."""
    names = (
        target.group(1)
        for e in executed(program)
        if e.instruction.opcode == "custom-call"
        and (target := _TARGET.search(e.instruction.attributes))
    )
    return tuple(sorted({name for name in names if not name.startswith(_GEMMS)}))


def moved_bytes(program: HloProgram, computation: Computation, instruction: Instruction) -> int:
    """Return the bytes that an instruction reads from memory and writes to it.

    All its operands and its result, but: of an operand that is only sliced, the slices; of an
    update in place, the update. What is inside a fusion stays on the chip.
    """
    if not is_kernel(instruction):
        return 0
    opcode, operands = instruction.opcode, computation.operands(instruction)
    if opcode == "fusion":
        fused = program.computations[instruction.called("calls")[0]]
        return _read_by_fusion(fused) + sum(_written(fused, part) for part in _results(fused))
    if opcode in _SLICES:
        return 2 * instruction.bytes + sum(index.bytes for index in operands[1:])
    if opcode in _IN_PLACE:
        place = _IN_PLACE[opcode]
        return operands[place].bytes + sum(o.bytes for o in operands[1:])
    read = sum(operand.bytes for operand in operands)
    if opcode == "copy-start":  # its result names source and copy
        return 2 * read
    written = instruction.shapes[0].bytes if opcode == "custom-call" else instruction.bytes
    return read + written


def _read_by_fusion(fused: Computation) -> int:
    results = {part.name for part in _results(fused)}
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for user in fused.instructions.values():
        for place, name in enumerate(user.operands):
            users.setdefault(name, []).append((user, place))

    def uses(name: str) -> Iterator[int | None]:
        """Give what each use reads; None stands for all of it."""
        for user, place in users.get(name, []):
            if user.opcode == "bitcast" and user.name not in results:
                yield from uses(user.name)
            elif user.opcode in _SLICES and place == 0:
                yield user.bytes
            elif user.opcode in _IN_PLACE and place == 0 and user.name in results:
                yield 0
            else:
                yield None

    total = 0
    for part in fused.instructions.values():
        if part.opcode == "parameter":
            read = list(uses(part.name))
            known = [r for r in read if r is not None]
            total += min(part.bytes, sum(known)) if len(known) == len(read) else part.bytes
    return total


def _results(fused: Computation) -> list[Instruction]:
    """Return what a fusion computes last, below tuples and bitcasts."""
    parts = fused.operands(fused.root) if fused.root.opcode == "tuple" else [fused.root]
    found = []
    for part in parts:
        while part.opcode == "bitcast":
            part = fused.operands(part)[0]
        found.append(part)
    return found


def _written(fused: Computation, part: Instruction) -> int:
    place = _IN_PLACE.get(part.opcode)
    return part.bytes if place is None else fused.operands(part)[place].bytes
