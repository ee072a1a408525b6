"""Metrics of a run: records, throughput (step time, tokens per second), MFU and peak memory.

Owns the names of the metrics and what is derived from them. Must not know who reads a record: no
terminal, no file and no tracker is named here, and JAX is not imported. Read `Record` and
`Throughput` first.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Record:
    """The metrics of one step or one evaluation.

    Attributes:
      step: completed steps; a skipped non-finite step counts as completed.
      metrics: group/name_with_unit -> value.
    """

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class ExtrapolationRow:
    """One context length of the extrapolation table, in bits per byte but for `multiple`.

    Attributes:
      multiple: k, the context as a multiple of the training length.
      bits_per_byte: mean over the windows, or None where it was not measured.
      difference: mean over windows of bits per byte at k minus at 1, or None.
      upper: upper 95% bound of the difference, or None.
      success: the verdict, or None where none was given (k = 1).
      by_dataset: bits per byte of each dataset.
    """

    multiple: int
    bits_per_byte: float | None
    difference: float | None
    upper: float | None
    success: bool | None
    by_dataset: dict[str, float]


def dataset_bits(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the validation bits per byte by dataset, from names val/<dataset>/bits_per_byte."""
    return {
        name.split("/")[1]: value
        for name, value in metrics.items()
        # Two slashes: val/bits_per_byte, the weighted mean, is no dataset's.
        if name.startswith("val/") and name.endswith("/bits_per_byte") and name.count("/") == 2
    }


def extrapolation_rows(metrics: Mapping[str, float]) -> list[ExtrapolationRow]:
    """Return the extrapolation table, shortest context first, from the metric names."""
    found: dict[int, dict[str, float]] = {}
    datasets: dict[int, dict[str, float]] = {}
    for name, value in metrics.items():
        group, _, rest = name.partition("/")
        length, _, rest = rest.partition("/")
        if group != "extrapolation" or not (length.endswith("x") and length[:-1].isdecimal()):
            continue
        multiple = int(length[:-1])
        found.setdefault(multiple, {})
        if "/" in rest:  # extrapolation/2x/<dataset>/bits_per_byte
            datasets.setdefault(multiple, {})[rest.split("/")[0]] = value
        else:
            found[multiple][rest] = value
    return [
        ExtrapolationRow(
            multiple=multiple,
            bits_per_byte=row.get("bits_per_byte"),
            difference=row.get("difference"),
            upper=row.get("difference_upper"),
            success=row["success"] == 1.0 if "success" in row else None,
            by_dataset=datasets.get(multiple, {}),
        )
        for multiple, row in sorted(found.items())
    ]


