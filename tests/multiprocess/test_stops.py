"""Asked to stop in every phase, by every signal, once or twice, in one process or two."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spectral_dist.file_lock import FileLock
from spectral_dist.training.checkpoint_folder import complete_steps
from tests.multiprocess.local import ROOT, Local, Own, Run, bits, local_runs, losses
from tests.waiting import wait_until

TERM, USR1 = signal.SIGTERM, signal.SIGUSR1
STEPS = 40
FLAGS = f"--steps {STEPS} --save_every 10 --eval_every 15 --keep 9".split()

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def announced(module: str, name: str, word: str, then: str = "pass") -> str:
    """Return a patch: the process says when it is about to call a function."""
    return (
        f"import importlib, time\n_m = importlib.import_module({module!r})\n_f = _m.{name}\n"
        f"def _say(*args, **kwargs):\n    print('now: {word}', flush=True)\n    {then}\n"
        f"    return _f(*args, **kwargs)\n_m.{name} = _say"
    )


@dataclass(frozen=True)
class Phase:
    """A part of a run to be hit in.

    Attributes:
      patch: makes the process say that it has come there.
      sign: what it prints there.
      nothing_to_save: whether the run ends at once.
      flags: further ones.
      environment: further variables.
    """

    patch: str
    sign: str
    nothing_to_save: bool = False
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


PHASES = {
    "compile": Phase(
        announced("spectral_dist.trainer", "compile_step", "compiling"),
        "now: compiling",
        nothing_to_save=True,
        environment=(("JAX_ENABLE_COMPILATION_CACHE", "false"),),
    ),
    "step": Phase("pass", "  loss "),
    "evaluation": Phase(
        announced("spectral_dist.trainer", "Evaluation.by_dataset", "evaluating"),
        "now: evaluating",
        flags=("--eval_windows", "400"),
    ),
    "save": Phase(
        announced("spectral_dist.training.checkpoint", "write_manifest", "saving", "time.sleep(1)"),
        "now: saving",
    ),
}


# In each phase, the signals that are sent, some moments apart, and to which process.
ONE_PROCESS = {
    "compile": [(0, TERM)],
    "step": [(0, TERM), (0, TERM)],
    "evaluation": [(0, USR1), (0, TERM)],
    "save": [(0, TERM), (0, USR1), (0, TERM)],
}
TWO_PROCESSES = {
    "compile": [(1, TERM)],
    "step": [(0, TERM), (1, TERM), (1, TERM)],
    "evaluation": [(1, USR1)],
    "save": [(1, TERM), (0, USR1)],
}
WITHOUT_A_STATE = [TERM, USR1]


@contextlib.contextmanager
def being_built(text: Path) -> Iterator[None]:
    """Hold the turn to build a text, as another run would."""
    lock = FileLock(text.with_name(f".{text.stem}.bin.lock"))
    wait_until(lock.take, "the turn to build")
    try:
        yield
    finally:
        lock.release()


def stop(run: Run, hits: list[tuple[int, signal.Signals]]) -> list[int]:
    """Send signals to processes, some moments apart; return how the processes ended."""
    for rank, number in hits:
        if run.ranks[rank].process.poll() is None:
            run.send(number, rank)
        time.sleep(0.1)
    return run.wait()


def assert_stopped(run: Run, codes: list[int], phase: Phase, folder: Path) -> int:
    """Check how a run ended; return the step that was saved last."""
    out = run.ranks[0].out
    assert codes == [75] * len(codes), run.told()
    assert all(rank.err == "" for rank in run.ranks), run.told()
    if phase.nothing_to_save:
        said = [
            line for rank in run.ranks for line in rank.out.splitlines() if "stopped by" in line
        ]
        assert said, run.told()
        assert all("nothing new to save; the same command continues" in line for line in said)
        return max(complete_steps(folder), default=0)
    saved = re.findall(r"stopped by SIG\w+: saved step (\d+) in .*; the same command", out)
    assert len(saved) == 1, run.told()
    assert int(saved[0]) == complete_steps(folder)[-1] < STEPS
    return int(saved[0])


def hit_in_all_phases(
    local: Local, name: str, hits: dict[str, list[tuple[int, signal.Signals]]], **shape: int
) -> None:
    """Hit one run in one phase after the other; then it must have become what `whole` is."""
    mesh = ["--mesh", f"1x{shape['processes']}x1"]
    whole, folder = local.run_folder("whole"), local.run_folder(name)
    local.run(*FLAGS, *mesh, "--run_name", "whole", **shape)
    at = 0
    for which, signals in hits.items():
        phase = PHASES[which]
        own = {i: Own(phase.patch, environment=dict(phase.environment)) for i in (0, 1)}
        flags = [*FLAGS, *mesh, *phase.flags, "--run_name", name]
        run = local.start(*flags, **shape, own=own)
        run.wait_for(phase.sign)
        codes = stop(run, signals)
        assert at == 0 or f"resumed from step {at} in" in run.ranks[0].out, run.told()
        at = assert_stopped(run, codes, phase, folder)
    local.run(*FLAGS, *mesh, "--run_name", name, **shape)
    assert losses(folder) == losses(whole)
    assert bits(folder, STEPS) == bits(whole, STEPS)


def test_one_process_in_every_phase(tmp_path: Path) -> None:
    """The second signal changes nothing, be it the same one or the other."""
    with local_runs(tmp_path) as local:
        hit_in_all_phases(local, "hit", ONE_PROCESS, processes=1, devices=1)


def test_two_processes_in_every_phase(tmp_path: Path) -> None:
    """One of them is asked, or both at different times."""
    with local_runs(tmp_path) as local:
        hit_in_all_phases(local, "hit", TWO_PROCESSES, processes=2, devices=1)


def write_big_text(local: Local) -> None:
    with (local.folder / "big.txt").open("w", encoding="utf-8") as file:
        for _ in range(60):
            file.write("bir iki üç dört beş altı yedi\n" * 40_000)


@pytest.mark.parametrize("number", WITHOUT_A_STATE)
def test_while_jax_is_loaded(tmp_path: Path, number: signal.Signals) -> None:
    """On a busy file system that takes a minute; a stand-in takes it here."""
    slow = tmp_path / "slow" / "jax"
    slow.mkdir(parents=True)
    waits = "import time\nprint('now: loading', flush=True)\ntime.sleep(60)\n"
    (slow / "__init__.py").write_text(waits, encoding="utf-8")
    own = {0: Own(environment={"PYTHONPATH": os.pathsep.join([str(slow.parent), str(ROOT)])})}
    with local_runs(tmp_path) as local:
        run = local.start(*FLAGS, own=own)
        run.wait_for("now: loading")
        assert_stopped(run, stop(run, [(0, number)]), PHASES["compile"], tmp_path)
        assert "while starting" in run.ranks[0].out


@pytest.mark.parametrize("number", WITHOUT_A_STATE)
def test_while_text_is_prepared(tmp_path: Path, number: signal.Signals) -> None:
    """While another run builds a text, and while this one does: nothing half is left."""
    with local_runs(tmp_path) as local:
        with being_built(tmp_path / "long.txt"):
            run = local.start(*FLAGS)
            run.wait_for("long.txt: waiting for process")
            assert_stopped(run, stop(run, [(0, number)]), PHASES["compile"], tmp_path)
        write_big_text(local)
        run = local.start(*FLAGS, "--data_paths", "big.txt")
        run.wait_until(lambda: list(tmp_path.glob(".big.bin.*.tmp")), "the building")
        assert_stopped(run, stop(run, [(0, number)]), PHASES["compile"], tmp_path)
        assert not list(tmp_path.glob(".*.tmp"))
        assert not list(tmp_path.glob(".*.lock"))
        assert not (tmp_path / "checkpoints").exists()
