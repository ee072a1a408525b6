"""Evaluation: which windows are scored, against which targets, and how the figures are judged."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spectral_dist.data.mixture import long_windows, validation_windows
from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokens import TokenFile
from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.training.evaluation import MIN_WINDOWS, TOLERANCE, Evaluation, paired_bound
from spectral_dist.training.state import model_spec

SEQ_LEN = 8
FLAGS = f"""--data_paths a.txt,b.txt --data_weights 0.75,0.25 --seq_len {SEQ_LEN} --hidden_dim 16
    --head_dim 8 --num_layers 1 --layer_pattern window --window 4 --compute_dtype float32
    --eval_windows 7 --extrapolation_windows 9 --eval_lengths 2,4"""
Score = Callable[[np.ndarray, int], np.ndarray]


def source(name: str, documents: list[int]) -> TokenFile:
    """Return a source whose held-out documents have these lengths, every byte from 1 to 255."""
    draw = np.random.default_rng(len(documents))
    held_out = [np.append(draw.integers(1, 256, n), 0) for n in documents]
    tokens = Tokens([np.concatenate([np.zeros(50), *held_out]).astype(np.uint8)])
    return TokenFile(name, Path(f"{name}.bin"), tokens, len(documents), "", 50)


LONG, SHORT = source("a", [100] * 10), source("b", [20] * 30)


class Spied:
    """An Evaluation whose scores are a function of the tokens, and what it was asked to score."""

    def __init__(self, score: Score, files: list[TokenFile], mesh: str, *flags: str) -> None:
        config = load_config([*FLAGS.split(), "--mesh", mesh, *flags])
        self.seen: list[tuple[np.ndarray, int]] = []
        self.told: list[str] = []
        shape = config.mesh.shape
        devices = jax.devices()[: math.prod(shape)]
        self.evaluation = Evaluation(
            config, files, make_mesh(shape, devices), report=self.told.append
        )

        def spy(params: Any, tokens: jax.Array, targets: int) -> np.ndarray:
            assert params == {"some": "parameters"}
            self.seen.append((np.asarray(tokens), targets))
            return score(np.asarray(tokens), targets)

        object.__setattr__(self.evaluation, "_eval_step", spy)

    def by_dataset(self) -> dict[str, float]:
        return self.evaluation.by_dataset({"some": "parameters"})

    def extrapolation(self) -> dict[str, float]:
        return self.evaluation.extrapolation({"some": "parameters"})


def sum_of_targets(tokens: np.ndarray, targets: int) -> np.ndarray:
    """Let each target cost as many nats as its byte says."""
    return tokens[:, -targets:].sum(axis=1, dtype=np.float32)


# ---- by source ----


def test_by_source_is_the_model_s_cross_entropy() -> None:
    config = load_config([*FLAGS.split(), "--eval_lengths", "1"])
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    params = model_spec(config).init(jax.random.key(3))
    with jax.set_mesh(mesh):
        measured = Evaluation(config, [LONG, SHORT], mesh, report=pytest.fail)
        metrics = measured.by_dataset(params)
    expected = {}
    for file in (LONG, SHORT):
        windows = validation_windows(file, SEQ_LEN, 7)
        model = model_spec(config).bind(params)
        inputs = jax.numpy.asarray(windows[:, :-1], np.int32)
        logits = np.asarray(model(inputs)[0], np.float64)
        weights = np.exp(logits)
        shares = weights / weights.sum(axis=-1, keepdims=True)
        targets = np.take_along_axis(shares, windows[:, 1:, None].astype(int), axis=-1)
        expected[f"val/{file.name}/bits_per_byte"] = float(-np.log2(targets).mean())
    mean = 0.75 * expected["val/a/bits_per_byte"] + 0.25 * expected["val/b/bits_per_byte"]
    assert metrics == pytest.approx(expected | {"val/bits_per_byte": mean}, rel=1e-6)


@pytest.mark.parametrize(("mesh", "batch"), [("1x1x1", 16), ("1x1x1", 3), ("2x4x1", 8)])
def test_rows_that_fill_up_a_batch_never_count(mesh: str, batch: int) -> None:
    spied = Spied(sum_of_targets, [LONG, SHORT], mesh, "--batch_size", str(batch))
    metrics = spied.by_dataset()
    assert all(len(tokens) == batch for tokens, _ in spied.seen)  # one shape, compiled once
    for file in (LONG, SHORT):
        windows = validation_windows(file, SEQ_LEN, 7)
        assert len(windows) == 7
        bits = windows[:, 1:].astype(np.float64).mean() / math.log(2)
        assert metrics[f"val/{file.name}/bits_per_byte"] == pytest.approx(bits, rel=1e-12)


def test_a_source_of_weight_zero_is_measured_and_no_part_of_the_mean() -> None:
    spied = Spied(sum_of_targets, [LONG, SHORT], "1x1x1", "--data_weights", "1,0")
    metrics = spied.by_dataset()
    assert metrics["val/bits_per_byte"] == metrics["val/a/bits_per_byte"]
    assert metrics["val/b/bits_per_byte"] != metrics["val/a/bits_per_byte"]


def test_too_little_held_out_text_is_told_and_left_out() -> None:
    spied = Spied(sum_of_targets, [LONG, source("b", [3])], "1x1x1")
    assert spied.told[0] == "b: too little held-out text for one window of 8 tokens"
    metrics = spied.by_dataset()
    assert metrics.keys() == {"val/a/bits_per_byte", "val/bits_per_byte"}
    assert metrics["val/bits_per_byte"] == metrics["val/a/bits_per_byte"]


# ---- by length of context ----


def test_the_same_targets_are_scored_with_more_context() -> None:
    spied = Spied(sum_of_targets, [LONG, source("b", [60] * 9)], "1x1x1", "--batch_size", "4")
    metrics = spied.extrapolation()
    by_length: dict[int, list[np.ndarray]] = {}
    for tokens, targets in spied.seen:
        assert targets == SEQ_LEN
        by_length.setdefault(tokens.shape[1] - 1, []).append(tokens)
    assert list(by_length) == [8, 16, 32]  # 1x is always there, to compare with
    assert [len(parts[0]) for parts in by_length.values()] == [4, 2, 1]  # the same memory
    scored = []
    for file in (LONG, source("b", [60] * 9)):
        windows = long_windows(file, 32, 9)
        assert len(windows) == 9
        assert windows.min() > 0  # inside one document
        scored.append(windows[:, -SEQ_LEN:])
    bits = np.concatenate(scored).astype(np.float64).mean() / math.log(2)
    for k in (1, 2, 4):
        assert metrics[f"extrapolation/{k}x/bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    for k in (2, 4):
        assert metrics[f"extrapolation/{k}x/difference"] == 0
        assert metrics[f"extrapolation/{k}x/difference_upper"] == 0
    longest = np.concatenate(by_length[32])
    np.testing.assert_array_equal(longest[:9], long_windows(LONG, 32, 9))


@pytest.mark.parametrize(
    ("extra_bits", "success"), [(-0.1, 1.0), (0.0019, 1.0), (0.0021, 0.0), (0.5, 0.0)]
)
def test_success_is_a_bound_of_two_thousandths(extra_bits: float, success: float) -> None:
    def score(tokens: np.ndarray, targets: int) -> np.ndarray:
        longer = tokens.shape[1] - 1 > 2 * SEQ_LEN
        return np.full(len(tokens), (2.5 + longer * extra_bits) * targets * math.log(2))

    metrics = Spied(score, [LONG, SHORT], "1x1x1").extrapolation()
    assert TOLERANCE == 0.002
    assert metrics["extrapolation/2x/success"] == 1.0
    assert metrics["extrapolation/4x/difference"] == pytest.approx(extra_bits, abs=1e-9)
    assert metrics["extrapolation/4x/difference_upper"] == pytest.approx(extra_bits, abs=1e-9)
    assert metrics["extrapolation/4x/success"] == success


def test_sources_without_long_documents_are_told_and_left_out() -> None:
    spied = Spied(sum_of_targets, [LONG, SHORT], "1x1x1")
    assert spied.told == [
        "no held-out document of b is longer than 32 tokens (4x seq_len): left out of the"
        " extrapolation table"
    ]
    assert not [name for name in spied.extrapolation() if "/b/" in name]
    assert spied.evaluation.missing == ["b"]


def test_too_few_long_windows_give_no_table() -> None:
    few = source("a", [33] * (MIN_WINDOWS - 1))
    assert Spied(sum_of_targets, [few, SHORT], "1x1x1").extrapolation() == {}
    enough = source("a", [33] * MIN_WINDOWS)
    assert Spied(sum_of_targets, [enough, SHORT], "1x1x1").extrapolation()
    one = Spied(sum_of_targets, [LONG, SHORT], "1x1x1", "--eval_lengths", "1")
    assert (one.extrapolation(), one.told) == ({}, [])


# ---- the bound ----


def test_the_bound_is_that_of_the_mean() -> None:
    differences = np.random.default_rng(1).normal(0.01, 0.1, 400)
    mean, upper = paired_bound(differences)
    assert mean == differences.mean()
    # The normal approximation: 1.645 standard errors above the mean.
    assert upper - mean == pytest.approx(1.645 * differences.std() / 20, rel=0.1)
    assert paired_bound(differences) == (mean, upper)


def test_equal_differences_leave_no_doubt() -> None:
    assert paired_bound(np.full(8, 0.25)) == (0.25, 0.25)