class Throughput:
    """The throughput of the training loop: step time and tokens per second between two reads.

    Evaluation and compilation do not count: `pause` before them and `resume` after. Waiting for
    data or for a checkpoint delays the steps, so it counts, and is also reported by itself.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start the first window now.

        Args:
          clock: seconds, from any origin, never going back.
        """
        self._clock = clock
        self._paused_at: float | None = None
        self._begin(clock())

    def _begin(self, now: float) -> None:
        self._started = now
        self._excluded = 0.0
        self._steps = 0
        self._tokens = 0
        self._data_wait = 0.0
        self._checkpoint_wait = 0.0

    def add(
        self, steps: int, tokens: int, data_wait: float = 0.0, checkpoint_wait: float = 0.0
    ) -> None:
        """Count work done in this window.

        Args:
          steps: optimizer steps completed, at least 0.
          tokens: tokens trained on in them, over all devices and processes.
          data_wait: seconds the loop waited for batches.
          checkpoint_wait: seconds the loop was held by saving a checkpoint.
        """
        self._steps += steps
        self._tokens += tokens
        self._data_wait += data_wait
        self._checkpoint_wait += checkpoint_wait

    def pause(self) -> None:
        """Stop the clock: what follows is not training."""
        assert self._paused_at is None, "already paused"
        self._paused_at = self._clock()

    def resume(self) -> None:
        """Let the clock run again."""
        assert self._paused_at is not None, "not paused"
        self._excluded += self._clock() - self._paused_at
        self._paused_at = None

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Stop the clock for a while, whether it runs or not."""
        # It may be stopped already, as in a notebook while nobody iterates over the run.
        ran = self._paused_at is None
        if ran:
            self.pause()
        try:
            yield
        finally:
            if ran:
                self.resume()

    def read(self) -> dict[str, float]:
        """Return the throughput since the last read, and begin a new window.

        Returns:
          perf/step_seconds and perf/data_wait_seconds (both a step), perf/tokens_per_second, and
          perf/checkpoint_wait_seconds (in the window). Before the first step of a window the
          result is empty and the window goes on.
        """
        if self._steps == 0:
            return {}
        now = self._clock() if self._paused_at is None else self._paused_at
        elapsed = max(now - self._started - self._excluded, 1e-9)  # a coarse clock may show 0
        figures = {
            "perf/step_seconds": elapsed / self._steps,
            "perf/tokens_per_second": self._tokens / elapsed,
            "perf/data_wait_seconds": self._data_wait / self._steps,
            "perf/checkpoint_wait_seconds": self._checkpoint_wait,
        }
        self._begin(now)
        return figures


@dataclass(frozen=True)
class Peak:
    """The most a device can compute, in dense FLOP/s (no structured sparsity).

    Attributes:
      bfloat16: matrix products of bfloat16, summed in float32.
      float32: float32 products as JAX computes them by default: TF32 where the card has it.
      source: the vendor's document that states the figures.
    """

    bfloat16: float
    float32: float
    source: str


# By words that must all stand in jax's device_kind; the most particular entry comes first, so that
# "H100 PCIe" is not taken for "H100". Data sheets print most figures with 2:4 sparsity; these are
# the dense ones, half of those.
PEAK_FLOPS: dict[str, Peak] = {
    "B200": Peak(2250e12, 1125e12, "NVIDIA HGX B200 data sheet, an eighth of the board"),
    "H200 NVL": Peak(835.5e12, 417.5e12, "NVIDIA H200 Tensor Core GPU data sheet, NVL"),
    "H200": Peak(989.5e12, 494.5e12, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
    "H100 NVL": Peak(835.5e12, 417.5e12, "NVIDIA H100 Tensor Core GPU data sheet, NVL"),
    "H100 PCIe": Peak(756e12, 378e12, "NVIDIA H100 Tensor Core GPU data sheet, PCIe"),
    "H100": Peak(989.5e12, 494.5e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
    "A100": Peak(312e12, 156e12, "NVIDIA A100 Tensor Core GPU data sheet, SXM and PCIe"),
    "L40S": Peak(362.05e12, 183e12, "NVIDIA L40S data sheet"),
    "L4": Peak(121e12, 60e12, "NVIDIA L4 Tensor Core GPU data sheet"),
    "A10G": Peak(70e12, 35e12, "NVIDIA A10G data sheet"),
    "RTX 4090": Peak(165.2e12, 82.6e12, "NVIDIA Ada GPU architecture whitepaper, table 2"),
    # No bfloat16 units on these: XLA widens the operands, so both are the float32 peak.
    "T4": Peak(8.1e12, 8.1e12, "NVIDIA T4 Tensor Core GPU data sheet"),
    "V100 PCIE": Peak(14e12, 14e12, "NVIDIA V100 data sheet, PCIe"),
    "V100": Peak(15.7e12, 15.7e12, "NVIDIA V100 data sheet, SXM2"),
}

# Words of a part of a card (MIG), or of a smaller chip with the same name: another peak.
_OTHER_CHIP = frozenset({"MIG", "LAPTOP", "D", "MAX-Q"})


def find_peak(device_kind: str) -> Peak | None:
    """Return the peak of a device by jax's name for it, such as "NVIDIA L4"; None if unknown."""
    # Also the parts of hyphenated words, as in "NVIDIA A100-SXM4-40GB"; "MAX-Q" stays one word.
    whole = set(device_kind.upper().split())
    words = whole | set(device_kind.upper().replace("-", " ").split())
    if words & _OTHER_CHIP:
        return None
    for name, peak in PEAK_FLOPS.items():
        if set(name.upper().split()) <= words:
            return peak
    return None


def mfu(
    tokens_per_second: float,
    flops_per_token: float,
    device_kind: str,
    devices: int,
    dtype: str = "bfloat16",
) -> float | None:
    """Return model FLOPs utilisation: the share of the devices' peak spent on the model itself.

    Args:
      tokens_per_second: over all devices.
      flops_per_token: of forward and backward by the model's definition, nothing computed twice.
      device_kind: `jax.Device.device_kind`; the devices are all of one kind.
      devices: how many, at least 1.
      dtype: type of the products' operands, bfloat16 or float32.

    Returns:
      In [0, 1], or None where the peak is not known, as on a CPU.
    """
    peak = find_peak(device_kind)
    if peak is None:
        return None
    flops = peak.float32 if dtype == "float32" else peak.bfloat16
    return tokens_per_second * flops_per_token / (devices * flops)


class ReportsMemory(Protocol):
    """A device that may count the memory in use; a `jax.Device` is one."""

    def memory_stats(self) -> Mapping[str, Any] | None:
        """Return the allocator's counters, in bytes, or None where there are none."""
        ...


def memory_bytes(devices: Iterable[ReportsMemory]) -> float | None:
    """Return the largest peak of memory in use over `devices`, in bytes; None if not counted."""
    peaks: list[float] = []
    for device in devices:
        try:
            stats = device.memory_stats()
        except Exception:  # a backend without counters may raise its own kind of error
            continue
        if stats and "peak_bytes_in_use" in stats:
            peaks.append(float(stats["peak_bytes_in_use"]))
    return max(peaks, default=None)
