"""`python -m benchmarks.start`: how long a user waits for the first step and the first byte.

The wall time and the processor time of `train --steps 1`, with an empty and with a full compilation
cache, and the time to the first byte of `generate`. Imports no JAX. Read `measure`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, part_parser, report, single
from benchmarks.loader import MB, made_up
from spectral_dist.command_line import run_main

PART = "start"
SIZES = ("--hidden_dim=256", "--num_layers=6", "--seq_len=512", "--batch_size=4")
SMALL = ("--hidden_dim=64", "--num_layers=3", "--seq_len=128", "--batch_size=4")


@dataclass(frozen=True)
class Started:
    """What one program took, in seconds.

    Attributes:
      first: until the first byte of its output; until its end if it wrote none.
      whole: until its end.
      processor: of all its threads.
    """

    first: float
    whole: float
    processor: float


def start(module: str, words: Sequence[str], cache: Path) -> Started:
    """Run `python -m module words` to its end.

    Args:
      module: dotted name.
      words: its flags.
      cache: folder of user caches, so also of compiled programs.

    Raises:
      ValueError: with the last line that it wrote to stderr, if it fails.
    """
    own = {"XDG_CACHE_HOME": str(cache), "WANDB_MODE": "disabled"}
    others = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    # stderr into a file: a pipe that nobody reads could fill.
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**others, **own},
        )
        assert process.stdout is not None
        with process.stdout:
            process.stdout.read(1)
            first = time.perf_counter() - began
            process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        whole = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
            raise ValueError(f"{module}: code {process.returncode}: {last}")
    return Started(first, whole, usage.ru_utime + usage.ru_stime)


def measure(folder: Path, quick: bool) -> Iterator[Figure]:
    """Yield the figures, with runs and caches in a folder of their own."""
    text = folder / "text.txt"
    text.write_bytes(made_up(folder, MB))
    sizes, rounds = (SMALL, 1) if quick else (SIZES, 3)
    run = [f"--checkpoint_dir={folder / 'runs'}"]
    words = [*run, f"--data_paths={text}", "--steps=1", "--mesh=1x1x1", *sizes]

    def train(name: str, cache: str) -> Started:
        return start("spectral_dist.train", [*words, f"--run_name={name}"], folder / cache)

    width, layers = (word.partition("=")[2] for word in sizes[:2])
    case = f"train --steps 1, {width} x {layers}"
    empty = [train(f"empty{n}", f"cache{n}") for n in range(rounds)]
    yield from _figures(case, "empty cache", empty)
    full = [train(f"full{n}", "cache0") for n in range(rounds)]
    yield from _figures(case, "full cache", full)

    def generate() -> Started:
        flags = [*run, "--run_name=full0", "--max_new_tokens=16"]
        return start("spectral_dist.generate", flags, folder / "cache0")

    for name in ("first time", "full cache"):
        found = [generate() for _ in range(1 if name == "first time" else rounds)]
        seconds = [each.first for each in found]
        yield single(PART, "generate, first byte", name, "s", seconds)


def _figures(case: str, name: str, found: Sequence[Started]) -> list[Figure]:
    return [
        single(PART, case, name, "s", [each.whole for each in found]),
        single(PART, case, name, "processor-s", [each.processor for each in found]),
    ]


def main(argv: Sequence[str]) -> int:
    """Measure the start of training and of generation; return 0."""
    parser = part_parser("benchmarks.start", main.__doc__)
    flags = parser.read(argv)
    with tempfile.TemporaryDirectory() as folder:
        report(measure(Path(folder), flags.quick), flags.json)
    return 0


if __name__ == "__main__":
    run_main(main)
