"""launch/slurm_prepare.sh under a real SLURM of two nodes, with a job that is killed half-way."""

import subprocess
import sys
from pathlib import Path

import pytest

from spectral_dist.data.tokens import prepare
from spectral_dist.settings import DatasetConfig
from tests.end_to_end.conftest import ROOT
from tests.multiprocess.conftest import Slurm
from tests.waiting import Patience, wait_until

pytestmark = pytest.mark.multiprocess

SCRIPT = ROOT / "launch" / "slurm_prepare.sh"
# At its first start, job 2 of the array is requeued while it builds.
SETUP = """
if [[ $SLURM_ARRAY_TASK_ID == 2 && ${SLURM_RESTART_COUNT:-0} == 0 ]]; then
  "$SPECTRAL_PYTHON" -m spectral_dist.prepare --data_paths apart --shard 1/3 --processes 1 &
  sleep 1
  echo "requeued in the middle"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 600
fi
"""


def test_an_array_makes_the_same_tokens_also_when_a_job_is_requeued(
    slurm: Slurm, tmp_path: Path
) -> None:
    for side in ("together", "apart"):
        (tmp_path / side).mkdir()
        for number in range(8):
            text = "".join(f"metin {number} {line}\n" for line in range(20_000))
            (tmp_path / side / f"{number}.txt").write_text(text)
    (tmp_path / "setup.sh").write_text(SETUP)
    ours = {
        "PYTHONPATH": str(ROOT),
        "SPECTRAL_PYTHON": sys.executable,
        "SPECTRAL_SETUP": str(tmp_path / "setup.sh"),
    }
    slurm.wait_for_idle_nodes()
    flags = ("--parsable", "--array=1-3", "--cpus-per-task=1", str(SCRIPT), "--data_paths", "apart")
    done = subprocess.run(
        ["sbatch", *flags],
        cwd=tmp_path,
        env=slurm.environment | ours,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()

    def output() -> str:
        logs = sorted(tmp_path.glob(f"slurm-{job}_*.out"))
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in logs)

    def all_ready() -> bool:
        # The one that is requeued may be ready twice: what it left in the background, and itself.
        again = output().partition("requeued in the middle")[2]
        return all(f"shard {i}/3: " in output() for i in (0, 2)) and "shard 1/3: " in again

    patience = Patience(slurm.processes, lambda: slurm.command("squeue", "-h", "-o", "%T"))
    wait_until(all_ready, lambda: output() + slurm.log(), patience)
    assert output().count("requeued in the middle") == 1
    told: list[str] = []
    for side in ("together", "apart"):
        dataset = DatasetConfig(paths=(str(tmp_path / side),))
        prepare([dataset], validation_fraction=0.1, min_tokens=10, report=told.append)
    assert sum("MB/s" in line for line in told) == 8  # of those together: apart, all was done
    both = [sorted((tmp_path / side).glob("*.bin")) for side in ("together", "apart")]
    assert [p.read_bytes() for p in both[0]] == [p.read_bytes() for p in both[1]]
