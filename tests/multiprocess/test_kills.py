"""kill -9 at random moments: what was saved stays, and the run ends as if nothing had happened.

SPECTRAL_TESTS_KILLED_RUNS is how many runs are killed four times each: 3, or what it is set to.
"""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spectral_dist.training.checkpoint_folder import complete_steps
from tests.multiprocess.local import Local, Run, bits, local_runs, losses

RUNS, KILLS_A_RUN = int(os.environ.get("SPECTRAL_TESTS_KILLED_RUNS", "3")), 4
KILLS = RUNS * KILLS_A_RUN
KILLS_IN_A_SAVE = KILLS // 2
STEPS, SAVE_EVERY = 60, 3
# Each kill falls into a part of its own of the run; two parts are left after the last one, so that
# the run does not end before it.
PART = STEPS // (KILLS_A_RUN + 2)
FLAGS = f"--steps {STEPS} --save_every {SAVE_EVERY} --eval_every 1000 --hang_timeout 30".split()
PAIR = {"processes": 2, "devices": 1}
SINGLE = {"processes": 1, "devices": 1}

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def in_flight(folder: Path) -> list[int]:
    """Return the steps whose saves have begun and not ended."""
    return [int(p.name.split(".")[0]) for p in folder.glob("[0-9]*.orbax-checkpoint-tmp*")]


def last_step(folder: Path) -> int:
    return max(losses(folder), default=0) if (folder / "metrics.jsonl").exists() else 0


def pause(run: Run) -> None:
    run.send(signal.SIGSTOP, *range(len(run.ranks)))


def kill_in_a_save(run: Run, folder: Path, target: int, draw: random.Random) -> int:
    """Kill a process inside a save of `target` or later; return which process."""
    run.wait_for("  loss ")  # what the start before left is cleared away
    while True:
        run.wait_until(lambda: max(in_flight(folder), default=0) >= target, "a save")
        time.sleep(draw.random() * 0.05)
        pause(run)
        if in_flight(folder):
            return kill(run, draw)
        run.send(signal.SIGCONT, *range(len(run.ranks)))


def kill_at(run: Run, folder: Path, target: int, draw: random.Random) -> int:
    """Kill a process some moments after a step."""
    run.wait_for("  loss ")
    run.wait_until(lambda: last_step(folder) >= target, f"step {target}")
    time.sleep(draw.random() * 0.05)
    pause(run)
    return kill(run, draw)


def kill(run: Run, draw: random.Random) -> int:
    victim = draw.randrange(len(run.ranks))
    run.send(signal.SIGKILL, victim)
    run.send(signal.SIGCONT, *(i for i in range(len(run.ranks)) if i != victim))
    return victim


def survive(local: Local, name: str, seed: int, shape: dict[str, int]) -> int:
    """Train with four kills on the way; return how many fell into a save."""
    draw, folder = random.Random(seed), local.run_folder(name)
    flags = [*FLAGS, "--run_name", name, "--mesh", f"1x{shape['processes']}x1"]
    newest, inside = 0, 0
    for number in range(KILLS_A_RUN):
        run = local.start(*flags, **shape)
        target = number * PART + draw.randint(1, PART)
        hit = kill_in_a_save if (number + seed) % 2 else kill_at
        victim = hit(run, folder, target, draw)
        codes = run.wait()
        assert codes.pop(victim) == -signal.SIGKILL
        assert codes in ([], [76]), run.told()
        if codes:
            assert f"process {victim} of 2" in run.ranks[1 - victim].err, run.told()
        if newest:
            assert f"resumed from step {newest} in" in run.ranks[0].out, run.told()
        inside += hit is kill_in_a_save
        # All that was due is there, but for what was in flight; the next start reads it.
        before, newest = newest, max(complete_steps(folder), default=0)
        assert newest >= max([before, *(step - SAVE_EVERY for step in in_flight(folder))])
    done = local.run(*flags, **shape)
    assert f"resumed from step {newest} in" in done.ranks[0].out
    assert not any("cannot be read" in rank.out for run in local.runs for rank in run.ranks)
    return inside


def test_kills_lose_nothing(tmp_path: Path) -> None:
    """One run of two processes, the others of one; the wholes are what they must end like."""
    with local_runs(tmp_path) as local, ThreadPoolExecutor(2) as pool:
        names = [f"run_{seed}" for seed in range(RUNS)]
        shapes = [PAIR, *[SINGLE] * (RUNS - 1)]
        wholes = {}
        for whole, shape in (("pair", PAIR), ("single", SINGLE)):
            flags = ["--run_name", whole, "--mesh", f"1x{shape['processes']}x1"]
            local.run(*FLAGS, *flags, **shape)
            wholes[whole] = bits(local.run_folder(whole), STEPS), losses(local.run_folder(whole))
        inside = pool.map(survive, [local] * RUNS, names, range(RUNS), shapes)
        assert sum(inside) == KILLS_IN_A_SAVE
        for name, shape in zip(names, shapes, strict=True):
            folder = local.run_folder(name)
            state, curve = wholes["pair" if shape is PAIR else "single"]
            assert bits(folder, STEPS) == state, name
            assert losses(folder) == curve, name
            assert in_flight(folder) == []
