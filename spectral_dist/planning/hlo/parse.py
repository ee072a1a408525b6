"""Parser of optimized HLO: computations, instructions, shapes and loops of a compiled program.

Owns the grammar of the text that `Compiled.as_text()` gives for CPUs and GPUs, as far as counting
needs it. Knows nothing of what an instruction costs. Read `parse`, then `executed`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Bits, not bytes: XLA has types of 1, 2 and 4 bits. A predicate takes a byte.
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}

# What each pattern matches, by example. f32[8,<=128]
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\]")
# ENTRY %main.42 (p0: f32[8]) -> f32[8] {
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
# Two blanks at the start: "  ROOT %add.1 = f32[8]{0} add(%a, %b), ..."
_NAMED = re.compile(r"^  (ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
# Long tuples number their elements: /*index=5*/
_COMMENT = re.compile(r"/\*.*?\*/")
# Removed before anything is searched: its strings may hold brackets and names of other fields.
_METADATA = re.compile(r', metadata=\{(?:[^{}"]|"(?:[^"\\]|\\.)*"|\{[^{}]*\})*\}')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
# body=%while_body.7, of one computation; branch_computations={%a, %b}, of several
_CALLED = re.compile(
    r"(?:^|, )(calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-]+)"
)
_CALLED_MANY = re.compile(r"(?:^|, )(branch_computations|called_computations|calls)=\{([^}]*)\}")
# In the backend_config of a while loop whose length is a constant, as jax.lax.scan's is.
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Shape:
    """An array's type: XLA's name of the element type ("bf16") and the dimensions on a device."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """The size of the elements, without padding."""
        bits = _BITS.get(self.dtype)
        if bits is None:  # f32, s8, f8e4m3fn: the first number is the width
            number = re.search(r"\d+", self.dtype)
            bits = int(number.group()) if number else 0
        return -(-self.size * bits // 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in the program.
      opcode: such as "dot" or "all-gather-start".
      shapes: the arrays of its result; nested tuples are flattened.
      operands: names of the instructions that it reads, in order.
      attributes: the text after the operands, without the metadata.
      op_name: JAX's path to the operation that it comes from; empty if unknown.
      parameter: its number, for a parameter.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    op_name: str = ""
    parameter: int | None = None

    @property
    def bytes(self) -> int:
        """The size of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def trip_count(self) -> int | None:
        """The iterations of a while loop; None where the compiler does not know them."""
        found = _TRIPS.search(self.attributes)
        return int(found.group(1)) if found else None

    def called(self, *roles: str) -> tuple[str, ...]:
        """Return the names of the computations it calls in these roles ("body", "calls", ...)."""
        one = [name for role, name in _CALLED.findall(self.attributes) if role in roles]
        for role, names in _CALLED_MANY.findall(self.attributes):
            if role in roles:
                one += re.findall(r"%([\w.\-]+)", names)
        return tuple(one)


@dataclass(frozen=True)
class Computation:
    """A named list of instructions in their schedule; `root` is the one whose result it returns."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """Return the instructions that an instruction of this computation reads."""
        return [self.instructions[name] for name in instruction.operands]


@dataclass(frozen=True)
class HloProgram:
    """A compiled program, as each device runs it: shapes are those of one device's shards."""

    computations: dict[str, Computation]
    entry: Computation


@dataclass(frozen=True)
class Executed:
    """An instruction that the device executes, and how many times in one run of the program."""

    instruction: Instruction
    computation: Computation
    times: int


def parse(text: str) -> HloProgram:
    """Parse the text of a compiled program.

    Raises:
      ValueError: if it has no entry computation or a line that is no instruction.
    """
    # Strict on purpose: a line that is skipped in silence would make a step look too cheap.
    computations: dict[str, Computation] = {}
    entry = ""
    lines: list[str] | None = None
    name = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header.group(2), []
            entry = name if header.group(1) else entry
        elif line == "}" and lines is not None:
            computations[name] = _computation(name, lines)
            lines = None
        elif lines is not None and line.strip():
            lines.append(line)
    if entry not in computations:
        raise ValueError("the text of the program has no complete ENTRY computation")
    return HloProgram(computations, computations[entry])


