"""Slow hosts: which process of a run is slower than the others, by what each measures of itself.

Knows no device and no training. Read `SlowHosts`.
"""

import contextlib
import math
import statistics
import subprocess
from collections.abc import Callable, Mapping

SLOWER = 1.15  # times the median of all processes
SECONDS = 60.0  # for this long, before a process is named
PROBE, DATA_WAIT, STEP = "probe_seconds", "data_wait_seconds", "step_seconds"
CELSIUS = "gpu_celsius"
_WAITING = 0.15  # of a step spent waiting for data

Figures = Mapping[str, float]


class SlowHosts:
    """Names a process that has been slow for a minute, once each time."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Name nobody yet.

        Args:
          warn: takes one line for a process that is slow.
        """
        self._warn = warn
        self._since: dict[str, float] = {}  # of who is slow now
        self._named: set[str] = set()

    def look(self, hosts: Mapping[str, Figures], now: float) -> None:
        """Look at the newest figures of all processes.

        Args:
          hosts: the figures of each process, by how a message names it.
          now: seconds, by any clock that goes on.
        """
        probes = [figures[PROBE] for figures in hosts.values() if PROBE in figures]
        median = statistics.median(probes) if len(probes) > 1 else math.inf
        for name, figures in hosts.items():
            reason = _why_slow(figures, median)
            if not reason:
                self._since.pop(name, None)
                self._named.discard(name)
                continue
            since = self._since.setdefault(name, now)
            if now - since >= SECONDS and name not in self._named:
                self._named.add(name)
                heat = f"; its GPU has {figures[CELSIUS]:.0f} C" if CELSIUS in figures else ""
                self._warn(f"{name} {reason} for {now - since:.0f} s, and all wait for it{heat}")


def _why_slow(figures: Figures, median: float) -> str:
    """Return what is slow about a process; "" if nothing is."""
    ratio = figures.get(PROBE, 0.0) / median
    if ratio > SLOWER:
        return f"has been {ratio - 1:.0%} slower than the median in arithmetic of its own"
    wait, step = figures.get(DATA_WAIT, 0.0), figures.get(STEP, math.inf)
    if wait > _WAITING * step:
        return f"has waited for its data {wait / step:.0%} of each step"
    return ""


def gpu_celsius() -> float | None:
    """Return the temperature of this host's hottest GPU; None where it cannot be read."""
    command = ["nvidia-smi", "--query-gpu=temperature.gpu", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return max(float(line) for line in found.stdout.split())
    return None
