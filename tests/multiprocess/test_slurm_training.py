"""The training under a real SLURM: what a signal, a lost node or a killed process costs a run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from spectral_dist.training.checkpoint_folder import complete_steps
from tests.end_to_end.conftest import SMALL, Program, write_text
from tests.multiprocess.conftest import Job, Slurm, Submit

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

STEPS = 40
SETTINGS = (
    *SMALL, "--data_paths", "short.txt,long.txt", "--run_name", "x", "--steps", str(STEPS),
    "--save_every", "5", "--keep", "9", "--eval_every", "1000", "--hang_timeout", "60",
)  # fmt: skip
TWO_NODES = ("--nodes=2",)
FIRST_LOSS = r"(?s)start {0}: .*?  loss "


def with_texts(folder: Path) -> Path:
    write_text(folder / "short.txt", documents=200, words=25)
    write_text(folder / "long.txt", documents=30, words=150)
    return folder


def run_folder(folder: Path) -> Path:
    return folder / "checkpoints" / "x"


def losses(folder: Path) -> list[tuple[int, float]]:
    text = (run_folder(folder) / "metrics.jsonl").read_text(encoding="utf-8")
    records = map(json.loads, text.splitlines())
    return [(r["step"], r["train/loss"]) for r in records if "train/loss" in r]


def resumed_at(job: Job) -> list[int]:
    return [int(step) for step in re.findall(r"resumed from step (\d+)", job.output())]


@pytest.fixture(scope="module")
def whole(submit_in: Submit, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run on two nodes that nothing has disturbed. To be copied, never changed."""
    folder = with_texts(tmp_path_factory.mktemp("whole"))
    job = submit_in(folder, *SETTINGS, sbatch=TWO_NODES, SPECTRAL_CPU_DEVICES="2")
    job.wait_for_end()
    return job


def test_two_nodes_train_to_the_end(whole: Job) -> None:
    assert [step for step, _ in losses(whole.folder)] == list(range(1, STEPS + 1))
    assert max(complete_steps(run_folder(whole.folder))) == STEPS
    output = whole.output()
    assert "start 1: 2 x 2 CPU devices, 2 processes, --mesh=2x2x1 as none was given" in output
    assert f"step {STEPS}/{STEPS}" in output
    # Process 0 prints for all; of the others only libraries are heard in a run without trouble.
    logs = whole.logs()
    assert sorted(logs) == ["0.log", "1.log"]
    assert logs["0.log"] in output
    assert not re.search("loss|bits|saved|resumed|warning:|error:", logs["1.log"])
    assert whole.facts["Restarts"] == "0"


def test_a_job_that_is_signalled_is_requeued_and_loses_nothing(
    submit: Submit, whole: Job, tmp_path: Path
) -> None:
    with_texts(tmp_path)
    job = submit(*SETTINGS, sbatch=TWO_NODES, SPECTRAL_CPU_DEVICES="2")
    for start, name in enumerate(("USR1", "TERM"), 1):
        job.wait_for_text(FIRST_LOSS.format(start))
        job.signal(name)
        job.wait_for_text(rf"start {start + 1}: ")
        stopped = re.findall(rf"stopped by SIG{name}: saved step (\d+)", job.output())
        assert stopped, job.described()
    facts = job.wait_for_end()
    assert facts["Restarts"] == "2"
    assert job.output().count("slurm_l4: stopped and saved: requeued") == 2
    saved = [int(step) for step in re.findall(r": saved step (\d+)", job.output())]
    assert resumed_at(job) == saved
    assert 0 < saved[0] < saved[1] < STEPS
    assert losses(tmp_path) == losses(whole.folder)


def test_a_run_continues_on_one_node_and_another_mesh(
    submit: Submit, whole: Job, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    longer = ("--steps", str(STEPS + 10))
    job = submit(
        *SETTINGS, "--mesh=1x2x1", *longer, sbatch=("--nodes=1",), SPECTRAL_CPU_DEVICES="2"
    )
    # The same on the mesh before, by one process.
    reference = tmp_path / "reference"
    shutil.copytree(whole.folder, reference, symlinks=True)
    done = Program(reference).run(*SETTINGS, "--mesh=2x2x1", *longer, devices=4)
    assert done.returncode == 0, done.stderr
    job.wait_for_end()
    assert resumed_at(job) == [STEPS]
    found, wanted = losses(tmp_path), losses(reference)
    assert found[:STEPS] == wanted[:STEPS] == losses(whole.folder)
    assert [step for step, _ in found] == list(range(1, STEPS + 11))
    # The same rows in the same order: another order changes the third digit.
    for (_, loss), (_, other) in zip(found[STEPS:], wanted[STEPS:], strict=True):
        np.testing.assert_allclose(loss, other, rtol=1e-4)


def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(
    submit: Submit, whole: Job, slurm: Slurm, tmp_path: Path
) -> None:
    with_texts(tmp_path)
    job = submit(*SETTINGS, sbatch=TWO_NODES, SPECTRAL_CPU_DEVICES="2")
    job.wait_for(lambda: complete_steps(run_folder(tmp_path)))
    slurm.crash_node(slurm.nodes[1])
    saved = max(complete_steps(run_folder(tmp_path)))
    job.wait_for(lambda: int(job.facts["Restarts"]) >= 1)
    slurm.start_node(slurm.nodes[1])
    job.wait_for_end()
    (resumed,) = resumed_at(job)
    assert saved <= resumed < STEPS
    assert losses(tmp_path) == losses(whole.folder)


def test_a_killed_lead_is_named_and_the_job_restarted(
    submit: Submit, whole: Job, tmp_path: Path
) -> None:
    with_texts(tmp_path)
    job = submit(*SETTINGS, sbatch=TWO_NODES, SPECTRAL_CPU_DEVICES="2")
    job.wait_for(lambda: complete_steps(run_folder(tmp_path)))
    job.kill_rank(0)
    facts = job.wait_for_end()
    assert facts["Restarts"] == "1"
    assert "slurm_l4: exit code 137, restart 1 of 3: requeued" in job.output()
    assert re.search(r"(?m)^error: process 0 of 2 \(", job.logs()["1.log"])
    assert losses(tmp_path) == losses(whole.folder)


def test_an_unknown_flag_ends_the_job_at_once(submit: Submit) -> None:
    job = submit(*SETTINGS, "--stepz", "3", sbatch=TWO_NODES, SPECTRAL_CPU_DEVICES="2")
    facts = job.wait_for_end("FAILED")
    assert (facts["ExitCode"], facts["Restarts"]) == ("2:0", "0")
    assert "error: unknown flag '--stepz'; did you mean --steps?" in job.output()
    assert f"slurm_l4: exit code 2: see logs/{job.number}" in job.output()