def _computation(name: str, lines: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root: Instruction | None = None
    for line in lines:
        is_root, instruction = _instruction(line)
        instructions[instruction.name] = instruction
        root = instruction if is_root else root
    if root is None:
        raise ValueError(f"computation {name!r} of the program has no ROOT")
    return Computation(name, instructions, root)


def _instruction(line: str) -> tuple[bool, Instruction]:
    """Parse one line; return whether it is the root, and the instruction."""
    named = _NAMED.match(line)
    if named is None:
        raise ValueError(f"no instruction of a compiled program: {line.strip()[:120]!r}")
    op_name = _OP_NAME.search(line)
    rest = _METADATA.sub("", _COMMENT.sub("", named.group(3)))
    # A tuple's type has spaces and, in its layouts, round brackets; the opcode follows it.
    start = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, start)
    if opcode is None:
        raise ValueError(f"no opcode in a line of the program: {line.strip()[:120]!r}")
    open_at, kind = opcode.end() - 1, opcode.group(1)
    # A constant's literal may hold anything, brackets too.
    end = rest.find(")", open_at) if kind == "constant" else _closing(rest, open_at)
    inside = rest[open_at + 1 : end]
    literal = kind in ("constant", "parameter")
    return bool(named.group(1)), Instruction(
        name=named.group(2),
        opcode=kind,
        shapes=_shapes(rest[:start]),
        operands=() if literal else tuple(re.findall(r"%([\w.\-]+)", inside)),
        attributes="" if literal else rest[end + 1 :].removeprefix(", "),
        op_name=op_name.group(1) if op_name else "",
        parameter=int(inside) if kind == "parameter" else None,
    )


def _closing(text: str, start: int) -> int:
    """Return the index of the bracket that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"a bracket is never closed in a line of the program: {text[:120]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    """Return the arrays of a result's type; a bounded dimension ("<=8") counts as its bound."""
    return tuple(
        Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d))
        for dtype, dims in _SHAPE.findall(text)
    )


# Opcodes that run other computations instruction by instruction. A fusion does not, it is a single
# kernel, and the computation of a reduction is a part of its kernel.
_ROLES = {
    "while": ("body",),
    "call": ("to_apply",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
}


def runs(instruction: Instruction) -> tuple[tuple[str, ...], int]:
    """Return the computations that an instruction runs, and how many times it runs each.

    A loop of unknown length counts once. Every branch of a conditional counts: an upper bound.
    """
    # A loop's condition is left out: a comparison of two integers.
    opcode = instruction.opcode
    roles = _ROLES.get(opcode, ())
    if opcode.endswith("-start"):  # async-start wraps the operation in a computation of its own
        roles = ("calls", "called_computations")
    times = instruction.trip_count if opcode == "while" else 1
    return instruction.called(*roles), 1 if times is None else times


def executed(program: HloProgram) -> Iterator[Executed]:
    """Yield every executed instruction, of the entry computation and of all that it runs.

    The inside of a fusion is left out. A computation with two callers is yielded for each.
    """

    def walk(computation: Computation, times: int) -> Iterator[Executed]:
        for instruction in computation.instructions.values():
            yield Executed(instruction, computation, times)
            names, each = runs(instruction)
            for name in names:
                yield from walk(program.computations[name], times * each)

    return walk(program.entry, 1)


def unknown_loops(program: HloProgram) -> tuple[str, ...]:
    """Return the names of the loops whose length the compiler does not know: they count once."""
    return tuple(
        e.instruction.name
        for e in executed(program)
        if e.instruction.opcode == "while" and e.instruction.trip_count is None
    )
