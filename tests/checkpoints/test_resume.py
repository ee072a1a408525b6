"""A checkpoint of long ago resumes, by its own command, as if it had not been interrupted.

`first/` is a run of 12 steps that was killed before its last save, as it lay on disk: written by
the code of the commit that undisturbed.json names, and never written again. It stands for every
checkpoint a user has: whatever the program becomes, its command, its settings and its arrays must
be understood. undisturbed.json has the losses of the same run left alone; those of its last three
steps were written again when the schedule came to end at its last rate.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden.write import DECIDES, provenance

RUN = Path(__file__).with_name("first")
ROOT = Path(__file__).parents[2]
# On another processor, or with another compiler, the steps that are trained anew round otherwise.
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of the run after its own command went on with it, and what that said."""
    folder = tmp_path_factory.mktemp("kept") / "first"
    shutil.copytree(RUN, folder, symlinks=True)
    run = folder / "checkpoints" / "kept"
    written = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    _, *command = written["command"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": golden()["provenance"]["xla_flags"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return run, done.stdout


def golden() -> dict[str, Any]:
    return json.loads((RUN / "undisturbed.json").read_text(encoding="utf-8"))


def test_it_goes_on_where_it_was_and_says_so(resumed: tuple[Path, str]) -> None:
    run, said = resumed
    assert "resumed from step 8" in said
    assert "changed since then" not in said
    assert sorted(path.name for path in run.iterdir() if path.name.isdigit()) == ["12", "8"]
    assert os.readlink(run / "checkpoint_0") == "12"
    assert os.readlink(run / "checkpoint_1") == "8"


def test_its_losses_are_those_of_a_run_left_alone(
    resumed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = resumed
    expected = golden()
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    losses = {str(r["step"]): r["train/loss"] for r in records if "train/loss" in r}
    [*_, bits] = [r["val/bits_per_byte"] for r in records if "val/bits_per_byte" in r]
    monkeypatch.setenv("XLA_FLAGS", expected["provenance"]["xla_flags"])
    here = provenance()
    if all(here[name] == expected["provenance"][name] for name in DECIDES):
        assert (losses, bits) == (expected["losses"], expected["bits_per_byte"])
    else:
        assert losses == pytest.approx(expected["losses"], rel=RELATIVE)
        assert bits == pytest.approx(expected["bits_per_byte"], rel=RELATIVE)
