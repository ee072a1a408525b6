import dataclasses
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from spectral_dist.outputs import wandb as mirror
from spectral_dist.outputs.wandb import ID_FILE, WandbMirror, choose_mode, has_key
from spectral_dist.settings import Config, OutputConfig, RunConfig
from spectral_dist.training.metrics import Record

CONFIG = Config(
    run=RunConfig(run_name="trial"),
    output=OutputConfig(wandb_mode="offline", wandb_project="letters"),
)


class FakeRun:
    def __init__(self, fake: "FakeWandb") -> None:
        self.fake = fake

    def define_metric(self, name: str, **options: Any) -> None:
        self.fake.axes[name] = options

    def log(self, values: dict[str, float]) -> None:
        self.fake.released.wait(20)
        if values["step"] in self.fake.refused:
            raise RuntimeError("no such\nthing")
        self.fake.logged.append(values)

    def finish(self) -> None:
        self.fake.finished = True


class FakeWandb(types.ModuleType):
    Settings = types.SimpleNamespace

    def __init__(self) -> None:
        super().__init__("wandb")
        self.logged: list[dict[str, float]] = []
        self.axes: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}
        self.finished = False
        self.refused: set[int] = set()
        self.error: BaseException | None = None
        self.modes: list[str] = []
        self.offline_works = False
        self.released = threading.Event()
        self.released.set()
        self.init_released = threading.Event()
        self.init_released.set()

    def init(self, **arguments: Any) -> FakeRun:
        self.init_released.wait(20)
        self.modes.append(arguments["mode"])
        if self.error is not None and not (arguments["mode"] == "offline" and self.offline_works):
            raise self.error
        self.arguments = arguments
        return FakeRun(self)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def record(step: int) -> Record:
    return Record(step, {"train/loss": 1.0 / step})


def test_records_arrive_in_order_with_their_step_as_the_axis(
    fake: FakeWandb, tmp_path: Path
) -> None:
    warnings: list[str] = []
    output = WandbMirror(CONFIG, tmp_path, resume=False, warn=warnings.append)
    for step in range(1, 51):
        output.write(record(step))
    output.close()
    output.close()
    assert fake.logged == [{"step": n, "train/loss": 1.0 / n} for n in range(1, 51)]
    assert fake.axes["*"] == {"step_metric": "step"}
    assert fake.finished
    assert output.dropped == 0
    assert warnings == []


def test_run_is_named_placed_and_configured(fake: FakeWandb, tmp_path: Path) -> None:
    WandbMirror(CONFIG, tmp_path, resume=False).close()
    arguments = fake.arguments
    assert (arguments["project"], arguments["name"]) == ("letters", "trial")
    assert (arguments["mode"], arguments["resume"]) == ("offline", "allow")
    assert arguments["dir"] == str(tmp_path)
    assert arguments["config"] == CONFIG.flat()
    settings = arguments["settings"]
    assert settings.init_timeout == 30
    assert settings.silent
    assert settings.console == "off"
    assert settings.disable_git


def test_id_stays_on_resume_and_changes_for_a_new_run(fake: FakeWandb, tmp_path: Path) -> None:
    ids = []
    for resume in (True, True, False):
        WandbMirror(CONFIG, tmp_path, resume=resume).close()
        ids.append(fake.arguments["id"])
    assert ids[0] == ids[1] != ids[2]
    (tmp_path / ID_FILE).write_text("../not an id\n")
    WandbMirror(CONFIG, tmp_path, resume=True).close()
    assert fake.arguments["id"].isalnum()


@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit(1), ImportError("gone")])
def test_failure_to_start_gives_one_warning(
    fake: FakeWandb, tmp_path: Path, error: BaseException
) -> None:
    fake.error = error
    warnings: list[str] = []
    output = WandbMirror(CONFIG, tmp_path, resume=False, warn=warnings.append)
    assert output._thread is not None
    output._thread.join(10)
    for step in range(1, 4):
        output.write(record(step))
    output.close()
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert output.dropped == 3


