"""Copied and moved runs, states of no use, faults: nothing is started over, nothing is hidden."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spectral_dist.training.checkpoint_folder import complete_steps
from tests.waiting import finish

ROOT = Path(__file__).parents[2]
MORE = ["--run_name", "base", "--steps", "10", "--save_every", "2", "--keep", "3"]


def logged(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["step"] for record in map(json.loads, lines) if "train/loss" in record]


def test_a_copy_whose_links_became_folders_goes_on_and_is_saved(copied: Any) -> None:
    folder = copied.run_folder("base")
    flat = folder.with_name("flat")
    shutil.copytree(folder, flat, symlinks=False)  # as scp -r, rsync -L and object stores do
    shutil.rmtree(folder)
    flat.rename(folder)
    assert (folder / "checkpoint_0").is_dir()
    assert not (folder / "checkpoint_0").is_symlink()
    before = sorted(path.name for path in (folder / "checkpoint_0").iterdir())
    done = copied.run(*MORE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resumed from step 6" in done.stdout
    said = "checkpoint_0 is a folder and no link, as in a copy of a run: it is left as it is"
    assert " ".join(done.stdout.split()).count(said) == 1
    assert complete_steps(folder)[-1] == 10
    assert len(complete_steps(folder)) <= 4  # three and the best: old ones are deleted
    assert sorted(path.name for path in (folder / "checkpoint_0").iterdir()) == before


def test_a_checkpoint_on_another_disk_is_read_and_not_deleted(copied: Any, tmp_path: Path) -> None:
    folder, disk = copied.run_folder("base"), tmp_path / "disk"
    disk.mkdir()
    for step in complete_steps(folder):
        shutil.move(folder / str(step), disk / str(step))
        (folder / str(step)).symlink_to(disk / str(step))
    done = copied.run(*MORE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resumed from step 6" in done.stdout
    assert logged(folder) == list(range(1, 11))
    assert complete_steps(disk) == [2, 4, 6]


@pytest.mark.parametrize("what", ["moved away", "renamed", "a dangling link", "metrics alone"])
def test_a_run_does_not_begin_anew_beside_its_work(copied: Any, tmp_path: Path, what: str) -> None:
    folder = copied.run_folder("base")
    steps = complete_steps(folder)
    for step in steps:
        shutil.move(folder / str(step), tmp_path / f"step_{step}")
    if what == "renamed":
        shutil.move(tmp_path / "step_6", folder / "step_6")
    if what == "a dangling link":
        (folder / "6").symlink_to(tmp_path / "gone")
    for link in folder.glob("checkpoint_*"):
        if what != "moved away":
            link.unlink()
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    done = copied.run(*MORE)
    assert done.returncode == 2, done.stdout
    reason = {
        "moved away": "checkpoint_0 is a link to 6, which is not there",
        "renamed": "step_6 is a checkpoint, but not named by its step",
        "a dangling link": f"6 is a link to {tmp_path / 'gone'}, which is not there",
        "metrics alone": "metrics.jsonl goes to step 6, with a checkpoint every 2 steps",
    }[what]
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert "choose another --run_name" in done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(copied: Any) -> None:
    folder = copied.run_folder("base")
    for path in [*folder.glob("checkpoint_*"), folder / "config.yaml"]:
        path.unlink()
    for step in complete_steps(folder):
        shutil.rmtree(folder / str(step))
    done = copied.run("--run_name", "base", "--steps", "2", "--save_every", "4")  # 6 < 2 x 4
    assert (done.returncode, done.stderr) == (0, "")
    assert logged(folder) == [1, 2]


def test_a_state_without_a_finite_loss_is_not_saved(copied: Any) -> None:
    flags = ["--lr", "1e9", "--clip_norm", "1e9", "--max_bad_steps", "4", "--warmup_steps", "0"]
    flags += ["--save_every", "1", "--eval_every", "1", "--run_name", "wild", "--steps", "20"]
    first = copied.run(*flags)
    folder = copied.run_folder("wild")
    assert first.returncode == 2, first.stdout
    assert first.stderr.startswith("error: val/bits_per_byte=nan after step ")
    assert first.stderr.count("\n") == 1
    saved = complete_steps(folder)
    there = "there is no checkpoint yet"
    if saved:
        there = f"checkpoints are there of steps {', '.join(map(str, saved))}"
    assert there in first.stderr
    for step in saved:
        manifest = json.loads((folder / str(step) / "checkpoint.json").read_text())
        assert manifest["validation"] is not None


BROKEN = """
import sys
import spectral_dist.training.loop as loop
from spectral_dist.command_line import run_main
from spectral_dist.train import main

def broken(*_, **__):
    raise RuntimeError("INTERNAL: NCCL operation\\n unhandled system error")

loop._read = broken
run_main(main)
"""


def test_a_fault_of_the_machine_is_one_line_its_code_and_on_record(copied: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, *copied.command(*MORE)[3:]],
        cwd=copied.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 76
    record = Path("checkpoints") / "base" / "faults.log"
    assert done.stderr == (
        "error: RuntimeError: INTERNAL: NCCL operation unhandled system error; its traceback is in"
        f" {record}\n"
    )
    assert "in broken" in (copied.folder / record).read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_closed_terminal_saves(copied: Any, number: signal.Signals) -> None:
    flags = [
        "--run_name",
        "long",
        "--steps",
        "5000",
        "--save_every",
        "5000",
        "--eval_every",
        "5000",
    ]
    process = copied.start("--run_name", "long", *flags)
    assert process.stdout is not None
    for line in process.stdout:
        if "  loss " in line:
            break
    process.send_signal(number)
    finish(process)
    assert process.returncode == 75
    assert len(complete_steps(copied.run_folder("long"))) == 1
