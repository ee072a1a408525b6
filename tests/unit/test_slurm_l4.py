"""launch/slurm_l4.sh without a SLURM: its form, and the mistakes that it finds by itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm_l4.sh"
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_ON_NODE": "96",
    "SLURM_GPUS_ON_NODE": "8",
    "SPECTRAL_PYTHON": sys.executable,
    "PYTHONPATH": str(ROOT),
}


def run(folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SPECTRAL_"))}
    return subprocess.run(
        [str(SCRIPT), "--run_name", "x"],
        cwd=folder,
        env=outside | environment,
        capture_output=True,
        text=True,
    )


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        if os.environ.get("SPECTRAL_TESTS_NEED_SLURM"):
            pytest.fail("shellcheck was not found")
        pytest.skip("shellcheck was not found")
    done = subprocess.run(
        ["shellcheck", "--severity=style", str(SCRIPT), str(ROOT / ".ci" / "run")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_every_variable_is_explained_and_read() -> None:
    header, _, body = SCRIPT.read_text(encoding="utf-8").partition("set -euo pipefail")
    explained = {word for word in header.replace(",", " ").split() if word.startswith("SPECTRAL_")}
    for name in explained:
        assert f"${{{name}" in body, name
    read = {word.partition("}")[0].partition(":")[0] for word in body.split("${")[1:]}
    assert {name for name in read if name.startswith("SPECTRAL_")} == explained


def test_no_line_prints_the_environment() -> None:
    for line in SCRIPT.read_text(encoding="utf-8").splitlines():
        assert not line.strip().startswith(("env", "printenv", "export -p", "declare -p", "set -x"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SLURM_JOB_ID": ""}, "runs under SLURM: sbatch --nodes=2"),
        ({"SPECTRAL_PYTHON": "/nowhere/python"}, "SPECTRAL_PYTHON=/nowhere/python: there is no"),
        ({"PYTHONPATH": "", "SPECTRAL_PYTHON": "bare"}, "cannot import spectral_dist"),
        ({"SLURM_GPUS_ON_NODE": "0"}, "no GPU on "),
        ({"SPECTRAL_TASKS_PER_NODE": "3"}, "=3: must be 1 or the GPUs of a host, 8"),
        ({"SPECTRAL_TASKS_PER_NODE": "all"}, "=all: must be 1 or"),
        (
            {"SPECTRAL_TASKS_PER_NODE": "two", "SPECTRAL_CPU_DEVICES": "2"},
            "SPECTRAL_TASKS_PER_NODE=two: must be a positive integer",
        ),
        ({"SPECTRAL_CPU_DEVICES": "0"}, "SPECTRAL_CPU_DEVICES=0: must be a positive integer"),
        ({"SPECTRAL_MAX_RESTARTS": "-1"}, "SPECTRAL_MAX_RESTARTS=-1: must be an integer"),
    ],
)
def test_a_mistake_is_one_line(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"  # a Python that has no package but its own
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    changed = {k: str(bare) if v == "bare" else v for k, v in changed.items()}
    done = run(tmp_path, **JOB | changed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("slurm_l4: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
