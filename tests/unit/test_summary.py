"""The last words of a run: what a signal stopped, what was not saved, and the exit code."""

import signal
import sys
from pathlib import Path

import pytest

from spectral_dist.command_line import STOPPED, UNSAVED, invocation
from spectral_dist.flags import load_config
from spectral_dist.outputs.console import Console
from spectral_dist.outputs.summary import Saved, say_end, show_next_steps

FOLDER = Path("checkpoints/trial")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


@pytest.mark.parametrize(
    ("stop", "step", "saved", "code", "words"),
    [
        (None, 9, Saved(FOLDER, [3, 9], 0), 0, ""),
        (None, 9, Saved(FOLDER, [3], 1), UNSAVED, "step 9 among them: the same command continues"),
        (None, 9, Saved(FOLDER, [], 1), UNSAVED, "another --run_name begins anew; see above"),
        (None, 9, Saved(FOLDER, [9], 2), 0, "2 checkpoints could not be saved; see above"),
        (signal.SIGTERM, 7, Saved(FOLDER, [7], 0), STOPPED, "stopped by SIGTERM: saved step 7 in"),
        (signal.SIGTERM, 7, Saved(FOLDER, [3], 1), STOPPED, "step 7 could NOT be saved in"),
    ],
)
def test_the_end_says_what_was_lost(
    stop: signal.Signals | None,
    step: int,
    saved: Saved,
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert say_end(stop, step, saved, Console(9)) == code
    text = said(capsys)
    assert words in text
    assert bool(text) == bool(words)


def test_curves_that_cannot_be_drawn_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(["--data_paths", "a.txt", "--run_name", "trial"])
    show_next_steps(config, tmp_path / "absent", Console(9))
    text = said(capsys)
    assert "the curves could not be drawn" in text
    assert "spectral_dist.generate --run_name trial" in text


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("/env/bin/spectral-dist", "/env/bin/spectral-dist generate --run_name 'my run'"),
        ("train.py", f"{sys.executable} -m spectral_dist.generate --run_name 'my run'"),
    ],
)
def test_the_commands_to_try_can_be_pasted(
    program: str,
    wanted: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setenv("PATH", "")  # no environment is active
    flags = ["--data_paths", "a.txt", "--run_name", "my run", "--checkpoint_dir", "/my runs"]
    show_next_steps(load_config(flags), tmp_path, Console(9))
    text = said(capsys)
    assert f"{wanted} --checkpoint_dir '/my runs' --prompt" in text
    assert "train --config level1 --data_paths YOUR.txt" in text


def test_an_interpreter_has_the_name_that_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py"])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    name = Path(sys.executable).name
    assert invocation("train") == f"{name} -m spectral_dist.train"
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(Path(sys.executable).parents[1])
    assert invocation("train") == f"bin/{name} -m spectral_dist.train"
