"""`python -m benchmarks.loader`: text to tokens, and tokens to batches, in one process.

The rate at which a text file becomes a token file, and at which the training's own loader makes
batches of it, by their size. Read `preparation`, then `loading`.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from benchmarks.figures import OURS, Figure, part_parser, report, single
from spectral_dist.command_line import run_main
from spectral_dist.data.build import build
from spectral_dist.data.mixture import TrainSequences, token_batches
from spectral_dist.data.tokens import prepare
from spectral_dist.sample_text.build import build_sample
from spectral_dist.settings import DatasetConfig

PART = "loader"
SEQ_LEN, ROUNDS = 2_048, 5
MB = 1_000_000


def made_up(folder: Path, size: int) -> bytes:
    """Return the sample text of the demo, again and again, `size` bytes of it."""
    paths = build_sample(folder, bytes_per_source=min(size, MB), report=lambda line: None)
    text = b"".join(path.read_bytes() for path in paths)
    return (text * (size // len(text) + 1))[:size]


def preparation(text: Path, rounds: int) -> list[float]:
    """Return the seconds that a text took to become tokens, each time anew."""
    seconds = []
    for number in range(rounds):
        copy = text.with_name(f"{number}.txt")  # a build of its own, with nothing to reuse
        copy.hardlink_to(text)
        start = time.perf_counter()
        build(copy)
        seconds.append(time.perf_counter() - start)
    return seconds


def loading(text: Path, batch_size: int, batches: int, rounds: int) -> list[float]:
    """Return the sequences a second that the loader gives to a consumer that does nothing else.

    Args:
      text: a text file, as many tokens.
      batch_size: sequences of a batch.
      batches: of a round, after one that starts the thread.
      rounds: at least 1.
    """
    files = prepare(
        [DatasetConfig(paths=(str(text),))],
        validation_fraction=0.01,
        min_tokens=SEQ_LEN + 1,
        report=lambda line: None,
    )
    sequences = TrainSequences(files, [(0, [1.0])], SEQ_LEN, seed=0)
    rates = []
    stream = token_batches(
        sequences,
        accum_steps=1,
        batch_size=batch_size,
        sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        start_step=0,
        start_sequence=0,
        steps=rounds * batches + 1,
        prefetch_steps=2,
    )
    next(stream)
    for _ in range(rounds):
        start = time.perf_counter()
        taken = sum(1 for _ in itertools.islice(stream, batches))
        rates.append(taken * batch_size / (time.perf_counter() - start))
    return rates


def measure(text: Path, quick: bool) -> Iterator[Figure]:
    """Yield the figures of a text file."""
    size = text.stat().st_size
    seconds = preparation(text, 2 if quick else ROUNDS)
    case = f"text to tokens, {size / MB:.0f} MB"
    yield single(PART, case, OURS, "MB/s", [size / MB / each for each in seconds])
    for batch_size in (64,) if quick else (8, 64, 256):
        case = f"tokens to batches of {batch_size} x {SEQ_LEN:,}"
        batches = max(4, (512 if quick else 8_192) // batch_size)
        rates = loading(text, batch_size, batches, 2 if quick else ROUNDS)
        yield single(PART, case, OURS, "sequences/s", rates)


def main(argv: Sequence[str]) -> int:
    """Measure how fast text becomes tokens, and tokens batches; return 0."""
    parser = part_parser("benchmarks.loader", main.__doc__)
    parser.add_argument("--text", metavar="FILE", help="text to take (default: made up)")
    flags = parser.read(argv)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        wanted = (8 if flags.quick else 64) * MB
        content = (
            Path(flags.text).read_bytes()[:wanted] if flags.text else made_up(Path(folder), wanted)
        )
        text.write_bytes(content)
        report(measure(text, flags.quick), flags.json)
    return 0


if __name__ == "__main__":
    run_main(main)
