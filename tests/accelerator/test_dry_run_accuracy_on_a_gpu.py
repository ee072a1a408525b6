"""What the dry run predicts, against an attached NVIDIA GPU: memory_stats() and a clock.

To be run by itself, where nothing else uses the GPU:

    python -m pytest tests/accelerator
    python -m benchmarks.dry_run_accuracy --gpu l4     # the table of the same
"""

import shutil
import subprocess

import pytest

from benchmarks.dry_run_accuracy import cases, compare
from spectral_dist.planning.compile import cuda_plugin
from spectral_dist.planning.hardware import GPU_NAMES, find_gpu


def attached_gpu() -> str | None:
    """The name in our table of the first attached GPU, if there is one."""
    if shutil.which("nvidia-smi") is None or cuda_plugin() is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    first = (listed.splitlines() or [""])[0].strip()
    return next((name for name in GPU_NAMES if find_gpu(name).device_kind == first), None)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(cases("l4"))))
def test_prediction_is_near_the_truth(number: int) -> None:
    gpu = attached_gpu()
    if gpu is None:
        pytest.skip("needs an NVIDIA GPU of the table, and its compiler plugin")
    found = compare(cases(gpu)[number], gpu)
    assert abs(found.memory_error) < 0.1, found
    # A roofline: real kernels take longer, and never ten times as long.
    assert found.time_error is not None
    assert 0.1 < 1 + found.time_error < 1.5, found
