"""What each host of a run measures of itself, in the records; a slow one is named.

Read `HostFigures`.
"""

import threading
import time
from collections.abc import Callable, Mapping

import jax

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.hosts import (
    CELSIUS,
    DATA_WAIT,
    PROBE,
    STEP,
    SlowHosts,
    gpu_celsius,
)
from spectral_dist.training.metrics import Record
from spectral_dist.training.probe import Probe
from spectral_dist.training.state import TrainState

_PROBE_SECONDS = 20.0  # between two probes, each of some milliseconds


class HostFigures:
    """A figure of a run of several processes: hosts/<index>/... of every process."""

    def __init__(
        self,
        processes: Processes,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Measure nothing yet.

        Args:
          processes: of the run.
          warn: takes one line for a process that is slow; only the coordinator's is called.
          clock: returns monotonic seconds.
        """
        self._processes, self._clock = processes, clock
        self._slow = SlowHosts(warn)
        self._probe: Probe | None = None
        self._probed = -_PROBE_SECONDS
        self._figures: dict[str, float] = {}

    def __call__(self, record: Record, state: TrainState) -> Mapping[str, float]:
        """Measure this process, if it is time to; return the newest figures of all processes."""
        if self._processes.count == 1:
            return {}
        now = self._clock()
        if now - self._probed >= _PROBE_SECONDS:
            self._probed = now
            # The step ahead must be done: the probe would else measure the wait for it.
            jax.block_until_ready(state)
            if self._probe is None:
                self._probe = Probe(jax.local_devices())
            self._figures[PROBE] = self._probe.seconds()
            threading.Thread(target=self._take_temperature, daemon=True).start()
        for ours, metric in (
            (DATA_WAIT, "perf/data_wait_seconds"),
            (STEP, "perf/step_seconds"),
        ):
            if metric in record.metrics:
                self._figures[ours] = record.metrics[metric]
        self._processes.report(self._figures)
        if not self._processes.is_coordinator:
            return {}
        hosts = self._processes.hosts()
        self._slow.look(hosts, now)
        return {
            f"hosts/{index}/{name}": value
            for index, figures in enumerate(hosts.values())
            for name, value in figures.items()
            if name != STEP  # the same for all
        }

    def _take_temperature(self) -> None:
        heat = gpu_celsius()
        if heat is not None:
            self._figures[CELSIUS] = heat
