"""launch/slurm_l4.sh by itself, under a real SLURM, with a stand-in in place of the training."""

import json
import re
import time
from pathlib import Path

import pytest

from tests.multiprocess.conftest import Job, Submit

pytestmark = pytest.mark.multiprocess

# Leaves what it was given in RANK.json, and does what its first argument says.
STAND_IN = """
import json, os, signal, sys, time
rank = os.environ["SLURM_PROCID"]
start = int(os.environ.get("SLURM_RESTART_COUNT", 0))
facts = {"argv": sys.argv[1:], **{k: v for k, v in os.environ.items() if "WANDB" not in k}}
with open(f"{rank}.{start}.json", "w") as file:
    json.dump(facts, file)

def stop(number, frame):
    print(f"rank {rank} saves after {signal.Signals(number).name}", flush=True)
    os._exit(75)

signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGTERM, stop)
print(f"rank {rank} begins", flush=True)
what = sys.argv[1]
if what.startswith("exit="):  # one code for each start, the last one for all that follow
    codes = what.removeprefix("exit=").split(",")
    sys.exit(int(codes[min(start, len(codes) - 1)]))
if what == "die" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "die":
    sys.exit(76)
if what == "wait" and start == 0:
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A folder for PYTHONPATH whose spectral_dist.train is the stand-in."""
    package = tmp_path / "stand_in" / "spectral_dist"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(STAND_IN, encoding="utf-8")
    return str(package.parent)


def told(job: Job, rank: int, start: int = 0) -> dict[str, str]:
    return json.loads((job.folder / f"{rank}.{start}.json").read_text(encoding="utf-8"))


def wait_for_both_ranks(job: Job) -> None:
    """Wait until both handle signals."""
    job.wait_for(lambda: [text.count("begins") for text in job.logs().values()] == [1, 1])


def test_one_task_for_each_gpu_and_every_task_sees_them_all(submit: Submit, stand_in: str) -> None:
    job = submit("exit=0", "--run_name", "x", sbatch=("--nodes=2",), PYTHONPATH=stand_in)
    job.wait_for_end()
    tasks = [told(job, rank) for rank in range(16)]
    assert [int(t["SLURM_LOCALID"]) for t in tasks] == [*range(8), *range(8)]
    assert [int(t["SLURM_NODEID"]) for t in tasks] == [0] * 8 + [1] * 8
    assert {t["SLURM_NTASKS"] for t in tasks} == {"16"}
    assert {t["CUDA_VISIBLE_DEVICES"] for t in tasks} == {"0,1,2,3,4,5,6,7"}
    assert not any("JAX_PLATFORMS" in t and t["JAX_PLATFORMS"] != "cpu" for t in tasks)
    assert tasks[15]["argv"] == ["exit=0", "--run_name", "x", "--mesh=2x8x1"]
    first = job.output().splitlines()[0]
    assert "start 1: 2 x 8 GPUs, 16 processes, --mesh=2x8x1 as none was given" in first


# Eight GPUs, of which one is lost in the first start.
NVIDIA_SMI = """#!/bin/bash
[[ "$*" != *ecc* ]] || { echo 0; exit; }
for ((i = 0; i < (${SLURM_RESTART_COUNT:-0} ? 8 : 7); i++)); do echo "GPU $i: NVIDIA L4"; done
"""


