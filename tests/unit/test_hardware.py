"""The table of GPUs: figures, sources, and texts that the compiler reads."""

import pytest

from spectral_dist.planning.compile import cuda_plugin, described_devices
from spectral_dist.planning.hardware import GPU_NAMES, TARGETS, find_gpu
from spectral_dist.training.metrics import PEAK_FLOPS

needs_plugin = pytest.mark.skipif(cuda_plugin() is None, reason="needs the CUDA compiler plugin")


def test_every_text_has_its_place_in_the_table() -> None:
    assert {path.stem for path in TARGETS.glob("*.txtpb")} == set(GPU_NAMES)


def test_the_l4() -> None:
    gpu = find_gpu("l4")
    assert gpu.memory_bytes == 22.5 * 2**30
    assert gpu.compute_capability == (8, 9)
    assert gpu.cores == 58
    assert gpu.l2_bytes == 48 * 2**20
    assert gpu.shared_memory_bytes == 100 * 2**10
    assert gpu.registers == 65536
    assert gpu.memory_bandwidth == pytest.approx(300e9, rel=1e-3)
    assert gpu.bfloat16 == PEAK_FLOPS["L4"].bfloat16
    assert gpu.inside.name == "PCIe 4.0 x16"


@pytest.mark.parametrize("name", GPU_NAMES)
def test_figures_are_plausible_and_have_sources(name: str) -> None:
    gpu = find_gpu(name)
    assert 20e9 < gpu.memory_bytes < 200e9
    assert 200e9 < gpu.memory_bandwidth < 10e12
    assert 50 < gpu.cores < 200
    assert gpu.compute_capability >= (8, 0)
    assert gpu.bfloat16 >= gpu.float32 > 0
    # A link inside a host is slower than the memory, and the host's network than all its links.
    assert gpu.inside.bytes_per_second < gpu.memory_bandwidth
    assert gpu.between.bytes_per_second < 8 * gpu.inside.bytes_per_second
    figures = {"device_memory_size", "memory_bandwidth", "core_count", "l2_cache_size"}
    figures |= {"shared_memory_per_core", "registers_per_core_limit", "cuda_compute_capability"}
    stated = gpu.sources.keys() | {"cuda_compute_capability"}
    assert figures | {"peak", "inside", "between"} <= stated
    assert all(len(source) > 3 for source in gpu.sources.values())


def test_an_unknown_gpu_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"gpu='l5': must be one of l4, a10g, .*, cpu"):
        find_gpu("l5")


@needs_plugin
@pytest.mark.parametrize("name", GPU_NAMES)
def test_the_compiler_reads_every_text(name: str) -> None:
    gpu = find_gpu(name)
    devices = described_devices(gpu, hosts=2, gpus_per_host=4)
    assert [device.device_kind for device in devices] == [gpu.device_kind] * 8
    assert [device.process_index for device in devices] == [0] * 4 + [1] * 4