def test_unreachable_server_falls_back_to_offline(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    fake.error = RuntimeError("timed out")
    fake.offline_works = True
    config = dataclasses.replace(CONFIG, output=OutputConfig(wandb_mode="online"))
    warnings: list[str] = []
    output = WandbMirror(config, tmp_path, resume=False, warn=warnings.append)
    output.write(record(1))
    output.close()
    assert fake.modes == ["online", "offline"]
    assert len(fake.logged) == 1
    assert len(warnings) == 1
    assert "timed out" in warnings[0]


def test_missing_folder_gives_one_warning(fake: FakeWandb, tmp_path: Path) -> None:
    warnings: list[str] = []
    WandbMirror(CONFIG, tmp_path / "absent", resume=False, warn=warnings.append).close()
    assert len(warnings) == 1


def test_refused_records_give_one_warning_and_the_rest_arrive(
    fake: FakeWandb, tmp_path: Path
) -> None:
    fake.refused = {2, 3}
    warnings: list[str] = []
    output = WandbMirror(CONFIG, tmp_path, resume=False, warn=warnings.append)
    for step in range(1, 6):
        output.write(record(step))
    output.close()
    assert [values["step"] for values in fake.logged] == [1, 4, 5]
    assert len(warnings) == 1
    assert output.dropped == 2
    assert fake.finished


def test_hanging_log_drops_what_is_too_much_and_never_waits(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "QUEUE_RECORDS", 10)
    fake.released.clear()
    warnings: list[str] = []
    output = WandbMirror(CONFIG, tmp_path, resume=False, warn=warnings.append, close_timeout=0.2)
    began = time.monotonic()
    for step in range(1, 1001):
        output.write(record(step))
    assert time.monotonic() - began < 1
    assert 989 <= output.dropped <= 990
    began = time.monotonic()
    output.close()
    assert time.monotonic() - began < 2
    assert len(warnings) == 1
    fake.released.set()
    assert output._thread is not None
    output._thread.join(10)
    # The full queue had no room for the end mark: the thread must still have ended by itself.
    assert not output._thread.is_alive()
    assert fake.finished


def test_hanging_start_does_not_hold_training_or_the_end(fake: FakeWandb, tmp_path: Path) -> None:
    fake.init_released.clear()
    warnings: list[str] = []
    began = time.monotonic()
    output = WandbMirror(CONFIG, tmp_path, resume=False, warn=warnings.append, close_timeout=0.2)
    output.write(record(1))
    output.close()
    assert time.monotonic() - began < 2
    assert len(warnings) == 1
    assert "did not finish" in warnings[0]
    fake.init_released.set()
    assert output._thread is not None
    output._thread.join(10)
    assert [values["step"] for values in fake.logged] == [1]


def test_disabled_imports_nothing_and_starts_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would raise
    config = dataclasses.replace(CONFIG, output=OutputConfig(wandb_mode="disabled"))
    output = WandbMirror(config, tmp_path, resume=False, warn=pytest.fail)
    output.write(record(1))
    output.close()
    assert output._thread is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
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


def test_online_without_a_key_goes_offline_and_asks_nothing(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = dataclasses.replace(CONFIG, output=OutputConfig(wandb_mode="online"))
    warnings: list[str] = []
    WandbMirror(config, tmp_path, resume=False, warn=warnings.append).close()
    assert fake.arguments["mode"] == "offline"
    assert len(warnings) == 1


def test_nothing_secret_is_handed_over(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-key")
    monkeypatch.setenv("SOME_TOKEN", "very-secret-token")
    WandbMirror(CONFIG, tmp_path, resume=False).close()
    assert "very-secret" not in repr(fake.arguments)


def test_really_offline(tmp_path: Path) -> None:
    """A process of its own: wandb keeps state in the module, and hooks the exit."""
    script = f"""
from pathlib import Path
from spectral_dist.settings import Config, OutputConfig, RunConfig
from spectral_dist.outputs.wandb import WandbMirror
from spectral_dist.training.metrics import Record
config = Config(run=RunConfig(run_name="trial"), output=OutputConfig(wandb_mode="offline"))
output = WandbMirror(config, Path({str(tmp_path)!r}), resume=False)
for step in range(1, 6):
    output.write(Record(step, {{"train/loss": 0.5}}))
output.close()
assert output.dropped == 0
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("WANDB_SILENT", None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert b"train/loss" in files[0].read_bytes()
    assert (tmp_path / ID_FILE).read_text().strip() in files[0].name
