"""launch/slurm_prepare.sh without a SLURM: its form, its share of the work, and its mistakes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm_prepare.sh"


def run(folder: Path, *flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SPECTRAL_"))}
    ours = {"SPECTRAL_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(SCRIPT), *flags],
        cwd=folder,
        env=outside | ours | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def array(number: int, first: int, last: int, count: int | None = None) -> dict[str, str]:
    return {
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(last),
        "SLURM_ARRAY_TASK_COUNT": str(last - first + 1 if count is None else count),
        "SLURM_CPUS_PER_TASK": "1",
    }


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        if os.environ.get("SPECTRAL_TESTS_NEED_SLURM"):
            pytest.fail("shellcheck was not found")
        pytest.skip("shellcheck was not found")
    command = ["shellcheck", "--severity=style", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_job_of_an_array_builds_its_share(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"metin {number}\n" * 9)
    setup = tmp_path / "setup.sh"
    setup.write_text("echo set up\n")
    done = run(
        tmp_path, "--data_paths", "*.txt", SPECTRAL_SETUP=str(setup), **array(6, first=5, last=6)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("set up\n")
    assert done.stdout.endswith("shard 1/2: 2 files are ready\n")
    assert sorted(path.name for path in tmp_path.glob("*.bin")) == ["1.bin", "3.bin"]


def test_mistakes_end_with_2(tmp_path: Path) -> None:
    for environment, words in (
        ({}, "submit it as an array"),
        (array(0, 0, 8, count=5), "--array has gaps"),
        (array(0, 0, 1), "none.txt: no such file"),
    ):
        done = run(tmp_path, "--data_paths", "none.txt", **environment)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
