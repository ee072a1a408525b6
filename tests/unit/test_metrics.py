import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from spectral_dist.training import metrics
from spectral_dist.training.metrics import (
    PEAK_FLOPS,
    Throughput,
    dataset_bits,
    extrapolation_rows,
    find_peak,
    memory_bytes,
    mfu,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_throughput_measures_the_window_between_two_reads() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    for _ in range(4):
        clock.now += 0.5
        throughput.add(1, 1000, data_wait=0.1)
    throughput.add(0, 0, checkpoint_wait=0.25)
    assert throughput.read() == pytest.approx(
        {
            "perf/step_seconds": 0.5,
            "perf/tokens_per_second": 2000.0,
            "perf/data_wait_seconds": 0.1,
            "perf/checkpoint_wait_seconds": 0.25,
        }
    )
    clock.now += 3.0
    throughput.add(2, 300)
    second = throughput.read()
    assert second["perf/tokens_per_second"] == pytest.approx(100.0)
    assert second["perf/data_wait_seconds"] == 0.0
    assert second["perf/checkpoint_wait_seconds"] == 0.0


def test_paused_time_is_no_training_time() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    clock.now += 1.0
    for _ in range(2):
        throughput.pause()
        clock.now += 50.0
        throughput.resume()
    clock.now += 1.0
    throughput.add(2, 10)
    assert throughput.read()["perf/step_seconds"] == pytest.approx(1.0)


def test_read_while_paused_excludes_the_pause_from_both_windows() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    clock.now += 2.0
    throughput.add(1, 10)
    throughput.pause()
    clock.now += 7.0
    assert throughput.read()["perf/step_seconds"] == pytest.approx(2.0)
    clock.now += 5.0
    throughput.resume()
    clock.now += 3.0
    throughput.add(1, 10)
    assert throughput.read()["perf/step_seconds"] == pytest.approx(3.0)


def test_window_without_a_step_gives_nothing_and_goes_on() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    clock.now += 1.0
    throughput.add(0, 0, checkpoint_wait=0.5)
    assert throughput.read() == {}
    clock.now += 1.0
    throughput.add(1, 10)
    figures = throughput.read()
    assert figures["perf/step_seconds"] == pytest.approx(2.0)
    assert figures["perf/checkpoint_wait_seconds"] == 0.5


def test_clock_that_stands_still_gives_finite_figures() -> None:
    throughput = Throughput(Clock())
    throughput.add(1, 10)
    assert throughput.read()["perf/tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("kind", "bfloat16"),
    [
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla T4", 8.1e12),
        ("Tesla V100-SXM2-16GB", 15.7e12),
        ("Tesla V100-PCIE-32GB", 14e12),
    ],
)
def test_peak_by_the_names_that_jax_reports(kind: str, bfloat16: float) -> None:
    peak = find_peak(kind)
    assert peak is not None
    assert peak.bfloat16 == bfloat16


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "",
        "NVIDIA A10",
        "NVIDIA L40",
        "NVIDIA RTX A4000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "TPU v4",
    ],
)
def test_no_peak_is_better_than_a_wrong_one(kind: str) -> None:
    assert find_peak(kind) is None
    assert mfu(1e6, 1e9, kind, 1) is None


def test_every_peak_names_its_source_and_float32_is_not_faster() -> None:
    for peak in PEAK_FLOPS.values():
        assert "NVIDIA" in peak.source
        assert 0 < peak.float32 <= peak.bfloat16


def test_mfu_is_a_share_of_all_devices() -> None:
    assert mfu(121e12 / 1e9, 1e9, "NVIDIA L4", 2) == pytest.approx(0.5)
    assert mfu(60e12 / 1e9, 1e9, "NVIDIA L4", 1, "float32") == pytest.approx(1.0)


class Device:
    def __init__(self, stats: Mapping[str, Any] | Exception | None) -> None:
        self.stats = stats

    def memory_stats(self) -> Mapping[str, Any] | None:
        if isinstance(self.stats, Exception):
            raise self.stats
        return self.stats


def test_memory_is_the_largest_peak_or_none() -> None:
    devices = [
        Device({"peak_bytes_in_use": 5}),
        Device({"peak_bytes_in_use": 7, "bytes_in_use": 9}),
        Device(None),
        Device(RuntimeError("not implemented")),
    ]
    assert memory_bytes(devices) == 7.0
    assert memory_bytes(devices[2:]) is None
    assert memory_bytes([]) is None


def test_tables_are_read_from_the_metric_names() -> None:
    values = {
        "val/bits_per_byte": 2.0,
        "val/tr/bits_per_byte": 1.5,
        "val/en/bits_per_byte": 2.5,
        "extrapolation/16x/bits_per_byte": 2.2,
        "extrapolation/2x/bits_per_byte": 2.1,
        "extrapolation/2x/difference": 0.1,
        "extrapolation/2x/difference_upper": 0.2,
        "extrapolation/2x/success": 0.0,
        "extrapolation/2x/difference/bits_per_byte": 1.0,  # a source of that name
        "train/loss": 1.0,
    }
    assert dataset_bits(values) == {"tr": 1.5, "en": 2.5}
    two, sixteen = extrapolation_rows(values)
    assert (two.multiple, two.bits_per_byte, two.difference, two.upper) == (2, 2.1, 0.1, 0.2)
    assert two.success is False
    assert two.by_dataset == {"difference": 1.0}
    assert (sixteen.multiple, sixteen.difference, sixteen.success) == (16, None, None)
    assert extrapolation_rows({}) == []


def test_module_imports_neither_jax_nor_an_output() -> None:
    tree = ast.parse(Path(metrics.__file__).read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= {"contextlib", "time", "collections.abc", "dataclasses", "typing"}
