"""How the GPU kernels of the spectral mixer are cut, and for which sizes they can be."""

from typing import NamedTuple


class Walk(NamedTuple):
    """How one direction is cut.

    Attributes:
      chunk: C, tokens of a step of the walk; a power of two, at least 16.
      held: poles whose states are in registers at once; divides N.
      warps: of a program.
    """

    chunk: int
    held: int
    warps: int


class Plan(NamedTuple):
    """How the kernels are cut; the defaults spill no register on an L4.

    Attributes:
      forward: the walk of the forward pass.
      backward: the walk of the backward pass.
      programs: the least number of programs wanted; time is cut into segments to reach it.
    """

    forward: Walk = Walk(chunk=16, held=8, warps=4)
    backward: Walk = Walk(chunk=16, held=4, warps=4)
    programs: int = 128

    @property
    def chunk(self) -> int:
        """The tokens that every segment is a multiple of."""
        return max(self.forward.chunk, self.backward.chunk)

    def segments(self, rows: int, time: int) -> int:
        """Return the number of segments of T tokens, a power of two, for so many rows."""
        segments = 1
        # A segment below 8 chunks would read more states than tokens.
        while rows * segments < self.programs and time >= 16 * self.chunk * segments:
            segments *= 2
        return segments


# Larger chunks spill a few registers, and were the fastest of 33 cuts on an H100 and of 30 on an
# H200: forward 0.96 ms in place of 1.28, backward 2.12 of 3.02 (docs/performance.md).
_HOPPER = Plan(Walk(chunk=32, held=8, warps=4), Walk(chunk=32, held=4, warps=4), programs=512)


def plan_for(device_kind: str) -> Plan:
    """Return the plan for a GPU, by the kind that JAX names it by."""
    return _HOPPER if any(name in device_kind for name in ("H100", "H200")) else Plan()


def kernel_takes(poles: int, taps: int, group: int) -> bool:
    """Return whether the kernels can be cut for N poles, K taps and groups of so many channels."""
    # Triton knows powers of two only; more poles would not fit the registers.
    powers = all(size & (size - 1) == 0 for size in (poles, taps, group))
    return powers and 4 <= poles <= 32 and taps <= 8 and 16 <= group <= 128
