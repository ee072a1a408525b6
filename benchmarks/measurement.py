"""A few training steps on the attached devices, for the memory and the time that they take.

Owns what is measured and how. Started by `dry_run_accuracy` in a process of its own; it reads no
text, as no byte's value changes the memory or the time. Read `measure` first. By hand:

    python -m benchmarks.measurement --config FILE --json measured.json
"""

import ctypes
import gc
import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectral_dist.command_line import Parser, run_main
from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.planning.compile import abstract_batch
from spectral_dist.settings import Config
from spectral_dist.training.state import abstract_state, make_init
from spectral_dist.training.step import make_train_step

STEPS = 5


def measure(config: Config, steps: int = STEPS) -> dict[str, Any]:
    """Make a state, run steps, and return what they took.

    Returns:
      `device_kind`; `devices`; `peak`, bytes: of a GPU the most that was in use on the first
      device, of the processor what the whole process had more in memory at its highest than
      before the state was made; `step_seconds`, the median of the steps after the first.

    Raises:
      ValueError: if the attached devices do not make the mesh.
    """
    mesh = make_mesh(config.mesh.shape)
    device = mesh.devices.flat[0]
    batch = abstract_batch(config, mesh)
    with jax.set_mesh(mesh):
        init = make_init(config, mesh).lower(jax.eval_shape(lambda: jax.random.key(0))).compile()
        step = make_train_step(config, mesh).lower(abstract_state(config, mesh), batch).compile()
        key = jax.random.key(config.run.seed)
        values = np.random.default_rng(0).integers(32, 127, batch.shape, batch.dtype)
        tokens = jax.device_put(values, batch.sharding).block_until_ready()
        give_back()
        before = resident_bytes()
        forget_peak()
        state, seconds = init(key), []
        for _ in range(steps):
            jax.block_until_ready(state)
            start = time.perf_counter()
            state, metrics = step(state, tokens)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - start)
    peak = peak_bytes() - before
    if device.platform != "cpu":
        peak = device.memory_stats()["peak_bytes_in_use"]
    return {
        "device_kind": device.device_kind,
        "devices": mesh.size,
        "peak": peak,
        "step_seconds": statistics.median(seconds[1:] or seconds),
    }


def give_back() -> None:
    """Return to the system what this process holds free, of which compiling leaves much."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others need not
    if trim is not None:
        trim(0)


def resident_bytes() -> int:
    """Return the memory that this process has now (Linux)."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the most memory that this process has had since `forget_peak` (Linux)."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Set the peak back to what is in memory now: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024


def main(argv: Sequence[str]) -> int:
    """Measure the configuration of the command line and write the result; return 0."""
    parser = Parser(prog="python -m benchmarks.measurement", allow_abbrev=False)
    parser.add_argument("--json", metavar="FILE", required=True, help="file to write it to")
    flags, rest = parser.read_some(argv)
    config = load_config(rest, "benchmarks.measurement")
    Path(flags.json).write_text(json.dumps(measure(config)) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_main(main)
