"""`python -m benchmarks.rates`: the rates of copies and products that the device itself reaches.

They bound any program; a data sheet's are higher. Read `measure_rates`.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spectral_dist.command_line import Parser, run_main


def seconds(call: Callable[[], Any], repeats: int = 7, inner: int = 5) -> float:
    """Return the median time of a call, in seconds, after one to warm up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        results = [call() for _ in range(inner)]
        jax.block_until_ready(results)
        times.append((time.perf_counter() - start) / inner)
    return statistics.median(times)


def measure_rates() -> dict[str, Any]:
    """Measure the first device.

    Returns:
      `device_kind`; `copy`, bytes read and written a second; `product`, FLOP/s of products of
      `dtype`: bfloat16 on a GPU, float32 on a CPU, as training has them there.
    """
    on_gpu = jax.default_backend() == "gpu"
    # Large enough to fill the device, and far more than its caches.
    items, size = (1 << 28, 8192) if on_gpu else (1 << 25, 2048)
    dtype = jnp.bfloat16 if on_gpu else jnp.float32
    x = jax.random.normal(jax.random.key(0), (items,), jnp.float32)
    copied = seconds(partial(jax.jit(lambda x: x + 1), x))
    a = jax.random.normal(jax.random.key(1), (size, size), dtype)
    multiplied = seconds(partial(jax.jit(jnp.matmul), a, a))
    return {
        "device_kind": jax.devices()[0].device_kind,
        "copy": 2 * x.nbytes / copied,
        "product": 2 * size**3 / multiplied,
        "dtype": jnp.dtype(dtype).name,
    }


def main(argv: Sequence[str]) -> int:
    """Measure the device, write its rates as JSON, and return 0."""
    parser = Parser(prog="python -m benchmarks.rates", allow_abbrev=False)
    parser.add_argument("--json", metavar="FILE", required=True, help="file to write them to")
    flags = parser.read(argv)
    Path(flags.json).write_text(json.dumps(measure_rates()) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_main(main)
