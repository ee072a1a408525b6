"""A whole run: what it writes, that it learns, and the same command again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

LAST = ["--run_name", "whole", "--eval_lengths", "1,2,4"]
LAST += ["--save_every", "10", "--eval_every", "10"]


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse_constants) for line in lines]


def losses(path: Path) -> dict[int, float]:
    return {r["step"]: r["train/loss"] for r in records(path) if "train/loss" in r}


@pytest.fixture
def whole(program: Any) -> Any:
    done = program.run(*LAST, "--steps", "20")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return program, done.stdout


def test_a_run_from_text_to_report_and_the_same_command_again(whole: Any) -> None:
    program, out = whole
    folder = program.run_folder("whole")
    compiled = "parameters on 1 x cpu; training step compiled"
    for part in (compiled, "Validation", "Extrapolation", "Sample"):
        assert part in out

    # the folder
    names = {"10", "20", "checkpoint_0", "checkpoint_1", "config.yaml", "environment.json"}
    names |= {"metrics.jsonl", "report.html", "samples.jsonl", "starts.jsonl"}
    assert set(os.listdir(folder)) == names
    assert os.readlink(folder / "checkpoint_0") == "20"
    assert os.readlink(folder / "checkpoint_1") == "10"
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert settings["model"]["hidden_dim"] == 32
    assert "warmup_steps" not in settings["optimizer"]  # derived: a comment
    assert [dataset["weight"] for dataset in settings["datasets"]] == [0.5, 0.5]
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["devices"]["count"] == 1
    assert environment["command"][-1] == "20"
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")

    # the metrics
    lines = records(folder / "metrics.jsonl")
    trained = {"train/loss", "train/bits_per_byte", "train/grad_norm", "train/skipped_steps"}
    trained |= {"optimizer/learning_rate", "perf/tokens_per_second", "perf/step_seconds"}
    trained |= {"perf/data_wait_seconds", "perf/checkpoint_wait_seconds"}
    ours = {"step", "time", "perf/memory_bytes", "progress/saved_step"}
    ours |= {"progress/tokens", "progress/flops", "progress/train_hours"}
    bits = {f"{source}/bits_per_byte" for source in ("short", "long")}
    measured = {f"val/{name}" for name in bits} | {"val/bits_per_byte"}
    for k in (1, 2, 4):
        # Only the long documents hold a window of 4 x 32 bytes.
        measured |= {f"extrapolation/{k}x/{n}" for n in bits} | {
            f"extrapolation/{k}x/bits_per_byte"
        }
    for k in (2, 4):
        parts = ("difference", "difference_upper", "success")
        measured |= {f"extrapolation/{k}x/{part}" for part in parts}
    for line in lines:
        assert line.keys() - ours == (trained if "train/loss" in line else measured)
    loss = losses(folder / "metrics.jsonl")
    assert list(loss) == list(range(1, 21))
    assert loss[1] == pytest.approx(5.545, rel=0.02)  # ln 256: even odds
    assert sum(loss[s] for s in (18, 19, 20)) < sum(loss[s] for s in (1, 2, 3)) - 0.6
    assert [line["step"] for line in lines if "val/bits_per_byte" in line] == [10, 20]

    # the same command again: it resumes, and there is nothing to do
    again = program.run(*LAST, "--steps", "20")
    assert (again.returncode, again.stderr) == (0, "")
    assert f"resumed from step 20 in {folder}" in again.stdout
    assert "complete at step 20: nothing is left to train" in again.stdout
    assert "  loss " not in again.stdout
    assert losses(folder / "metrics.jsonl") == loss
    assert os.readlink(folder / "checkpoint_0") == "20"

    # more steps: it goes on
    more = program.run(*LAST, "--steps", "30")
    assert (more.returncode, more.stderr) == (0, "")
    assert "resumed from step 20" in more.stdout
    assert "changed since then: steps 20 -> 30" in more.stdout
    longer = losses(folder / "metrics.jsonl")
    assert list(longer) == list(range(1, 31))
    assert {step: longer[step] for step in loss} == loss
    assert os.readlink(folder / "checkpoint_0") == "30"


def test_the_learning_rate_and_the_batch_may_change(copied: Any) -> None:
    folder = copied.run_folder("base")
    flags = ["--run_name", "base", "--steps", "8", "--lr", "5e-4", "--batch_size", "8"]
    done = copied.run(*flags)
    assert (done.returncode, done.stderr) == (0, "")
    told = next(line for line in done.stdout.splitlines() if line.startswith("changed since"))
    for change in ("steps 6 -> 8", "batch_size 4 -> 8", "lr 0.001 -> 0.0005"):
        assert change in told
    assert "some sequences may come twice" not in done.stdout
    manifest = (folder / "8" / "checkpoint.json").read_text(encoding="utf-8")
    # 6 steps of 4 rows and 2 of 8: the next unseen row.
    assert json.loads(manifest)["description"]["next_sequence"] == 6 * 4 + 2 * 8
