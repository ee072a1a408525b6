"""`python -m benchmarks.step_beside_peers`: our training step beside other projects'.

Equal width and depth, parameters within 1%, the same batch, types and optimizer. Each model is in a
process of its own; their steps take turns, so that other work on the machine meets all alike. Read
`compare`.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.figures import OURS, Figure, compared, part_parser, report
from benchmarks.peers import PEERS, TOLERANCE, Shape, check_peers, missing_libraries, ours
from benchmarks.peers.process import Sample, StepProcess
from spectral_dist.command_line import run_main

PART = "step"
# (T, sequences, width, layers): what two cores compute in seconds, what a GPU of 24 GB holds.
CPU_SHAPES = ((512, 4, 256, 6), (2_048, 2, 256, 6), (8_192, 1, 256, 4))
GPU_SHAPES = (
    (2_048, 16, 512, 12),
    (8_192, 4, 512, 12),
    (32_768, 1, 512, 12),
    (2_048, 8, 1_024, 24),
)


def shape_of(case: tuple[int, int, int, int], words: Sequence[str], dtype: str) -> Shape:
    """Return the shape of (T, batch, width, layers), with our model's number of parameters."""
    seq_len, batch_size, width, layers = case
    bare = Shape(seq_len, batch_size, width, layers, parameters=0, dtype=dtype)
    return dataclasses.replace(bare, parameters=ours.count(ours.settings(bare, words)))


def compare(shape: Shape, names: Sequence[str], rounds: int, words: Sequence[str]) -> list[Figure]:
    """Time our step and the peers', one step of each in turn.

    Args:
      shape: of all models.
      names: of the peers.
      rounds: steps of each model, after one that compiles; at least 2.
      words: flags of our own step.

    Raises:
      ValueError: if our step fails, or a peer's parameters are not within 1% of ours. A peer that
        fails is left out, which a line says: an attention may be too long for a machine.
    """
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(StepProcess(OURS, shape, words))]
        for name in names:
            try:
                processes.append(stack.enter_context(StepProcess(name, shape)))
            except ValueError as error:
                sys.stderr.write(f"note: T={shape.seq_len}: {name} is left out: {error}\n")
        for process in processes:
            if abs(process.parameters / shape.parameters - 1) > TOLERANCE:
                raise ValueError(
                    f"{process.name}: {process.parameters:,} parameters, not within"
                    f" {TOLERANCE:.0%} of our {shape.parameters:,}"
                )
        samples: dict[str, list[Sample]] = {process.name: [] for process in processes}
        for number in range(rounds):
            # Another one begins each round: a step is disturbed by the threads of the one before.
            for place in range(len(processes)):
                process = processes[(number + place) % len(processes)]
                samples[process.name].append(process.step())
    parameters = {process.name: process.parameters for process in processes}
    return figures_of(shape, parameters, samples)


def figures_of(
    shape: Shape, parameters: dict[str, int], samples: dict[str, list[Sample]]
) -> list[Figure]:
    """Return the time of each model's step, and where it is not a GPU's that of the processors."""
    case = (
        f"T={shape.seq_len:,}, batch {shape.batch_size}, {shape.hidden_dim} x {shape.num_layers},"
        f" {shape.dtype}"
    )
    notes = {name: f"{count / 1e6:.2f}M parameters" for name, count in parameters.items()}
    wall = {name: [sample.wall for sample in own] for name, own in samples.items()}
    found = compared(PART, case, "ms a step", wall, scale=1e3, notes=notes, at=shape.seq_len)
    if shape.dtype == "float32":
        busy = {name: [sample.processor for sample in own] for name, own in samples.items()}
        found += compared(PART, case, "processor-ms", busy, scale=1e3)
    return found


def _at_least_two(word: str) -> int:
    if (rounds := int(word)) < 2:
        raise ValueError
    return rounds


def main(argv: Sequence[str]) -> int:
    """Time our training step beside other projects'; return 0.

    Any flag that is not listed is a setting of our own step, as of spectral-dist train.
    """
    parser = part_parser("benchmarks.step_beside_peers", main.__doc__)
    parser.add_argument("--peers", help="names, separated by commas (default: all installed ones)")
    parser.add_argument("--seq_lens", help="lengths of the cases to run (default: all)")
    parser.add_argument("--rounds", type=_at_least_two, help="steps of each model (default: 5)")
    flags, words = parser.read_some(argv)
    # Several processes share one GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    on_gpu = jax.default_backend() == "gpu"
    shapes: Sequence[Any] = GPU_SHAPES if on_gpu else CPU_SHAPES
    known = dict.fromkeys(str(case[0]) for case in shapes)
    lengths = (
        flags.seq_lens.split(",") if flags.seq_lens else list(known)[: 1 if flags.quick else None]
    )
    for length in lengths:
        if length not in known:
            raise ValueError(f"seq_lens={length}: must be among {', '.join(known)}")
    names, rounds = _peers(flags.peers), flags.rounds or (3 if flags.quick else 5)
    dtype = "bfloat16" if on_gpu else "float32"
    asked = (shape_of(case, words, dtype) for case in shapes if str(case[0]) in lengths)
    report((f for shape in asked for f in compare(shape, names, rounds, words)), flags.json)
    return 0


def _peers(asked: str | None) -> list[str]:
    """Return the peers that are asked for, or all whose libraries are installed."""
    if asked is not None:
        names = [name for name in asked.split(",") if name]
        check_peers(names)
        return names
    for name in PEERS:
        if missing := missing_libraries(name):
            sys.stderr.write(
                f"note: {name} is left out: {' and '.join(missing)} not installed here;"
                " pip install -e '.[bench]' installs them\n"
            )
    return [name for name in PEERS if not missing_libraries(name)]


if __name__ == "__main__":
    run_main(main)