def test_a_host_without_all_of_its_gpus_is_named_and_left_out(
    submit: Submit, stand_in: str, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    (tmp_path / "setup.sh").write_text(f'export PATH="{tools}:$PATH" OF_THE_SETUP=1\n')
    job = submit(
        "exit=0", sbatch=("--nodes=1",), PYTHONPATH=stand_in, SPECTRAL_TASKS_PER_NODE="1",
        SPECTRAL_SETUP=str(tmp_path / "setup.sh"),
    )  # fmt: skip
    facts = job.wait_for_end()
    assert (facts["Restarts"], facts["ExitCode"]) == ("1", "0:0")
    (bad,) = re.findall(r"slurm_l4: (\S+): 7 of 8 GPUs answer", job.output())
    assert f"slurm_l4: GPUs of {bad}, restart 1 of 3: requeued" in job.output()
    task = told(job, 0, 1)
    assert task["SLURMD_NODENAME"] != bad
    assert task["OF_THE_SETUP"] == "1"
    assert not (job.folder / "0.0.json").exists()  # nothing was trained there


@pytest.mark.parametrize(("file", "words"), [("absent.sh", "cannot be read"), ("bad.sh", "failed")])
def test_a_setup_that_fails_ends_the_job(
    submit: Submit, stand_in: str, tmp_path: Path, file: str, words: str
) -> None:
    (tmp_path / "bad.sh").write_text("return 1\n")
    setup = str(tmp_path / file)
    job = submit(
        "exit=0", sbatch=("--nodes=1",), PYTHONPATH=stand_in, SPECTRAL_CPU_DEVICES="1",
        SPECTRAL_SETUP=setup,
    )  # fmt: skip
    assert job.wait_for_end("FAILED")["ExitCode"] == "2:0"
    assert f"SPECTRAL_SETUP={setup}: {words}" in job.output()


def test_one_task_for_each_host_by_setting(submit: Submit, stand_in: str) -> None:
    job = submit(
        "exit=0", "--mesh=1x16x1", sbatch=("--nodes=2",), PYTHONPATH=stand_in,
        SPECTRAL_TASKS_PER_NODE="1",
    )  # fmt: skip
    job.wait_for_end()
    tasks = [told(job, rank) for rank in range(2)]
    assert [t["SLURM_NTASKS"] for t in tasks] == ["2", "2"]
    assert [t["SLURM_NODEID"] for t in tasks] == ["0", "1"]
    assert [t["SLURM_CPUS_PER_TASK"] for t in tasks] == ["8", "8"]
    assert tasks[0]["argv"] == ["exit=0", "--mesh=1x16x1"]
    assert "2 x 8 GPUs, 2 processes; logs in" in job.output().splitlines()[0]


def test_rank_0_is_on_the_console_and_every_rank_in_its_log(submit: Submit, stand_in: str) -> None:
    job = submit(
        "wait", sbatch=("--nodes=2", "--export=ALL"), PYTHONPATH=stand_in,
        SPECTRAL_CPU_DEVICES="2", WANDB_API_KEY="a-secret-of-forty-letters",
    )  # fmt: skip
    wait_for_both_ranks(job)
    job.wait_for_text("rank 0 begins")  # live: the task goes on
    job.signal("USR1")
    job.wait_for_end()
    # A requeued job goes on in the same files.
    saved, begun = "rank {0} saves after SIGUSR1\n", "rank {0} begins\n"
    wanted = begun + saved + begun
    assert job.logs() == {f"{rank}.log": wanted.format(rank) for rank in (0, 1)}
    lines = job.output().splitlines()
    assert [line for line in lines if line.startswith("rank ")] == wanted.format(0).splitlines()
    assert "slurm_l4: stopped and saved: requeued" in lines
    assert ", start 2: 2 x 2 CPU devices, 2 processes, --mesh=2x2x1" in job.output()
    assert "a-secret" not in job.output() + "".join(job.logs().values())


def test_a_signal_for_the_script_alone_goes_on_to_the_tasks(submit: Submit, stand_in: str) -> None:
    job = submit("wait", sbatch=("--nodes=2",), PYTHONPATH=stand_in, SPECTRAL_CPU_DEVICES="1")
    wait_for_both_ranks(job)
    job.slurm.command("scancel", "--batch", "--signal=USR1", job.number)
    facts = job.wait_for_end()
    assert (facts["Restarts"], facts["ExitCode"]) == ("1", "0:0")
    assert all("saves after SIGUSR1" in text for text in job.logs().values())


def test_slurm_itself_signals_the_tasks_ahead_of_the_time_limit(
    submit: Submit, stand_in: str
) -> None:
    job = submit("wait", sbatch=("--nodes=2",), PYTHONPATH=stand_in, SPECTRAL_CPU_DEVICES="1")
    wait_for_both_ranks(job)
    # Less than two minutes are left from now on. SLURM looks at time limits every half minute.
    job.slurm.command("scontrol", "update", f"JobId={job.number}", "TimeLimit=2")
    job.wait_for_text("rank 0 saves after SIGUSR1")
    facts = job.wait_for_end()
    assert (facts["Restarts"], facts["ExitCode"]) == ("1", "0:0")


def test_a_cancelled_job_saves_and_does_not_come_back(submit: Submit, stand_in: str) -> None:
    job = submit("wait", sbatch=("--nodes=2",), PYTHONPATH=stand_in, SPECTRAL_CPU_DEVICES="1")
    wait_for_both_ranks(job)
    job.slurm.command("scancel", job.number)
    job.slurm.wait_for_idle_nodes()
    assert job.facts["JobState"] == "CANCELLED"
    assert "rank 0 saves after SIGTERM" in job.output()
    assert "slurm_l4: ended by SLURM, exit code 75" in job.output()
    time.sleep(8)  # longer than SLURM holds a requeued job back
    assert job.facts["JobState"] == "CANCELLED"
    assert job.facts["Restarts"] == "0"


@pytest.mark.parametrize("code", [1, 2, 130])
def test_other_exit_codes_end_the_job(code: int, submit: Submit, stand_in: str) -> None:
    job = submit(f"exit={code}", PYTHONPATH=stand_in, SPECTRAL_CPU_DEVICES="1")
    facts = job.wait_for_end("FAILED")
    assert (facts["ExitCode"], facts["Restarts"]) == (f"{code}:0", "0")
    assert f"slurm_l4: exit code {code}: see logs/{job.number}" in job.output()


def test_failures_in_a_row_are_restarted_so_many_times_and_no_more(
    submit: Submit, stand_in: str
) -> None:
    job = submit(
        "exit=76,75,76,76", PYTHONPATH=stand_in, SPECTRAL_CPU_DEVICES="1",
        SPECTRAL_MAX_RESTARTS="1",
    )  # fmt: skip
    facts = job.wait_for_end("FAILED")
    said = [x.removeprefix("slurm_l4: ") for x in job.output().splitlines() if "slurm_l4: " in x]
    assert [text for text in said if not text.startswith("job ")] == [
        "exit code 76, restart 1 of 1: requeued",
        "stopped and saved: requeued",  # and the count begins anew
        "exit code 76, restart 1 of 1: requeued",
        f"exit code 76 after 1 restarts: given up, see logs/{job.number}",
    ]
    assert (facts["ExitCode"], facts["Restarts"]) == ("76:0", "3")


def test_a_task_that_is_killed_is_a_failure_too(submit: Submit, stand_in: str) -> None:
    job = submit(
        "die", sbatch=("--nodes=2",), PYTHONPATH=stand_in, SPECTRAL_CPU_DEVICES="1",
        SPECTRAL_MAX_RESTARTS="0",
    )  # fmt: skip
    facts = job.wait_for_end("FAILED")
    assert facts["ExitCode"] == "137:0"
    assert "exit code 137 after 0 restarts: given up" in job.output()
