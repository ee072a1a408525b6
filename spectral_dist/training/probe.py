"""A probe of this process's own devices: how long the same small piece of arithmetic takes.

A step ends for all processes at once, because each waits for the others in its collectives. So its
time says that one of them is slow, and not which. This arithmetic waits for nobody. Read `Probe`.
"""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Rows of the square matrices, and how often they are multiplied: some milliseconds. On an L4
# 8 products of 2,048 take about 1.5 ms of its 121 TFLOP/s.
_SIZES = {"gpu": (2048, 8), "cpu": (384, 8)}
_TRIES = 3


class Probe:
    """The compiled arithmetic, on every device of this process."""

    def __init__(self, devices: Sequence[Any]) -> None:
        """Compile it and run it once.

        Args:
          devices: of this process.
        """
        platform = devices[0].platform
        size, products = _SIZES.get(platform, _SIZES["gpu"])
        dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16

        @jax.jit
        def multiply(x: jax.Array) -> jax.Array:
            for _ in range(products):
                x = x @ x
            return x

        self._multiply = multiply
        # A thread of its own: the run's mesh, which is set in the caller's, spans all processes.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="probe")
        # The identity: its powers neither grow nor vanish.
        identity = np.eye(size, dtype=dtype)
        place = self._thread.submit(lambda: [jax.device_put(identity, d) for d in devices])
        self._inputs = place.result()
        self.seconds()

    def seconds(self) -> float:
        """Return the seconds of the slowest device: of three tries the middle one."""
        return self._thread.submit(self._slowest).result()

    def _slowest(self) -> float:
        return max(statistics.median(self._time(x) for _ in range(_TRIES)) for x in self._inputs)

    def _time(self, x: jax.Array) -> float:
        start = time.perf_counter()
        jax.block_until_ready(self._multiply(x))
        return time.perf_counter() - start
