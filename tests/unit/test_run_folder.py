"""The run folder's notes: they load again, hold no secret, and a folder in the way is one line."""

import json
import os
from pathlib import Path

import jax
import pytest

from spectral_dist.flags import load_config
from spectral_dist.outputs import run_folder
from spectral_dist.outputs.run_folder import write_run_folder


def test_the_notes_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-forty-letters")
    argv = ["--data_paths", "a.txt,b.txt", "--steps", "7", "--lr", "3e-4"]
    config = load_config(argv)
    folder = tmp_path / "runs" / "default"
    write_run_folder(folder, config, argv)
    assert sorted(os.listdir(folder)) == ["config.yaml", "environment.json"]
    assert load_config(["--config", str(folder / "config.yaml")]) == config
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["command"] == ["python", "-m", "spectral_dist.train", *argv]
    assert environment["devices"] == {"kind": "cpu", "count": 8}
    assert environment["processes"] == 1
    assert environment["versions"]["jax"] == jax.__version__
    everything = "".join(p.read_text(encoding="utf-8") for p in folder.iterdir())
    assert "secret" not in everything


def test_the_notes_are_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(["--data_paths", "a.txt"])
    write_run_folder(tmp_path, config, [])
    before = (tmp_path / "config.yaml").read_text(encoding="utf-8")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "replace", fails)
    with pytest.raises(ValueError, match=r"checkpoint_dir='checkpoints'.*No space left"):
        write_run_folder(tmp_path, load_config(["--data_paths", "b.txt"]), [])
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == before


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run_folder(folder, load_config(["--data_paths", "a.txt"]), [], enabled=False)
    assert not folder.exists()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    config = load_config(["--data_paths", "a.txt", "--checkpoint_dir", str(tmp_path / "taken")])
    with pytest.raises(ValueError, match=r"checkpoint_dir='.*taken': .* cannot be written"):
        write_run_folder(tmp_path / "taken" / "run", config, [])
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"
