"""What the mirror sends to W&B: every record once, under the right name, whatever W&B does."""

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from spectral_dist.outputs.jsonl import MetricsFile
from spectral_dist.outputs.wandb import ID_FILE, SENT_FILE, Mode
from spectral_dist.outputs.wandb_mirror import MirrorState, Warnings, main, mirror
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

    def init(self, **arguments: Any) -> FakeRun:
        self.modes.append(arguments["mode"])
        if self.error is not None and not (arguments["mode"] == "offline" and self.offline_works):
            raise self.error
        self.arguments = arguments
        return FakeRun(self)

    @property
    def steps(self) -> list[float]:
        return [values["step"] for values in self.logged]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three steps."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG.flat()))
    write(tmp_path, 1, 3)
    return tmp_path


def write(folder: Path, first: int, last: int) -> None:
    file = MetricsFile(folder / "metrics.jsonl", first - 1)
    for step in range(first, last + 1):
        file.write(Record(step, {"train/loss": 1.0 / step}))
    file.close()


def send(folder: Path, config: Config = CONFIG, mode: Mode = "offline") -> list[str]:
    """Mirror what is there; return the warnings."""
    warnings, ending = [], threading.Event()
    ending.set()
    mirror(config, MirrorState.open(folder, "trial"), mode, ending, Warnings(warnings.append))
    return warnings


def test_records_are_sent_once_with_their_step_as_the_axis(fake: FakeWandb, folder: Path) -> None:
    assert send(folder) == []
    assert fake.logged == [{"step": n, "train/loss": 1.0 / n} for n in (1, 2, 3)]
    assert fake.axes["*"] == {"step_metric": "step"}
    assert fake.finished
    assert send(folder) == []
    assert len(fake.logged) == 3
    write(folder, 4, 5)
    send(folder)
    assert fake.steps == [1, 2, 3, 4, 5]


def test_only_whole_lines_are_read_and_damaged_ones_passed_over(
    fake: FakeWandb, folder: Path
) -> None:
    metrics = folder / "metrics.jsonl"
    with metrics.open("ab") as file:
        file.write(b'{"step": 4, "train/lo\n{"step": 5, "train/loss": null}\n{"step": 6, "trai')
    send(folder)
    assert fake.steps == [1, 2, 3, 5]
    assert str(fake.logged[-1]["train/loss"]) == "nan"
    with metrics.open("ab") as file:
        file.write(b'n/loss": 2.5}\n')
    send(folder)
    assert fake.logged[4:] == [{"step": 6, "train/loss": 2.5}]


def test_a_resumed_run_sends_again_what_it_trains_again(fake: FakeWandb, folder: Path) -> None:
    send(folder)
    size = len((folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0])
    assert MirrorState.open(folder, "trial", size).sent == size
    assert (
        MirrorState.open(folder, "trial", 10**6).sent == (folder / "metrics.jsonl").stat().st_size
    )
    assert MirrorState.open(folder, "trial", new=True).sent == 0


def test_a_folder_of_an_earlier_version_goes_on_with_its_id(folder: Path) -> None:
    (folder / ID_FILE).write_text("0123456789abcdef\n")
    state = MirrorState.open(folder, "trial", 40)
    assert (state.identity, state.sent) == ("0123456789abcdef", 40)
    (folder / ID_FILE).write_text("../not an id\n")
    state = MirrorState.open(folder, "trial")
    assert state.identity.isalnum()
    assert state.sent == 0


def test_a_branch_of_a_copied_run_begins_curves_of_its_own(folder: Path) -> None:
    send(folder)
    original = MirrorState.open(folder, "trial")
    branch = MirrorState.open(folder, "other")
    assert original.sent > branch.sent == 0
    assert original.identity != branch.identity
    branch.save()
    assert MirrorState.open(folder, "other").identity == branch.identity


def test_run_is_named_placed_and_configured(
    fake: FakeWandb, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-key")
    monkeypatch.setenv("SOME_TOKEN", "very-secret-token")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    (folder / "environment.json").write_text('{"processes": 1}')
    send(folder)
    arguments = fake.arguments
    assert (arguments["project"], arguments["name"]) == ("letters", "trial")
    assert (arguments["mode"], arguments["resume"]) == ("offline", "allow")
    assert arguments["dir"] == str(folder)
    assert (folder / ID_FILE).read_text() == f"{arguments['id']}\ntrial\n"
    assert arguments["config"] == {**CONFIG.flat(), "environment": {"processes": 1}}
    settings = arguments["settings"]
    assert settings.init_timeout == 30
    assert settings.silent
    assert settings.console == "off"
    assert settings.disable_git
    assert "very-secret" not in repr(arguments)


def test_the_users_variables_name_what_the_settings_do_not(
    fake: FakeWandb, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "tuesday")
    send(folder, dataclasses.replace(CONFIG, output=OutputConfig()))
    assert (fake.arguments["project"], fake.arguments["name"]) == ("mine", "tuesday")


@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit(1), ImportError("gone")])
def test_failure_to_start_gives_one_warning(
    fake: FakeWandb, folder: Path, error: BaseException
) -> None:
    fake.error = error
    warnings = send(folder)
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert not (folder / SENT_FILE).exists()  # all of it is still to be sent


def test_unreachable_server_falls_back_to_offline(
    fake: FakeWandb, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    fake.error = RuntimeError("timed out")
    fake.offline_works = True
    warnings = send(folder, mode="online")
    assert fake.modes == ["online", "offline"]
    assert len(fake.logged) == 3
    assert len(warnings) == 1
    assert "timed out" in warnings[0]


def test_refused_records_give_one_warning_and_the_rest_arrive(
    fake: FakeWandb, folder: Path
) -> None:
    fake.refused = {1, 2}
    assert len(send(folder)) == 1
    assert fake.steps == [3]
    assert fake.finished


def test_online_without_a_key_goes_offline_and_asks_nothing(
    fake: FakeWandb, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert len(send(folder, mode="online")) == 1
    assert fake.arguments["mode"] == "offline"


def test_a_copied_run_is_sent_by_hand(fake: FakeWandb, folder: Path, tmp_path: Path) -> None:
    assert main([str(folder)]) == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in list(folder.glob("*.*")):
        shutil.copy(path, copy)
    main([str(copy)])
    assert fake.steps == [1, 2, 3]  # W&B has them under this id
    main([str(copy), "--new"])
    assert fake.steps == [1, 2, 3, 1, 2, 3]
    assert (copy / ID_FILE).read_text() != (folder / ID_FILE).read_text()
    with pytest.raises(ValueError, match="is not a run folder"):
        main([str(tmp_path / "absent")])


def test_really_offline(folder: Path) -> None:
    """A process of its own: wandb keeps state in the module, and hooks the exit."""
    command = [sys.executable, "-m", "spectral_dist.outputs.wandb_mirror", str(folder)]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert b"train/loss" in files[0].read_bytes()
    assert (folder / ID_FILE).read_text().split()[0] in files[0].name
