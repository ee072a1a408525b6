"""Interrupted runs: killed, stopped, moved to another mesh, damaged, diverged."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from spectral_dist.data.mixture import TrainSequences, token_batches
from spectral_dist.data.tokens import prepare
from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.settings import Config, DatasetConfig
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.checkpoint_folder import complete_steps
from spectral_dist.training.state import TrainState, abstract_state
from spectral_dist.training.step import batch_sharding
from tests.waiting import finish

STEPS = 200
LONG = ["--steps", str(STEPS), "--save_every", "50", "--eval_every", "100"]
MOVED = ["--steps", "12", "--save_every", "4", "--keep", "3", "--batch_size", "8"]


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["step"], r["train/loss"]) for r in map(json.loads, lines) if "train/loss" in r]


def stored(folder: Path, step: int) -> TrainState:
    """Read a checkpoint as it is, onto one device."""
    config: Config = load_config(["--config", str(folder / "config.yaml"), "--mesh", "1x1x1"])
    abstract = abstract_state(config, make_mesh((1, 1, 1), jax.devices()[:1]))
    checkpoints = Checkpoints(folder, keep=9, warn=pytest.fail)
    state, _ = checkpoints.restore(abstract, step)
    checkpoints.close()
    return state


def bits(state: TrainState) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


# ---- one mesh ----


@dataclass
class Interrupted:
    program: Any
    ended: list["subprocess.CompletedProcess[str]"]


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Wait until a condition holds; the process must not end before."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def at_first_loss(process: "subprocess.Popen[str]", *signals: signal.Signals) -> Any:
    """Send signals as soon as the first figures are printed; return how the program ended."""
    assert process.stdout is not None
    before = []
    for line in process.stdout:
        before.append(line)
        if "  loss " in line:
            break
    for number in signals:
        process.send_signal(number)
        time.sleep(0.03)  # two of one kind that arrive at once are one
    out, err = finish(process)
    return subprocess.CompletedProcess(process.args, process.returncode, "".join(before) + out, err)


@pytest.fixture(scope="module")
def interrupted(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """The same run twice: `whole` at one go, `parts` with kill -9, SIGTERM and SIGINT."""
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(trained.folder, folder, dirs_exist_ok=True, symlinks=True)
    program = type(trained)(folder)
    whole = program.run(*LONG, "--run_name", "whole")
    ended = [whole]
    process = program.start(*LONG, "--run_name", "parts")
    wait_for((program.run_folder("parts") / "50").is_dir, process)
    process.kill()
    out, err = process.communicate()
    ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    for number in (signal.SIGTERM, signal.SIGINT):
        ended.append(at_first_loss(program.start(*LONG, "--run_name", "parts"), number))
    ended.append(program.run(*LONG, "--run_name", "parts"))
    return Interrupted(program, ended)


@pytest.mark.slow
def test_sigterm_and_sigint_save_and_the_same_command_goes_on(interrupted: Interrupted) -> None:
    whole, killed, term, interrupt, last = interrupted.ended
    codes = [whole.returncode, killed.returncode, term.returncode, interrupt.returncode]
    assert [*codes, last.returncode] == [0, -9, 75, 130, 0], [e.stderr for e in interrupted.ended]
    assert [e.stderr for e in interrupted.ended] == [""] * 5
    assert "resumed from step 50" in term.stdout or "resumed from step 100" in term.stdout
    for stopped, then, name in ((term, interrupt, "SIGTERM"), (interrupt, last, "SIGINT")):
        said = re.search(rf"stopped by {name}: saved step (\d+) in .*; the same", stopped.stdout)
        assert said, stopped.stdout
        assert f"resumed from step {said[1]} in" in then.stdout
        assert int(said[1]) < STEPS


@pytest.mark.slow
def test_interruptions_change_nothing(interrupted: Interrupted) -> None:
    whole, parts = (interrupted.program.run_folder(name) for name in ("whole", "parts"))
    assert [step for step, _ in losses(whole)] == list(range(1, STEPS + 1))
    assert losses(parts) == losses(whole)
    assert os.readlink(parts / "checkpoint_0") == str(STEPS)
    assert bits(stored(parts, STEPS)) == bits(stored(whole, STEPS))


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(interrupted: Interrupted) -> None:
    process = interrupted.program.start(*LONG, "--run_name", "twice")
    ended = at_first_loss(process, signal.SIGINT, signal.SIGINT)
    assert ended.returncode == 130
    # The first may have had its way before the second came; test_signals has the rule itself.
    if "stopped by SIGINT" not in ended.stdout:
        # Inside a save asyncio may add what it could not close: "Exception ignored in ...".
        assert "error: interrupted; what was saved before stays\n" in ended.stderr


# ---- another mesh ----


@pytest.mark.slow
def test_a_run_moves_to_another_mesh_and_back(program: Any) -> None:
    eight, four = ["--mesh", "2x2x2"], ["--mesh", "1x4x1"]
    done = program.run(*MOVED, *eight, "--run_name", "still", devices=8)
    assert (done.returncode, done.stderr) == (0, "")
    still, moved = program.run_folder("still"), program.run_folder("moved")
    shutil.copytree(still, moved, symlinks=True)
    # As if it had been killed after step 4, and again after step 8.
    for after, flags, devices in ((4, four, 4), (8, eight, 8)):
        for step in complete_steps(moved):
            if step > after:
                shutil.rmtree(moved / str(step))
        done = program.run(*MOVED, *flags, "--run_name", "moved", devices=devices)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"resumed from step {after} in" in done.stdout
        assert "some sequences may come twice" not in done.stdout
        assert [step for step, _ in losses(moved)] == list(range(1, 13))
        np.testing.assert_allclose(
            [loss for _, loss in losses(moved)], [loss for _, loss in losses(still)], rtol=1e-4
        )


def test_the_batches_are_the_same_on_every_mesh(texts: Path) -> None:
    paths = [str(texts / "short.txt"), str(texts / "long.txt")]
    datasets = [DatasetConfig(paths=(path,)) for path in paths]
    files = prepare(datasets, validation_fraction=0.1, min_tokens=33, report=lambda line: None)
    sequences = TrainSequences(files, [(0, (0.5, 0.5))], seq_len=32, seed=0)
    read = []
    for mesh, start in (("2x2x2", 0), ("1x4x1", 4), ("1x1x8", 4)):
        argv = ["--data_paths", ",".join(paths), "--mesh", mesh, *MOVED, "--seq_len", "32"]
        argv += ["--num_kv_heads", "8"]  # tensor=8 splits no head
        config = load_config(argv)
        shape = config.mesh.shape
        batches = token_batches(
            sequences,
            accum_steps=1,
            batch_size=8,
            sharding=batch_sharding(config, make_mesh(shape, jax.devices()[: np.prod(shape)])),
            start_step=start,
            start_sequence=start * 8,
            steps=12,
            prefetch_steps=2,
        )
        read.append({b.step: bytes(np.asarray(b.tokens)) for b in batches})
    assert list(read[0]) == list(range(12))
    for later in read[1:]:
        assert later == {step: read[0][step] for step in range(4, 12)}


# ---- damage and divergence ----


def test_a_torn_newest_checkpoint_falls_back(copied: Any) -> None:
    folder = copied.run_folder("base")
    wanted, final = losses(folder), bits(stored(folder, 6))
    torn = max((p for p in (folder / "6").rglob("*") if p.is_file()), key=os.path.getsize)
    os.truncate(torn, torn.stat().st_size // 2)
    flags = ["--run_name", "base", "--steps", "6", "--save_every", "2", "--keep", "3"]
    done = copied.run(*flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"warning: checkpoint 6 in .* cannot be read", done.stdout)
    assert "resumed from step 4" in done.stdout
    assert losses(folder) == wanted
    assert bits(stored(folder, 6)) == final


def test_a_diverging_run_stops_and_its_checkpoints_stay_healthy(copied: Any) -> None:
    folder = copied.run_folder("base")
    healthy = bits(stored(folder, 6))
    flags = ["--lr", "2e9", "--steps", "60", "--max_bad_steps", "4", "--save_every", "1"]
    done = copied.run("--run_name", "base", *flags)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: max_bad_steps=4: loss or gradient was not finite")
    assert done.stderr.count("\n") == 1
    for part in ("up to step ", "Lower --lr (now 2e+09)", "--warmup_steps (now 3)"):
        assert part in done.stderr
    assert bits(stored(folder, 6)) == healthy
    steps = complete_steps(folder)
    assert len(steps) > 1
    for step in steps:
        for leaf in jax.tree.leaves(stored(folder, step)):
            assert np.isfinite(np.asarray(leaf)).all(), step
    skipped = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(r.get("train/skipped_steps") or 0 for r in skipped) >= 3
