"""Recall: what the tasks ask, how far back the answer stands, and that the command goes on."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import recall
from benchmarks.recall import DISTANCES, LENGTH, TASKS, flags_of, main, training_text
from spectral_dist.data.tokenizers import TOKENIZERS
from spectral_dist.flags import load_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_answer_stands_as_far_back_as_is_said(task: str, distance: int) -> None:
    for seed in range(20):
        text, answer = TASKS[task](np.random.default_rng(seed), distance)
        assert text.count(answer) >= 1
        back = len(text.encode()) - text.encode().index(answer.encode())
        # The filler ends with a whole word; names and the question stand between, too.
        assert distance <= back <= distance + 50
        assert (text, answer) == TASKS[task](np.random.default_rng(seed), distance)


def test_no_name_has_two_values() -> None:
    for seed in range(200):
        text, answer = recall.pairs(np.random.default_rng(seed), 8)
        listed = dict(word.split(":") for word in text.split()[: recall._PAIRS])
        assert len(listed) == recall._PAIRS
        assert listed[text.split()[-1].rstrip(":")] == answer


def test_documents_fit_in_the_training_length() -> None:
    text = training_text(300, 0)
    documents = text.split("\n<|endoftext|>\n")[:-1]
    assert len(documents) == 300
    sizes = [len(document.encode()) for document in documents]
    assert max(sizes) <= LENGTH + 8, "what is asked for must be inside of a window"
    assert np.median(sizes) < LENGTH / 2
    assert sum("anahtar" in document for document in documents) in range(70, 130)
    assert training_text(300, 0) == text != training_text(300, 1)


def test_every_variant_can_be_trained() -> None:
    for name in recall.VARIANTS:
        values = flags_of(name, 10, 1e-3, 0, Path("out"))
        config = load_config([w for key, v in values.items() for w in (f"--{key}", str(v))])
        assert config.data.seq_len == LENGTH
        assert TOKENIZERS[config.data.tokenizer]


def test_it_trains_asks_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"hidden_dim": 16, "num_layers": 1, "head_dim": 8, "num_kv_heads": 2, "window": 8}
    monkeypatch.setattr(recall, "SIZE", tiny | {"seq_len": 32, "batch_size": 2})
    monkeypatch.setattr(recall, "DISTANCES", (8, 16))
    flags = ["recall", "--out", str(tmp_path), "--steps", "2", "--examples", "4"]
    flags += ["--variants", "spectral,attention"]
    run, started = subprocess.run, list[str]()

    def second_fails(command: list[str], **how: Any) -> Any:
        started.append(command[command.index("--layer_pattern") + 1])
        if len(started) == 2:
            return subprocess.CompletedProcess(command, 75)
        return run(command, **how)

    monkeypatch.setattr(recall.subprocess, "run", second_fails)
    assert bench.main(flags) == 75
    assert bench.main(flags) == 0
    assert started == ["spectral", "attention", "attention"]
    lines = [json.loads(line) for line in (tmp_path / "recall.jsonl").read_text().splitlines()]
    assert [line["variant"] for line in lines] == ["spectral", "attention"]
    assert lines[0]["shares"].keys() == set(TASKS)
    assert all(0 <= share <= 1 for task in lines[0]["shares"].values() for share in task.values())
    capsys.readouterr()
    assert bench.main([*flags, "--table"]) == 0
    assert "| pairs   | attention |" in capsys.readouterr().out


def test_right_answers_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a model that answers by looking the answer up, but not beyond two lengths."""

    class Oracle:
        def __init__(self, run: Any, batch_size: int) -> None:
            assert batch_size >= 1

        def of_continuations(self, asked: list[tuple[str, str]]) -> list[tuple[float, bool]]:
            return [(0.0, answer in text and len(text) < 3 * LENGTH) for text, answer in asked]

    monkeypatch.setattr("spectral_dist.inference.load_run", lambda *_, **__: None)
    monkeypatch.setattr("spectral_dist.likelihood.Likelihood", Oracle)
    for shares in recall.ask("r", tmp_path, 5).values():
        assert list(shares.values()) == [1.0] * 5 + [0.0] * 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--variants", "x"], "variants=x: must be among attention, "),
        (["--lrs", "a"], "lrs=a: must be numbers joined by commas"),
        (["--steps", "0"], "steps=0: must be at least 1"),
        (["--examples", "-1"], "examples=-1: must be at least 1"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        main(["--out", str(tmp_path), *flags])
