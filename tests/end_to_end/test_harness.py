"""Our models in the lm-evaluation-harness: its numbers are those of a direct computation.

Needs the extra `eval`; left out without it, unless SPECTRAL_TESTS_NEED_HARNESS is set.
"""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from spectral_dist.inference import Generator, LoadedRun
from tests.end_to_end.test_transformers import MODELS, random_run

NEEDED = "SPECTRAL_TESTS_NEED_HARNESS" in os.environ
pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("lm_eval") or NEEDED), reason="lm_eval is not installed"
)
TEXTS = ["ağaç kuş", "b", "bir varmış bir yokmuş " * 9, "日本"]


@pytest.fixture(scope="module", params=["hybrid", "attention"])
def run(request: pytest.FixtureRequest) -> LoadedRun:
    return random_run(MODELS[request.param])


@pytest.fixture
def model(run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> Any:
    from spectral_dist import harness, likelihood

    monkeypatch.setattr(likelihood, "_PIECE", 64)  # so that a text has several pieces
    return harness.HarnessModel(run, batch_size=3)


def direct(run: LoadedRun, context: str, continuation: str) -> tuple[float, bool]:
    """Score one continuation by a call of the model on all of it."""
    before, after = context.encode(), continuation.encode()
    tokens = np.array([[0, *before, *after]])
    logits, _ = run.model(tokens[:, :-1])
    logp = np.asarray(jax.nn.log_softmax(logits))[0]
    places, targets = np.arange(len(before), len(before) + len(after)), np.frombuffer(after, "u1")
    greedy = np.asarray(logits)[0, places].argmax(-1) == targets
    return float(logp[places, targets].astype(np.float64).sum()), bool(greedy.all())


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_continuations_have_their_log_probability(run: LoadedRun, model: Any) -> None:
    likeliest = chr(int(np.asarray(run.model(np.array([[0, 97]]))[0])[0, -1].argmax()) % 128)
    pairs = [(a, b) for a in ("", *TEXTS) for b in TEXTS] + [("a", likeliest)]
    found = model.loglikelihood([asked(*pair) for pair in pairs])
    for pair, (logp, greedy) in zip(pairs, found, strict=True):
        wanted = direct(run, *pair)
        assert logp == pytest.approx(wanted[0], rel=1e-4)
        assert greedy == wanted[1]


def test_a_text_is_scored_with_all_of_its_context(run: LoadedRun, model: Any) -> None:
    found = model.loglikelihood_rolling([asked(text) for text in TEXTS])
    assert found == pytest.approx([direct(run, "", text)[0] for text in TEXTS], rel=1e-4)


def test_text_ends_before_a_stop_string(run: LoadedRun, model: Any) -> None:
    if "attention" in run.config.model.pattern:
        with pytest.raises(ValueError, match="grows with the text"):
            model.generate_until([asked("a", {"until": ["x"]})])
        return
    whole = Generator(run).text("ağaç", max_new_tokens=30, temperature=0.0)
    stop = whole[5:7]
    arguments = {"until": ["never there", stop], "max_gen_toks": 30}
    (found,) = model.generate_until([asked("ağaç", arguments)])
    assert found == whole[: whole.index(stop)]
    (found,) = model.generate_until([asked("ağaç", {"until": "never there", "max_gen_toks": 30})])
    assert found == whole


def test_tasks_of_ones_own(run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectral_dist.harness import run_tasks

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    choices = [("ağaç", "kuş", "taş"), ("bir", "iki", "üç"), ("ve", "veya", "ile")]
    better = [direct(run, q, f" {a}")[0] > direct(run, q, f" {b}")[0] for q, a, b in choices]
    rows = [{"q": q, "a": a, "b": b, "gold": 0} for q, a, b in choices]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = {
        "task": "of_our_own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{[a, b]}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "of_our_own.yaml").write_text(json.dumps(task))
    where = {"limit": None, "include_path": str(tmp_path), "batch_size": 2}
    found = run_tasks(run, ["of_our_own"], **where)
    assert found["of_our_own"]["acc"] == pytest.approx(sum(better) / 3)
    with pytest.raises(ValueError, match="tasks='no_such': the harness has no such task"):
        run_tasks(run, ["no_such"], **where)
