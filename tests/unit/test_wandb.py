"""W&B as training sees it: a process that is started, hears the end, and is never waited for long.

What the process does with the metrics is in test_wandb_mirror. Here a module of the name `wandb`
stands for W&B's own, found first by the process because it lies in the folder that it runs in.
"""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from spectral_dist.outputs import wandb as module
from spectral_dist.outputs.jsonl import MetricsFile
from spectral_dist.outputs.wandb import ID_FILE, SENT_FILE, WandbMirror, choose_mode, has_key
from spectral_dist.settings import Config, OutputConfig, RunConfig
from spectral_dist.training.metrics import Record
from tests.waiting import wait_until

CONFIG = Config(
    run=RunConfig(run_name="trial"),
    output=OutputConfig(wandb_mode="offline", wandb_project="letters"),
)
# Writes each record that it is given as a line, and what it was started with.
FAKE = """
import json, os, sys, types
print("words of W&B"); print("more words", file=sys.stderr)
class Settings(types.SimpleNamespace): pass
class Run:
    def define_metric(self, name, **options): pass
    def log(self, values):
        with open("logged", "a") as file: file.write(json.dumps(values) + "\\n")
    def finish(self):
        open("finished", "w").close()
        {at_the_end}
def init(**arguments):
    {at_the_start}
    with open("pid", "w") as file: file.write(str(os.getpid()))
    return Run()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that is also where the program runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG.flat()))
    fake(tmp_path)
    return tmp_path


def fake(folder: Path, at_the_start: str = "pass", at_the_end: str = "pass") -> None:
    text = FAKE.format(at_the_start=at_the_start, at_the_end=at_the_end)
    (folder / "wandb.py").write_text(text)


def logged(folder: Path) -> list[int]:
    path = folder / "logged"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def train(folder: Path, first: int, last: int, *, wait: bool = False) -> None:
    """Write what a run from one step to another one would, mirrored."""
    file = MetricsFile(folder / "metrics.jsonl", first)
    mirror = WandbMirror(CONFIG, folder, resume=first > 0, warn=pytest.fail)
    for step in range(first + 1, last + 1):
        file.write(Record(step, {"train/loss": 1.0 / step}))
    if wait:
        wait_until(lambda: last in logged(folder), "the last record is there")
    file.close()
    mirror.close()
    mirror.close()


def test_a_run_is_mirrored_and_a_resumed_one_goes_on(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(folder, 0, 4, wait=True)  # not only at the end
    assert (folder / "finished").exists()
    identity = (folder / ID_FILE).read_text()
    train(folder, 3, 6)  # step 4 was after the checkpoint: it is trained, and sent, again
    assert logged(folder) == [1, 2, 3, 4, 4, 5, 6]
    assert (folder / ID_FILE).read_text() == identity
    assert int((folder / SENT_FILE).read_text()) == (folder / "metrics.jsonl").stat().st_size
    train(folder, 0, 1)  # a new run in the folder
    assert logged(folder)[7:] == [1]
    assert (folder / ID_FILE).read_text() != identity
    assert capfd.readouterr() == ("", "")  # W&B's own words are kept from the run's


def test_w_and_b_may_hang_at_the_end_but_not_for_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(folder, at_the_end="import time; time.sleep(60)")
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.2)
    warnings: list[str] = []
    mirror = WandbMirror(CONFIG, folder, resume=False, warn=warnings.append)
    assert mirror._follower is not None
    process = mirror._follower.process
    wait_until(lambda: (folder / "pid").exists(), "W&B has started")
    mirror.close()
    assert warnings == ["W&B did not finish within 0 s: metrics.jsonl has what is missing there"]
    assert process.returncode == -signal.SIGKILL


def test_the_process_outlives_ctrl_c_and_ends_with_the_pipe(folder: Path) -> None:
    mirror = WandbMirror(CONFIG, folder, resume=False, warn=pytest.fail)
    assert mirror._follower is not None
    wait_until(lambda: (folder / "pid").exists(), "W&B has started")
    for number in (signal.SIGINT, signal.SIGTERM):
        mirror._follower.process.send_signal(number)
    (folder / "metrics.jsonl").write_text('{"step": 7, "train/loss": 1.0}\n')
    wait_until(lambda: logged(folder) == [7], "the record is there")
    assert os.getpgid(mirror._follower.process.pid) != os.getpgrp()
    mirror.close()
    assert mirror._follower is None
    assert (folder / "finished").exists()


def test_a_start_that_hangs_or_fails_leaves_training_alone(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(folder, at_the_start='raise RuntimeError("no\\nspace")')
    began = time.monotonic()
    mirror = WandbMirror(CONFIG, folder, resume=False, warn=pytest.fail)
    assert time.monotonic() - began < 2
    mirror.close()
    said = capfd.readouterr().err
    assert said == "warning: W&B is not used: no space; metrics.jsonl has all metrics\n"
    monkeypatch.setattr(sys, "executable", str(folder / "absent"))
    warnings: list[str] = []
    WandbMirror(CONFIG, folder, resume=False, warn=warnings.append).close()
    assert len(warnings) == 1
    assert "not used" in warnings[0]


def test_disabled_starts_nothing(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, output=OutputConfig(wandb_mode="disabled"))
    mirror = WandbMirror(config, tmp_path, resume=False, warn=pytest.fail)
    assert mirror._follower is None
    mirror.close()
    assert list(tmp_path.iterdir()) == []


def test_where_offline_files_lie_is_said(folder: Path) -> None:
    told: list[str] = []
    fake(folder, at_the_start='os.makedirs("wandb/offline-run-1")')
    WandbMirror(CONFIG, folder, resume=False, report=told.append, warn=pytest.fail).close()
    assert told == [f"to send the offline W&B files: wandb sync {folder}/wandb/offline-*"]


@pytest.mark.parametrize(
    ("setting", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_DISABLED": "true"}, "disabled"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_DISABLED": "false"}, "online"),
        ("online", {"WANDB_DISABLED": "true"}, "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "online"),
    ],
)
def test_mode(setting: str, environment: dict[str, str], mode: str, tmp_path: Path) -> None:
    assert choose_mode(setting, {"HOME": str(tmp_path), **environment}) == mode


def test_key_in_netrc(tmp_path: Path) -> None:
    file = tmp_path / ".netrc"
    home = {"HOME": str(tmp_path)}
    assert not has_key(home)
    file.write_text("machine example.org login a password b\n")
    file.chmod(0o600)
    assert not has_key(home)
    file.write_text("machine api.wandb.ai login user password b\n")
    assert has_key(home)
    assert not has_key({**home, "WANDB_BASE_URL": "https://other.example"})
    assert not has_key({**home, "NETRC": str(tmp_path / "absent")})
    file.write_text("machine api.wandb.ai gibberish\n")
    assert not has_key(home)
