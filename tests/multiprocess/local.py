"""Runs of one or several processes on this machine, to be hit from outside.

Every process writes to files of its own, so that none waits for a reader, and carries the run's
mark in its environment, so that all that is left of a run is found, its control service included.
"""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import pytest

from spectral_dist.cluster.service import free_port
from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.outputs.jsonl import read_metrics
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.state import TrainState, abstract_state
from tests.end_to_end.conftest import ROOT, SMALL, write_text
from tests.waiting import Patience, wait_until
from tests.warm import start_warm

_MARK = "SPECTRAL_DIST_TEST_RUN"
# What the runtime prints of itself, whatever the program does.
_NOISE = ("cudart_stub", "absl::InitializeLog", "[Gloo]")
_DATA = ("--data_paths", "short.txt,long.txt")
# The program, after the patch of one process: a fault that needs a hand inside.
_START = "\nfrom spectral_dist.command_line import run_main\nrun_main(train.main)\n"


@dataclass
class Rank:
    """One process of a run, and the files that it writes to."""

    process: "subprocess.Popen[bytes]"
    stdout: Path
    stderr: Path

    @property
    def out(self) -> str:
        return _without_noise(self.stdout)

    @property
    def err(self) -> str:
        return _without_noise(self.stderr)


def _without_noise(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if not any(word in line for word in _NOISE))


@dataclass
class Run:
    """The processes of one start of a run."""

    ranks: list[Rank]
    mark: str
    port: int  # of the control service

    def wait_for(self, text: str, rank: int = 0) -> None:
        """Wait until a process has printed a text."""
        self.wait_until(lambda: text in self.ranks[rank].out, text)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition; the run must not end before."""

        def holds() -> bool:
            ended = all(r.process.poll() is not None for r in self.ranks)
            met = bool(condition())
            assert met or not ended, f"{what}: the run has ended\n{self.told()}"
            return met

        wait_until(holds, lambda: f"{what}\n{self.told()}", self._patience())

    def send(self, number: int, *ranks: int) -> None:
        """Send a signal to some of the processes."""
        for rank in ranks:
            self.ranks[rank].process.send_signal(number)

    def wait(self) -> list[int]:
        """Wait for the end of all; return their exit codes."""
        processes = [r.process for r in self.ranks]
        wait_until(
            lambda: all(p.poll() is not None for p in processes),
            lambda: f"the end of the run\n{self.told()}",
            self._patience(),
        )
        return [p.wait() for p in processes]

    def wait_until_gone(self) -> None:
        """Wait until nothing is left of the run, its control service included."""
        wait_until(lambda: not self.left(), lambda: f"{self.left()}\n{self.told()}")

    def _patience(self) -> Patience:
        files = [path for r in self.ranks for path in (r.stdout, r.stderr)]
        return Patience(self.left, lambda: [path.stat().st_size for path in files])

    def left(self) -> list[int]:
        """Return the processes of the run that still live, those that it started included."""
        # A fork has the variables of what it was forked from: its own are not seen from outside.
        mark, own = f"{_MARK}={self.mark}".encode(), [r.process for r in self.ranks]
        found = [process.pid for process in own if process.poll() is None]
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                marked = mark in (folder / "environ").read_bytes().split(b"\0")
                if state != "Z" and marked and int(folder.name) not in found:
                    found.append(int(folder.name))
        return found

    def told(self) -> str:
        """Return all that the processes printed, for a failed assertion."""
        return "\n".join(
            f"-- process {i}: {rank.process.poll()}\n{rank.out}{rank.err}"
            for i, rank in enumerate(self.ranks)
        )

    def kill(self) -> None:
        """End what is left of the run."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for rank in self.ranks:
            rank.process.wait()


@dataclass(frozen=True)
class Own:
    """What one process of a run has that the others do not.

    Attributes:
      patch: Python to run before the program, with `run` imported.
      flags: further flags.
      environment: further variables.
      folder: to run in.
    """

    patch: str = ""
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


@dataclass
class Local:
    """A folder with two small texts, and the program to run in it."""

    folder: Path
    runs: list[Run] = field(default_factory=list)

    def start(
        self,
        *flags: str,
        processes: int = 1,
        devices: int = 1,
        only: int | None = None,
        own: Mapping[int, Own] | None = None,
        data: Sequence[str] = _DATA,
    ) -> Run:
        """Start a run.

        Args:
          flags: of the program, beside those of a small model.
          processes: how many.
          devices: of each process.
          only: the one process to start, of several.
          own: what some of the processes have for themselves, by their index.
          data: flags that name the texts.
        """
        mark, port, ranks = uuid.uuid4().hex, free_port(), []
        for index in range(processes) if only is None else (only,):
            mine = (own or {}).get(index, Own())
            place = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
            environment = {
                _MARK: mark,
                "PYTHONPATH": str(ROOT),
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
                " --xla_backend_optimization_level=0",
            }
            program = ["-m", "spectral_dist.train"]
            if mine.patch:
                program = ["-c", f"from spectral_dist import train\n{mine.patch}{_START}"]
            files = [self.folder / f"{mark}.{index}.{kind}" for kind in ("out", "err")]
            with files[0].open("wb") as out, files[1].open("wb") as err:
                process = start_warm(
                    [sys.executable, *program, *SMALL, *data, *flags, *mine.flags],
                    cwd=mine.folder or self.folder,
                    env=os.environ
                    | environment
                    | (place if processes > 1 else {})
                    | dict(mine.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                )
            ranks.append(Rank(process, *files))
        self.runs.append(Run(ranks, mark, port))
        return self.runs[-1]

    def run(self, *flags: str, processes: int = 1, devices: int = 1) -> Run:
        """Start a run and wait for its end, which must be a good one."""
        run = self.start(*flags, processes=processes, devices=devices)
        codes = run.wait()
        assert codes == [0] * len(codes), run.told()
        return run

    def run_folder(self, name: str) -> Path:
        return self.folder / "checkpoints" / name


@contextlib.contextmanager
def local_runs(folder: Path) -> Iterator[Local]:
    """Give a folder to run in; nothing of its runs is left behind."""
    write_text(folder / "short.txt", documents=200, words=25)
    write_text(folder / "long.txt", documents=30, words=150)
    local = Local(folder)
    try:
        yield local
    finally:
        for run in local.runs:
            run.kill()


def losses(folder: Path) -> dict[int, float]:
    """Return the loss of each step by metrics.jsonl, in which a full disk may have cut lines."""
    records = read_metrics(folder / "metrics.jsonl")
    return {r.step: r.metrics["train/loss"] for r in records if "train/loss" in r.metrics}


def stored(folder: Path, step: int) -> TrainState:
    """Read a checkpoint of any mesh onto one device."""
    config = load_config(["--config", str(folder / "config.yaml"), "--mesh", "1x1x1"])
    abstract = abstract_state(config, make_mesh((1, 1, 1), jax.devices()[:1]))
    checkpoints = Checkpoints(folder, keep=9, warn=pytest.fail)
    state, _ = checkpoints.restore(abstract, step)
    checkpoints.close()
    return state


def bits(folder: Path, step: int) -> list[bytes]:
    """Return the bytes of every array of a checkpoint."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(stored(folder, step))]
