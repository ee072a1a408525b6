"""Memory that ran out is one line with the flags to change; anything else stays as it is."""

import pytest

from spectral_dist.flags import load_config
from spectral_dist.training.failures import explain

GPU = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 13421772800 bytes.\n"
    "BufferAssignment OOM Debugging."
)
FLAGS = "--data_paths a.txt --batch_size 8 --accum_steps 2"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (GPU, " (asked for 13421772800 bytes)"),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 512 bytes", " (asked for 512 bytes)"),
        ("RESOURCE_EXHAUSTED: Failed to allocate request for 25.00GiB on device", None),
        (
            "RESOURCE_EXHAUSTED: Failed to allocate request for 176.00MiB (184549376B) on device"
            " ordinal 0",
            " (asked for 176.00MiB)",
        ),
        ("RESOURCE_EXHAUSTED: CUDA_ERROR_OUT_OF_MEMORY", ""),
        ("INTERNAL: CUDA error: CUDA_ERROR_OUT_OF_MEMORY: out of memory", ""),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.58G of 15.75G.", ""),
    ],
)
def test_it_says_what_was_asked_and_what_to_change(text: str, asked: str | None) -> None:
    found = explain(RuntimeError(text), load_config(FLAGS.split()))
    assert isinstance(found, ValueError)
    wanted = " (asked for 25.00GiB)" if asked is None else asked
    assert str(found).startswith(f"out of memory on a device{wanted}. Checkpoints are safe.")
    parts = ("--batch_size 4 with --accum_steps 4", "--remat full (now dots)", "(now 1x1x1)")
    assert all(part in str(found) for part in parts)


def test_what_cannot_be_changed_is_not_offered() -> None:
    config = load_config([*FLAGS.split(), "--mesh", "2x4x1", "--remat", "full"])
    text = str(explain(MemoryError(), config))
    assert text.startswith("out of memory on this host. ")
    assert "--batch_size" not in text
    assert "--remat" not in text


@pytest.mark.parametrize(
    "text",
    [
        "INTERNAL: something else",
        "RESOURCE_EXHAUSTED: Received message larger than max (5242880 vs. 4194304)",
    ],
)
def test_other_errors_stay(text: str) -> None:
    error = RuntimeError(text)
    assert explain(error, load_config(FLAGS.split())) is error
