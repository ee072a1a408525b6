"""`python -m spectral_dist.launch` with the training itself: one run in two processes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spectral_dist.training.checkpoint_folder import complete_steps
from tests.end_to_end.conftest import ROOT, SMALL, Program, write_text
from tests.waiting import finish

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

STEPS = 30
SETTINGS = (
    *SMALL, "--data_paths", "short.txt,long.txt", "--run_name", "x", "--steps", str(STEPS),
    "--save_every", "5", "--keep", "9", "--eval_every", "1000", "--mesh=2x2x1",
)  # fmt: skip


def launch(folder: Path) -> "subprocess.Popen[str]":
    words = ["--processes", "2", "--devices_per_process", "2", "--", "train", *SETTINGS]
    return subprocess.Popen(
        [sys.executable, "-m", "spectral_dist.launch", *words],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(folder: Path) -> list[float]:
    text = (folder / "checkpoints" / "x" / "metrics.jsonl").read_text(encoding="utf-8")
    return [r["train/loss"] for r in map(json.loads, text.splitlines()) if "train/loss" in r]


def with_texts(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_text(folder / "short.txt", documents=200, words=25)
    write_text(folder / "long.txt", documents=30, words=150)
    return folder


def read_to_first_loss(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if "  loss " in line:
            return read
    pytest.fail(read + process.communicate()[1])


def test_two_processes_stop_continue_and_train_like_one(tmp_path: Path) -> None:
    two, one = with_texts(tmp_path / "two"), with_texts(tmp_path / "one")
    with launch(two) as process:
        read_to_first_loss(process)
        process.send_signal(signal.SIGUSR1)
        out, err = finish(process)
    assert process.returncode == 75, err
    (step,) = re.findall(r"stopped by SIGUSR1: saved step (\d+)", out)
    with launch(two) as process:
        out, err = finish(process)
    assert process.returncode == 0, err
    assert f"resumed from step {step} " in out
    done = Program(one).run(*SETTINGS, devices=4)
    assert done.returncode == 0, done.stderr
    assert len(losses(two)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_a_killed_process_ends_the_run_and_is_named(tmp_path: Path) -> None:
    with_texts(tmp_path)
    with launch(tmp_path) as process:
        read_to_first_loss(process)
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        )
        ranks = sorted(map(int, listed.stdout.split()))
        os.kill(ranks[1], signal.SIGKILL)
        _, err = finish(process)
    assert process.returncode == 137
    assert "launch: process 1 was killed by signal 9" in err
    assert re.search(r"^error: process 1 of 2 \(", err, flags=re.MULTILINE)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert STEPS not in complete_steps(tmp_path / "checkpoints" / "x")
