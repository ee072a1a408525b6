"""The axes of the curves: tokens, FLOPs and hours, over several starts of a run."""

import pytest

from spectral_dist.flags import load_config
from spectral_dist.model.flops import flops_per_token
from spectral_dist.training.metrics import Record
from spectral_dist.training.progress import HOURS, Axes
from spectral_dist.training.state import model_spec

FLAGS = "--data_paths a.txt --hidden_dim 64 --seq_len 128 --batch_size 2 --accum_steps 3"
CONFIG = load_config(FLAGS.split())


def test_a_start_counts_on_from_the_one_before() -> None:
    # 100 sequences in 10 steps, of another batch size, and two hours.
    axes = Axes(CONFIG, (10, 100), 2.0)
    assert axes.next_sequence(12) == 112
    found = axes.of(Record(12, {"perf/step_seconds": 90.0}))
    assert found["progress/tokens"] == 112 * 128
    assert found["progress/flops"] == 112 * 128 * flops_per_token(model_spec(CONFIG), 128)
    assert found[HOURS] == pytest.approx(2.05)
    # An evaluation at the same step takes no time of training.
    assert axes.of(Record(12, {"val/bits_per_byte": 2.0}))[HOURS] == pytest.approx(2.05)
    assert axes.of(Record(14, {"perf/step_seconds": 90.0}))[HOURS] == pytest.approx(2.1)
