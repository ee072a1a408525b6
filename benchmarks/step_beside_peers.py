"""`python -m benchmarks.step_beside_peers`: our training step beside other projects'.

Equal width and depth, parameters within 1%, the same batch, float32, the same optimizer. Each model
is in a process of its own; their steps take turns, so that other work on the machine meets all
alike. Read `compare`.
"""

import contextlib
import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.peers import PEERS, TOLERANCE, Shape, check_peers, ours
from benchmarks.peers.process import OURS, Sample, StepProcess
from spectral_dist.atomic_file import write_text
from spectral_dist.command_line import Parser, run_main

# (T, batch, layers), each 256 wide.
SHAPES = ((512, 4, 6), (2048, 2, 6), (8192, 1, 4))


@dataclass(frozen=True)
class Timing:
    """What one model's steps took beside ours.

    Attributes:
      name: "ours", or of the peer.
      seq_len: T, in tokens.
      batch_size: sequences of a step.
      parameters: of the model.
      wall, processor: medians, in seconds.
      ratio: median over the rounds of its wall time over ours: above 1, ours is faster.
      spread: quartiles of the same.
      processor_ratio: as `ratio`, of seconds of the processors.
      loss: of the last step, in nats a token.
    """

    name: str
    seq_len: int
    batch_size: int
    parameters: int
    wall: float
    processor: float
    ratio: float
    spread: tuple[float, float]
    processor_ratio: float
    loss: float


def shape_of(case: tuple[int, int, int], words: Sequence[str]) -> Shape:
    """Return the shape of (T, batch, layers), with the number of parameters of our model."""
    seq_len, batch_size, layers = case
    bare = Shape(seq_len, batch_size, 256, layers, parameters=0)
    return dataclasses.replace(bare, parameters=ours.count(ours.settings(bare, words)))


def compare(shape: Shape, names: Sequence[str], rounds: int, words: Sequence[str]) -> list[Timing]:
    """Time our step and the peers', one step of each in turn.

    Args:
      shape: of all models.
      names: of the peers.
      rounds: steps of each model, after one that compiles; at least 2.
      words: flags of our own step.

    Raises:
      ValueError: if a peer fails, or its parameters are not within 1% of ours.
    """
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(StepProcess(name, shape, words)) for name in (OURS, *names)
        ]
        for process in processes:
            if abs(process.parameters / shape.parameters - 1) > TOLERANCE:
                raise ValueError(
                    f"{process.name}: {process.parameters:,} parameters, not within"
                    f" {TOLERANCE:.0%} of our {shape.parameters:,}"
                )
        samples: list[list[Sample]] = [[] for _ in processes]
        for number in range(rounds):
            # Another one begins each round: a step is disturbed by the threads of the one before.
            for place in range(len(processes)):
                index = (number + place) % len(processes)
                samples[index].append(processes[index].step())
    return [
        summarise(process.name, process.parameters, shape, own, samples[0])
        for process, own in zip(processes, samples, strict=True)
    ]


def summarise(
    name: str, parameters: int, shape: Shape, samples: list[Sample], beside: list[Sample]
) -> Timing:
    """Return the medians of a model's samples and of their ratios to ours, round by round."""

    def medians(of: Callable[[Sample], float]) -> tuple[float, list[float]]:
        ratios = [of(a) / of(b) for a, b in zip(samples, beside, strict=True)]
        return statistics.median(map(of, samples)), statistics.quantiles(ratios, n=4)

    wall, (low, ratio, high) = medians(lambda sample: sample.wall)
    processor, (_, processor_ratio, _) = medians(lambda sample: sample.processor)
    return Timing(
        name,
        shape.seq_len,
        shape.batch_size,
        parameters,
        wall,
        processor,
        ratio,
        (low, high),
        processor_ratio,
        samples[-1].loss,
    )


def table(timings: Sequence[Timing]) -> Table:
    """Return the timings as a table for the console."""
    drawn = Table(box=rich.box.SIMPLE)
    headings = "T", "batch", "model", "parameters", "ms a step", "processor ms"
    for heading in (*headings, "wall beside ours (quartiles)", "processor beside ours", "loss"):
        drawn.add_column(heading, justify="left" if heading == "model" else "right")
    for t in timings:
        drawn.add_row(
            f"{t.seq_len:,}",
            str(t.batch_size),
            t.name,
            f"{t.parameters:,}",
            f"{t.wall * 1e3:,.0f}",
            f"{t.processor * 1e3:,.0f}",
            f"{t.ratio:.2f} ({t.spread[0]:.2f} to {t.spread[1]:.2f})",
            f"{t.processor_ratio:.2f}",
            f"{t.loss:.3f}",
        )
    return drawn


def _at_least_two(word: str) -> int:
    if (rounds := int(word)) < 2:
        raise ValueError
    return rounds


def main(argv: Sequence[str]) -> int:
    """Print the table, write it as JSON if asked, and return 0."""
    parser = Parser(
        prog="python -m benchmarks.step_beside_peers",
        allow_abbrev=False,
        epilog="Any other flag is a setting of our own step, as of spectral-dist train.",
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="names, separated by commas")
    parser.add_argument(
        "--seq_lens",
        default=",".join(str(case[0]) for case in SHAPES),
        help="which lengths: some of %(default)s",
    )
    parser.add_argument("--rounds", type=_at_least_two, default=9, help="steps of each model")
    parser.add_argument("--json", metavar="FILE", help="write the timings to it too")
    flags, words = parser.read_some(argv)
    names = [name for name in flags.peers.split(",") if name]
    check_peers(names)
    by_length: dict[str, Any] = {str(case[0]): case for case in SHAPES}
    timings: list[Timing] = []
    for length in flags.seq_lens.split(","):
        if length not in by_length:
            raise ValueError(f"seq_lens={length}: must be among {', '.join(by_length)}")
        timings += compare(shape_of(by_length[length], words), names, flags.rounds, words)
    Console(width=130).print(table(timings))
    if flags.json:
        write_text(Path(flags.json), json.dumps([asdict(t) for t in timings], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
