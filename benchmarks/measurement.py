"""Measures peak memory and step time of a few training steps on the attached devices.

Owns what is measured and how. `dry_run_accuracy` starts it in a process of its own. It reads no
text: random tokens take the same memory and time. Read `measure` first. By hand:

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
from spectral_dist.model.flops import flops_per_token
from spectral_dist.planning.compile import abstract_batch
from spectral_dist.settings import Config
from spectral_dist.training.state import abstract_state, make_init, model_spec
from spectral_dist.training.step import make_train_step

STEPS = 5


def measure(config: Config, steps: int = STEPS, trace: str | None = None) -> dict[str, Any]:
    """Initialize a train state, run training steps, and return peak memory and step time.

    Args:
      config: of the run; its text is not read.
      steps: of the measurement.
      trace: folder for a profiler's trace of one more step; None for none.

    Returns:
      `device_kind`; `devices`; `peak` in bytes: of a GPU the peak in use on the first device, of
      the CPU the peak of the whole process above what it had before the initialization;
      `step_seconds`, the median of the steps after the first; `tokens` of a step, and its model
      `flops`.

    Raises:
      ValueError: if the attached devices do not make the mesh.
    """
    mesh = make_mesh(config.mesh.shape, axes=config.mesh.axes)
    device = mesh.devices.flat[0]
    batch = abstract_batch(config, mesh)
    with jax.set_mesh(mesh):
        # Compiled before anything is measured: compiling takes memory that is no array's.
        init = make_init(config, mesh).lower(jax.eval_shape(lambda: jax.random.key(0))).compile()
        step = make_train_step(config, mesh).lower(abstract_state(config, mesh), batch).compile()
        key = jax.random.key(config.run.seed)
        # Printable characters of ASCII, which any tokenizer's vocabulary is large enough for.
        values = np.random.default_rng(0).integers(32, 127, batch.shape, batch.dtype)
        tokens = jax.device_put(values, batch.sharding).block_until_ready()
        # Without this the arrays would reuse memory that compiling left free: it hid 46 MiB of
        # them.
        trim_heap()
        before = resident_bytes()
        reset_peak()
        state, seconds = init(key), []
        for _ in range(steps):
            jax.block_until_ready(state)
            start = time.perf_counter()
            state, metrics = step(state, tokens)
            jax.block_until_ready((state, metrics))  # a call returns before its step is done
            seconds.append(time.perf_counter() - start)
        peak = peak_bytes() - before
        # A GPU's memory is not the process's: its allocator counts it.
        if device.platform != "cpu":
            peak = device.memory_stats()["peak_bytes_in_use"]
        if trace:
            with jax.profiler.trace(trace):
                jax.block_until_ready(step(state, tokens))
    count = config.data.step_tokens
    return {
        "device_kind": device.device_kind,
        "devices": mesh.size,
        "peak": peak,
        # The first step warms up caches and libraries.
        "step_seconds": statistics.median(seconds[1:] or seconds),
        "tokens": count,
        "flops": count * flops_per_token(model_spec(config), config.data.seq_len),
    }


def trim_heap() -> None:
    """Return freed memory of this process to the system; compiling leaves much of it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes (Linux)."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the peak resident memory of this process since `reset_peak`, in bytes (Linux)."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Reset the peak resident memory to the present one: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024


def main(argv: Sequence[str]) -> int:
    """Measure the configuration of the command line, write the result as JSON, and return 0."""
    parser = Parser(prog="python -m benchmarks.measurement", allow_abbrev=False)
    parser.add_argument("--json", metavar="FILE", required=True, help="file to write it to")
    parser.add_argument("--trace", metavar="FOLDER", help="write a trace of one more step there")
    flags, rest = parser.read_some(argv)
    config = load_config(rest, "benchmarks.measurement")
    Path(flags.json).write_text(
        json.dumps(measure(config, trace=flags.trace)) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
