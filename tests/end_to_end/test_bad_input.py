"""Bad input: one clear line on stderr, a non-zero exit, and nothing lost.

What fails before anything is compiled runs in this process, on its eight devices; the rest runs the
program as a user does.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spectral_dist import train
from spectral_dist.command_line import run_main

SHARDED = ["--mesh", "1x8x1", "--batch_size", "8"]
SAVED = ["--run_name", "base", "--steps", "6", "--save_every", "2", "--keep", "3"]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Attempt = Callable[..., Ended]


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Attempt:
    """Run the entry point here, with the command line that the program of a folder would have."""

    def act(program: Any, flags: list[str]) -> Ended:
        arguments = program.command(*SHARDED, *flags)[2:]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.chdir(program.folder)
        with pytest.raises(SystemExit) as exited:
            run_main(train.main)
        assert isinstance(exited.value.code, int)
        return Ended(exited.value.code, *capsys.readouterr())

    return act


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(ended: Any, part: str) -> None:
    code = ended.code if isinstance(ended, Ended) else ended.returncode
    out, err = (ended.out, ended.err) if isinstance(ended, Ended) else (ended.stdout, ended.stderr)
    assert code == 2, out + err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert part in err
    assert "Traceback" not in out + err


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content)


def nothing(folder: Path) -> None:
    del folder


def spoil_checkpoints(folder: Path) -> None:
    for step in ("2", "4", "6"):
        (folder / "checkpoints" / "base" / step / "checkpoint.json").write_text("{", "utf-8")


def spoil_built(folder: Path) -> None:
    with (folder / "short.bin").open("r+b") as file:
        file.write(b"?")


YAML = ["--config", "run.yaml"]
CASES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    # the mesh
    "product": (nothing, ["--mesh", "1x4x1"], "mesh=1x4x1: needs 4 devices, but 8 are attached"),
    "malformed mesh": (nothing, ["--mesh", "2x2"], "mesh='2x2': must be DATAxFSDPxTENSOR"),
    "zero mesh": (nothing, ["--mesh", "0x8x1"], "mesh='0x8x1'"),
    "batch": (nothing, ["--batch_size", "6"], "batch_size=6: must be a multiple of data x fsdp"),
    "parameter": (
        nothing,
        ["--mesh", "1x1x8", "--hidden_dim", "128", "--num_kv_heads", "8", "--mlp_dim", "36"],
        "of size 36 cannot be divided by tensor=8 of the mesh",
    ),
    "heads": (
        nothing,
        ["--mesh", "1x1x8", "--layer_pattern", "window"],
        "tensor=8 must divide the 2 heads",
    ),
    "groups": (nothing, ["--mesh", "1x1x8"], "tensor=8 must divide the 2 normalised groups"),
    # the files
    "missing": (nothing, ["--data_paths", "absent.txt"], "data_paths: absent.txt: no such file"),
    "empty": (write("e.txt", ""), ["--data_paths", "e.txt"], "data_paths: e.txt: is empty"),
    "folder": (
        lambda folder: (folder / "empty").mkdir(exist_ok=True),
        ["--data_paths", "empty"],
        "data_paths: empty: is a folder without data files",
    ),
    "records of another kind": (
        nothing,
        ["--data_paths", "checkpoints"],
        "metrics.jsonl: line 1: has no field 'text'; it has step, time,",
    ),
    "binary": (
        write("b.txt", bytes(range(256)) * 64),
        ["--data_paths", "b.txt"],
        "data_paths: b.txt:",
    ),
    "too short": (
        write("s.txt", "Kısa bir metin.\n"),
        ["--data_paths", "short.txt,s.txt"],
        "data_paths: s.txt: too short",
    ),
    "long seq_len": (nothing, ["--seq_len", "100000"], "short.txt: too short"),
    "damaged .bin, given itself": (
        spoil_built,
        ["--data_paths", "short.bin"],
        "data_paths: short.bin: its content does not match its manifest",
    ),
    # the weights
    "number of weights": (nothing, ["--data_weights", "1,2,3"], "data_weights=1,2,3: 3 weights"),
    "negative weight": (nothing, ["--data_weights", "2,-1"], "the weight -1 of long.txt"),
    "weights of zero": (nothing, ["--data_weights", "0,0"], "data_weights=0,0: at least one"),
    "weights in words": (nothing, ["--data_weights", "half,half"], "data_weights='half'"),
    "weight nan": (nothing, ["--data_weights", "1,nan"], "data_weights=1,nan"),
    # the values
    "negative steps": (nothing, ["--steps", "-5"], "steps=-5: must be positive"),
    "zero batch": (nothing, ["--batch_size", "0"], "batch_size=0: must be positive"),
    "text for steps": (nothing, ["--steps", "abc"], "steps='abc': must be an integer"),
    "no value": (nothing, ["--steps"], "--steps: expected one argument"),
    "lr nan": (nothing, ["--lr", "nan"], "lr=nan: must be finite"),
    "unknown mixer": (nothing, ["--layer_pattern", "spectral,fft"], "'fft' is not one of spectral"),
    "choice": (nothing, ["--schedule", "foo"], "schedule='foo': must be one of cosine, wsd"),
    "warm-up": (nothing, ["--steps", "5", "--warmup_steps", "10"], "warmup_steps=10: must be at"),
    "odd heads": (nothing, ["--head_dim", "12"], "hidden_dim=32: must be a multiple of head_dim"),
    "reach": (nothing, ["--tau_max", "0.1"], "tau_max=0.1: must be above tau_min=0.5"),
    "held out": (nothing, ["--validation_fraction", "1.5"], "validation_fraction=1.5"),
    "unknown flag": (nothing, ["--hiden_dim", "8"], "'--hiden_dim'; did you mean --hidden_dim?"),
    # the configuration file
    "unknown key": (
        write("run.yaml", "num_layer: 2\n"),
        YAML,
        "config='run.yaml': unknown setting 'num_layer'; did you mean num_layers?",
    ),
    "list": (write("run.yaml", "- steps\n"), YAML, "config='run.yaml': must be a mapping"),
    "invalid": (write("run.yaml", "a: [1\nb: }"), YAML, "config='run.yaml': is not valid YAML"),
    "twice": (write("run.yaml", "lr: 1\nlr: 2\n"), YAML, "'lr' is given twice"),
    "missing config": (nothing, YAML, "config='run.yaml': cannot be read: No such file"),
    # the run folder
    "run name": (nothing, ["--run_name", "a/b"], "run_name='a/b': must name one folder"),
    "file in the way": (nothing, ["--checkpoint_dir", "short.txt"], "checkpoint_dir='short.txt'"),
    "run is a file": (write("checkpoints/f", "x"), ["--run_name", "f"], "checkpoints/f"),
    "other model": (
        nothing,
        [*SAVED, "--hidden_dim", "64", "--num_poles", "8"],
        "run_name='base' was trained with another model: hidden_dim=64 (was 32)",
    ),
    "other depth": (nothing, [*SAVED, "--num_layers", "2"], "num_layers=2 (was 3)"),
    "checkpoints unreadable": (
        spoil_checkpoints,
        SAVED,
        "base can be read (steps [2, 4, 6]); nothing was changed",
    ),
}


@pytest.mark.parametrize(("spoil", "flags", "part"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_one_line_and_loses_nothing(
    copied: Any,
    attempt: Attempt,
    spoil: Callable[[Path], object],
    flags: list[str],
    part: str,
) -> None:
    spoil(copied.folder)
    before = contents(copied.folder)
    assert "checkpoints/base/6/checkpoint.json" in before
    assert_refused(attempt(copied, flags), part)
    after = contents(copied.folder)
    assert {name: after.get(name) for name in before} == before


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 28


# ---- the disk ----


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount small disks; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk_{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("tmpfs cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_run_folder(copied: Any, attempt: Attempt, disk: Callable[[str], Path]) -> None:
    folder = disk("8m")
    shutil.copytree(copied.folder / "checkpoints", folder / "checkpoints", symlinks=True)
    command = ["mount", "-o", "remount,ro", str(folder)]
    subprocess.run(command, check=True)
    before = contents(folder)
    flags = ["--checkpoint_dir", str(folder / "checkpoints")]
    assert_refused(attempt(copied, [*flags, "--run_name", "new"]), "new cannot be written")
    assert_refused(attempt(copied, [*flags, *SAVED]), "base cannot be written: Read-only")
    assert contents(folder) == before


def test_a_read_only_folder_of_text(
    copied: Any, attempt: Attempt, disk: Callable[[str], Path]
) -> None:
    folder = disk("1m")
    shutil.copy(copied.folder / "short.txt", folder)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    flags = ["--data_paths", str(folder / "short.txt")]
    assert_refused(attempt(copied, flags), "cannot build short.bin: Read-only file system")


def test_a_disk_too_full_for_the_tokens(
    copied: Any, attempt: Attempt, disk: Callable[[str], Path]
) -> None:
    folder = disk("32k")
    shutil.copy(copied.folder / "short.txt", folder)
    before = contents(folder)
    ended = attempt(copied, ["--data_paths", str(folder / "short.txt")])
    assert_refused(ended, f"no space left for {folder / 'short.bin'}")
    assert contents(folder) == before


def test_a_disk_too_full_for_checkpoints_stops_no_training(
    copied: Any, disk: Callable[[str], Path]
) -> None:
    folder = disk("200k")
    done = copied.run(*SAVED, "--checkpoint_dir", str(folder))
    assert (done.returncode, done.stderr) == (74, "")
    for step in (2, 4, 6):
        assert f"warning: checkpoint {step} could not be saved" in done.stdout
    assert "step 6/6  loss" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "warning: 3 checkpoints could not be saved, step 6 among them: there is none, and another"
        " --run_name begins anew; see above"
    )
    assert os.listdir(folder) == ["base"]


# ---- what can be put right is put right ----


def test_damaged_token_files_are_built_again(copied: Any) -> None:
    before = contents(copied.folder)
    spoil_built(copied.folder)
    os.truncate(copied.folder / "long.bin.json", 20)
    done = copied.run(*SAVED)
    assert (done.returncode, done.stderr) == (0, "")
    assert "short.txt: building short.bin again: its content does not match" in done.stdout
    assert "long.txt: building long.bin again: its manifest" in done.stdout
    assert "resumed from step 6" in done.stdout
    after = contents(copied.folder)
    names = ("short.txt", "long.txt", "short.bin", "long.bin", "long.bin.json")
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
