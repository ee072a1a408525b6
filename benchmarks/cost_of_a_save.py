"""`python -m benchmarks.cost_of_a_save`: throughput that an asynchronous checkpoint save costs.

Trains with the trainer's own step and checkpoints, in segments of equally many steps, with a save
at the start of every other segment. The time of a segment holds both costs of the save: it blocks
training, and then it writes in the background. Read `measure` first; results are in docs/log.md.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from benchmarks.figures import Figure, part_parser, report, single
from spectral_dist.command_line import run_main
from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.settings import Config
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.state import abstract_state, init_state
from spectral_dist.training.step import batch_sharding, make_train_step

PART = "checkpoint"


@dataclass(frozen=True)
class Cost:
    """Measured times of training with and without saves.

    Attributes:
      state_bytes: size of the train state that a save writes.
      with_save: seconds of each segment that began with a save.
      without: seconds of the segment after each of them.
      blocked: seconds that a save blocked training, on average.
      restored: seconds of each of some restores of the last checkpoint.
    """

    state_bytes: int
    with_save: list[float]
    without: list[float]
    blocked: float
    restored: list[float]


def measure(config: Config, steps: int, pairs: int) -> Cost:
    """Train `pairs` times `steps` steps with a save and `steps` without one, on one device.

    Raises:
      ValueError: if a save takes longer than its segment, so that the next one pays for it.
    """
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        state = init_state(config, mesh)
        train_step = make_train_step(config, mesh)
        # One batch for all steps: reading data is no part of what a save costs.
        shape = (1, config.data.batch_size, config.data.seq_len + 1)
        tokens = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        batch = jax.device_put(tokens, batch_sharding(config, mesh))
        state, metrics = train_step(state, batch)  # compiles, outside the measurement
        jax.block_until_ready(metrics)
        checkpoints = Checkpoints(Path(folder), keep=1, warn=sys.exit)
        # Segments with and without a save alternate, so that a changing load of the machine hits
        # both alike.
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for segment in range(2 * pairs):
            save = segment % 2 == 0
            started = time.perf_counter()
            if save:
                checkpoints.save(segment + 1, state, {})
            for _ in range(steps):
                state, metrics = train_step(state, batch)
                # Each step and not only the last: else the host would dispatch all of them at once.
                jax.block_until_ready(metrics)
            seconds[save].append(time.perf_counter() - started)
            # The last complete checkpoint must be that of this pair: the save was done in its
            # segment.
            if checkpoints.steps()[-1:] != [segment + save]:
                raise ValueError(f"steps={steps}: a save takes longer than so many steps")
        blocked = checkpoints.wait_seconds / pairs
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        shapes, last, restored = abstract_state(config, mesh), checkpoints.steps()[-1], []
        for _ in range(3):
            started = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(shapes, last)[0])
            restored.append(time.perf_counter() - started)
        checkpoints.close()
    return Cost(size, seconds[True], seconds[False], blocked, restored)


def figures_of(cost: Cost, steps: int) -> list[Figure]:
    """Return what a save costs, as a median over the pairs, and what a restore takes."""
    # Medians, because a shared machine gives outliers that would rule a mean.
    lost = [a - b for a, b in zip(cost.with_save, cost.without, strict=True)]
    whole = statistics.median(cost.without)
    case = f"{cost.state_bytes / 1e6:.0f} MB of state"
    note = f"{len(lost)} pairs of {steps} steps of {whole / steps:.3f} s"
    shares = [100 * each / whole for each in lost]
    return [
        single(PART, case, "a save costs", "s", lost, note),
        single(PART, case, "a save costs", f"% of {steps} steps", shares),
        single(PART, case, "a save blocks", "s", [cost.blocked]),
        single(PART, case, "a restore", "s", cost.restored, "the files are in the system's cache"),
    ]


def main(argv: Sequence[str]) -> int:
    """Measure what an asynchronous save and a restore cost; return 0."""
    parser = part_parser("benchmarks.cost_of_a_save", main.__doc__)
    for name, default in (("layers", 4), ("seq_len", 256), ("batch_size", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, help="steps with a save, and without (default: 20)")
    parser.add_argument("--pairs", type=int, help="how often both, at least two (default: 8)")
    flags = parser.read(argv)
    dim, steps, pairs = (256, 12, 2) if flags.quick else (512, 20, 8)
    steps, pairs = flags.steps or steps, flags.pairs or pairs
    # The file of --data_paths is never opened: the settings only have to be complete.
    words = f"""--data_paths none.txt --hidden_dim {dim} --compute_dtype float32 --chunk_size 32
        --num_layers {flags.layers} --seq_len {flags.seq_len} --batch_size {flags.batch_size}"""
    report(figures_of(measure(load_config(words.split()), steps, pairs), steps), flags.json)
    return 0


if __name__ == "__main__":
    run_main(main)
