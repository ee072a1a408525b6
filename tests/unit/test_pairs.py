"""Minimal pairs: what a file says, what is scored, and the command on a trained run."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from spectral_dist.evaluate import main
from spectral_dist.inference import LoadedRun
from spectral_dist.likelihood import Likelihood
from spectral_dist.pairs import PairScore, read_pairs, score_pairs
from tests.end_to_end.test_transformers import MODELS, random_run

pytestmark = pytest.mark.slow

COLUMNS = ("good_sentence", "bad_sentence")
PAIRS = [("ağaç yeşil.", "ağaç yeşildir."), ("a", "b"), ("aynı", "aynı"), ("uzun " * 9, "kısa")]


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    return random_run(MODELS["hybrid"])


def direct(run: LoadedRun, text: str) -> float:
    """Score a text by one call of the model on all of it."""
    tokens = np.frombuffer(b"\0" + text.encode(), np.uint8).astype(np.int32)
    logits, _ = run.model(tokens[None, :-1])
    logp = np.asarray(jax.nn.log_softmax(logits), np.float64)[0]
    return float(logp[np.arange(len(tokens) - 1), tokens[1:]].sum())


@pytest.mark.parametrize("batch", [1, 3])
def test_the_likelier_sentence_is_chosen(run: LoadedRun, batch: int) -> None:
    found = score_pairs(run, {"x": PAIRS, "y": PAIRS[1:2]}, batch)
    right = [direct(run, a) > direct(run, b) for a, b in PAIRS if a != b]
    assert found == {"x": PairScore(3, sum(right), 1, 1), "y": PairScore(1, int(right[1]), 0, 0)}
    # The other way round it is the others.
    turned = score_pairs(run, {"x": [(b, a) for a, b in PAIRS]}, batch)
    assert turned["x"].right == 3 - found["x"].right
    assert turned["x"].shorter == 1, "the other one of unequal length"


def test_whole_texts_and_continuations_add_up(
    run: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spectral_dist.likelihood._PIECE", 64)
    likelihood = Likelihood(run, 2)
    text = "bir varmış bir yokmuş " * 9
    assert likelihood.of_text(text) == pytest.approx(direct(run, text), rel=1e-5)
    ((first, _), (rest, _)) = likelihood.of_continuations([("", text[:7]), (text[:7], text[7:])])
    assert first + rest == pytest.approx(direct(run, text), rel=1e-5)


def test_the_interval_is_wilsons() -> None:
    assert PairScore(100, 80, 0, 0).interval == pytest.approx((0.7112, 0.8666), abs=1e-4)
    assert PairScore(10, 10, 0, 0).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert math.isnan(PairScore(0, 0, 1, 0).share)
    assert all(math.isnan(end) for end in PairScore(0, 0, 1, 0).interval)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("good_sentence;bad_sentence;cue\nA, b;c;d\n\nE;F;\n", COLUMNS),
        ('x,wrong,right\n1,c,"A, b"\n2,F,E\n', ("right", "wrong")),
        ("\ufeffgood_sentence\tbad_sentence\nA, b\tc\nE\tF", COLUMNS),
    ],
)
def test_tables_of_any_kind(tmp_path: Path, text: str, columns: tuple[str, str]) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert read_pairs(tmp_path / "a.csv", columns) == [("A, b", "c"), ("E", "F")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"good;bad\na;b\n",
            "has no column 'good_sentence'; its columns are good, bad .--pair_col",
        ),
        (b"", "has no column 'good_sentence'; its columns are none"),
        (b"good_sentence;bad_sentence\n", "holds no pair"),
        (b"good_sentence;bad_sentence\na;b\nc\n", "row 3 has not both sentences"),
        (b"good_sentence;bad_sentence\na; \n", "row 2 has not both sentences"),
        (b"good_sentence;bad_sentence\n\xff;a\n", "cannot be read: .*utf-8"),
        (b'good_sentence;bad_sentence\n"a;b\n', "cannot be read: unexpected end of data"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_pairs(path, COLUMNS)
    assert str(caught.value).startswith(f"pairs: {path}: ")
    assert "\n" not in str(caught.value)


def test_the_command(
    run: LoadedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("spectral_dist.scoring.load_run", lambda *_, **__: run)
    for name, pairs in (("one", PAIRS), ("two", PAIRS[:2])):
        rows = "\n".join(f"{a};{b}" for a, b in pairs)
        (tmp_path / f"{name}.csv").write_text(f"good_sentence;bad_sentence\n{rows}\n")
    files = f"{tmp_path / 'one.csv'},{tmp_path / 'two.csv'}"
    flags = ["--run_name", "r", "--pairs", files, "--json", str(tmp_path / "found.json")]
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = score_pairs(run, {"one": PAIRS, "two": PAIRS[:2]}, 8)
    assert lines[1].startswith(f"one  {wanted['one'].share:.1%} of 3 pairs, 95% interval ")
    assert lines[1].endswith(
        "; the right one is the shorter in 1; 1 left out, both sentences alike"
    )
    assert lines[-1].startswith("mean of 2 tables  ")
    metrics = json.loads((tmp_path / "found.json").read_text())["metrics"]
    assert metrics["two/share"] == wanted["two"].share
    assert metrics["two/shorter"] == 1
    assert metrics["mean"] == (wanted["one"].share + wanted["two"].share) / 2


def test_the_built_in_suite_beside_a_file(
    run: LoadedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("spectral_dist.scoring.load_run", lambda *_, **__: run)
    monkeypatch.setattr("spectral_dist.scoring.turkish_pairs", lambda: {"tense": PAIRS[:2]})
    (tmp_path / "one.csv").write_text("good_sentence;bad_sentence\na;b\n")
    flags = ["--run_name", "r", "--pairs"]
    assert main([*flags, f"{tmp_path / 'one.csv'},turkish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["one", "tense", "mean of 2 tables"]
    (tmp_path / "tense.csv").write_text("good_sentence;bad_sentence\na;b\n")
    with pytest.raises(ValueError, match="must be files of different names"):
        main([*flags, f"{tmp_path / 'tense.csv'},turkish"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pairs", "a.csv", "--tasks", "x"], "pairs, tasks: give one of them"),
        (["--pairs", "a.csv", "--pair_columns", "a"], "pair_columns='a': must be two names"),
        (["--pairs", ","], "pairs=',': must be files of different names"),
        (["--pairs", "none.csv"], "pairs: none.csv: cannot be read"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        main(["--run_name", "no such run", *flags])
