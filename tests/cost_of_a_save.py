"""What an asynchronous save costs in throughput: `python tests/cost_of_a_save.py [--layers 4] ...`.

Trains with the program's own step and checkpoints, in windows of equally many steps, with a save at
the beginning of every other one. A window's time holds all that the save takes, in front of the
training and behind its back; the pairs of neighbours are compared, so that a machine whose load
changes spoils little. No test: it measures, and docs/log.md has what it measured.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.state import init_state
from spectral_dist.training.step import batch_sharding, make_train_step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 4), ("seq_len", 256), ("batch_size", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--window", type=int, default=20, help="steps in a window")
    parser.add_argument("--pairs", type=int, default=8, help="windows with a save, and without")
    asked = parser.parse_args()
    flags = f"""--data_paths none.txt --hidden_dim 512 --compute_dtype float32 --chunk_size 32
        --num_layers {asked.layers} --seq_len {asked.seq_len} --batch_size {asked.batch_size}"""
    config = load_config(flags.split())
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        state = init_state(config, mesh)
        train_step = make_train_step(config, mesh)
        shape = (1, asked.batch_size, asked.seq_len + 1)
        tokens = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        batch = jax.device_put(tokens, batch_sharding(config, mesh))
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        checkpoints = Checkpoints(Path(folder), keep=1, warn=sys.exit)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for window in range(2 * asked.pairs):
            save = window % 2 == 0
            started = time.perf_counter()
            if save:
                checkpoints.save(window + 1, state, {})
            for _ in range(asked.window):
                state, metrics = train_step(state, batch)
                jax.block_until_ready(metrics)
            seconds[save].append(time.perf_counter() - started)
            assert checkpoints.steps()[-1:] == [window + save], "the save outlasts its window"
        count = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        blocked = checkpoints.wait_seconds / asked.pairs
        checkpoints.close()
    lost = [a - b for a, b in zip(seconds[True], seconds[False], strict=True)]
    whole = statistics.median(seconds[False])
    quarters = [q / whole for q in statistics.quantiles(lost, n=4)]
    sys.stdout.write(
        f"{count / 1e6:.0f} MB of state, windows of {asked.window} steps of"
        f" {whole / asked.window:.3f} s, {asked.pairs} pairs: a save costs"
        f" {statistics.median(lost):.2f} s, {quarters[1]:.2%} of a window (quartiles"
        f" {quarters[0]:.2%} and {quarters[2]:.2%}), of which it blocks {blocked:.3f} s\n"
    )


if __name__ == "__main__":
    main()
