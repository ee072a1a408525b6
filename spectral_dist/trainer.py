"""A training run, from settings to a trained model: the whole flow on one page.

`Trainer.__init__` sets the run up, in the order of the data; `Trainer._advance` is one step of it.
Notebooks import `Trainer` from `api`; `python -m spectral_dist.train` uses it through `run`, which
adds signals, several processes and exit codes. What a resumed run may change is in
`training/resume`.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from spectral_dist.assembly import (
    compile_step,
    make_config,
    open_batches,
    open_datasets,
    settle_mesh,
)
from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.data.mixture import Batch
from spectral_dist.inference import Generator, LoadedRun
from spectral_dist.mesh import make_mesh
from spectral_dist.outputs import Output
from spectral_dist.outputs.console import Console
from spectral_dist.outputs.jsonl import MetricsFile
from spectral_dist.outputs.run_folder import locked, write_run_folder
from spectral_dist.outputs.summary import Saved
from spectral_dist.outputs.wandb import WandbMirror
from spectral_dist.params import Params
from spectral_dist.settings import Config
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.evaluation import Evaluation
from spectral_dist.training.failures import explain
from spectral_dist.training.loop import Progress, train
from spectral_dist.training.metrics import Record
from spectral_dist.training.milestones import Figure, Milestones
from spectral_dist.training.resume import resume
from spectral_dist.training.state import abstract_state, init_state


class Trainer:
    """One run: iterate over it to train, and get the record of every step that is logged.

    A run that has checkpoints goes on from the last one. Leaving the loop keeps everything ready:
    iterating again goes on with the next step. As a context manager it saves and cleans up at the
    end; after an error it only cleans up. Not to be used by two threads at once, `stop` excepted.

    Attributes:
      config: the settings, complete.
      folder: of the run: config.yaml, metrics.jsonl, checkpoints.
      mesh: the devices.
      files: the datasets.
      console: prints the run where `verbose` was asked for, and nothing otherwise.
    """

    def __init__(
        self,
        config: Config | str | PathLike[str] | None = None,
        *,
        devices: Sequence[Any] | None = None,
        figures: Sequence[Figure] = (),
        verbose: bool = False,
        argv: Sequence[str] = (),
        stop: StopSignal | None = None,
        processes: Processes | None = None,
        **settings: Any,
    ) -> None:
        """Prepare the text, restore or initialise the state, and compile the training step.

        Args:
          config: a YAML file of settings, or settings made elsewhere. Without it and without
            `data_paths` it is the demo's file.
          devices: to train on, as many as `mesh` says; all that are attached by default.
          figures: functions of your own whose figures join every record; see `Figure`.
          verbose: whether to print what the command line prints.
          argv: the command line, for environment.json.
          stop: the signals of this process, where it listens to them.
          processes: those of the run, where there are several.
          **settings: any setting by the name of its flag; they override the file.

        Raises:
          ValueError: names the setting, its value and the rule it breaks; or says what is wrong
            with the text, the devices, the folder or the checkpoint.
        """
        self._broken = self._closed = False
        self._stop = stop or StopSignal()
        self._processes = processes or Processes(self._stop)
        config = make_config(config, settings)
        with contextlib.ExitStack() as closing:
            self.console = console = Console(config.run.steps, enabled=verbose)
            closing.callback(console.close)
            with self._explaining(config):
                config = settle_mesh(config, self._stop, self._processes, console.note)
                self.mesh = make_mesh(config.mesh.shape, devices)
                config, self.files = open_datasets(config, console.note, self._processes)
                self.config = config
                self.folder = Path(config.run.checkpoint_dir) / config.run.run_name
                with jax.set_mesh(self.mesh):
                    self._set_up(closing, figures, argv)
            self._closing = closing.pop_all()

    def _set_up(
        self, closing: contextlib.ExitStack, figures: Sequence[Figure], argv: Sequence[str]
    ) -> None:
        """Open the run folder, make the state and everything that the steps need."""
        config, mesh, console = self.config, self.mesh, self.console
        processes, stop = self._processes, self._stop
        if processes.is_coordinator:
            closing.enter_context(locked(self.folder, config, console.note))
        processes.agree("folder", {})
        self._checkpoints = Checkpoints(self.folder, keep=config.run.keep, warn=console.warn)
        closing.callback(self._checkpoints.close)
        abstract = abstract_state(config, mesh)
        with stop.interruptible("reading the checkpoint"):
            processes.enter("reading the checkpoint")
            restored = resume(self._checkpoints, abstract, config, self.files, console.note)
            write_run_folder(self.folder, config, argv, enabled=processes.is_coordinator)
            state, step, row = restored or (init_state(config, mesh), 0, 0)
        with stop.interruptible("compiling"):
            processes.enter("compiling", waits=False)
            self._train_step = compile_step(config, mesh, abstract, step, console.note)
        self._batches = open_batches(config, self.files, mesh, step, row)
        closing.callback(self._batches.close)
        self._evaluation = Evaluation(
            config, self.files, mesh, report=console.note, should_stop=processes.should_stop
        )

        self._fresh = _Fresh()
        outputs: list[Output] = [self._fresh, console]
        if processes.is_coordinator:
            metrics = MetricsFile(self.folder / "metrics.jsonl", step, warn=console.warn)
            closing.callback(metrics.close)
            outputs.append(metrics)
            mirror = WandbMirror(config, self.folder, resume=step > 0, report=console.note)
            closing.callback(mirror.close)
        console.start(step)
        processes.enter("training")
        self._milestones = Milestones(
            config, self.files, self._checkpoints, self._evaluation, outputs, (step, row), figures
        )
        self._throughput = self._milestones.throughput
        self._throughput.pause()  # until somebody iterates
        self._progress = Progress(step, state, None)
        self._running: Iterator[Progress] | None = None  # of the loop, where one is under way
        self._until = config.run.steps
        self._asked = threading.Event()  # by `stop`

    # ---- training ----

    @property
    def step(self) -> int:
        """Completed steps; a step skipped because it was not finite counts."""
        return self._progress.step

    @property
    def params(self) -> Params:
        """The parameters, a nested dict of float32 arrays on the mesh; gone with the next step."""
        return self._progress.state.params

    def __iter__(self) -> Iterator[Record]:
        """Train to the end of the run; yield each record when it is known.

        The record of a step comes one step later, so that the devices never wait for the host.
        The last step is evaluated and saved. What the caller does with a record counts as time of
        the step.

        Raises:
          ValueError: after max_bad_steps non-finite steps in a row, or where memory ran out.
        """
        with self._training(self.config.run.steps):
            while self._advance():
                yield from self._fresh.take()
            self._finish()
        yield from self._fresh.take()

    def run_until(self, step: int) -> list[Record]:
        """Train until `step` steps are completed; return the records, that of `step` included.

        Raises:
          ValueError: if `step` is beyond the run, and as iterating does.
        """
        if step > self.config.run.steps:
            raise ValueError(
                f"step={step}: beyond the run's steps={self.config.run.steps}; a Trainer with more"
                " steps goes on from the last checkpoint"
            )
        with self._training(step):
            while self._advance():
                pass
            if step == self.config.run.steps:
                self._finish()
        return list(self._fresh.take())

    def stop(self) -> None:
        """Ask for an end after the step under way, from any thread; that step is saved.

        Iterating again goes on. With several processes, all must ask before the same step.
        """
        self._asked.set()

    def _advance(self) -> bool:
        """Run one step and what falls due after it; False where there is none to run."""
        with self._working():
            if self._running is None:
                self._running = train(
                    self._train_step,
                    self._progress.state,
                    self._wanted(),
                    self.config,
                    self._throughput,
                )
            self._broken = True  # until the step is through: its input's buffers are given up
            progress = next(self._running, None)
            if progress is None:
                self._running, self._broken = None, False
                return False
            self._progress = progress
            self._milestones.reach(progress)
            self._broken = False
            return True

    def _wanted(self) -> Iterator[Batch]:
        """Yield batches as long as nobody asks for an end; what is left is for another loop."""
        # All processes ask `should_stop` at the same places: before each step.
        while (
            self.step < self._until
            and not self._asked.is_set()
            and not self._processes.should_stop()
            and (batch := next(self._batches, None)) is not None
        ):
            yield batch

    def _finish(self) -> None:
        """Save the last step, and evaluate it unless the run was asked to stop."""
        with self._working():
            if self._asked.is_set():
                self._milestones.save(self._progress)
            else:
                self._milestones.finish(self._progress)

    # ---- what can be asked between two steps ----

    def evaluate(self) -> dict[str, float]:
        """Return the metrics on held-out text, val/... and extrapolation/..., in bits per byte.

        They are returned only: the records hold the evaluations of the run itself.
        """
        with self._working(), self._throughput.excluded():
            return self._milestones.measure(self.params)

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 400,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> str:
        """Return what the model writes after a prompt; as `Generator.text`."""
        with self._working(), self._throughput.excluded():
            now = LoadedRun(self.config, self.params, self.step, {}, self.mesh)
            return Generator(now).text(
                prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
            )

    @property
    def measured(self) -> dict[str, float]:
        """The metrics of the run's last evaluation; empty before the first."""
        return self._milestones.measured

    def save(self) -> Saved:
        """Save the completed steps, wait until that is done, and return what is there.

        A save that fails is a warning and counted there, never an error.
        """
        with self._working():
            self._milestones.save(self._progress)
        return self.saved()

    def saved(self) -> Saved:
        """Wait for the save in flight; return what is there."""
        self._checkpoints.wait()
        there = self._checkpoints
        return Saved(there.folder, there.steps(), there.failed_saves)

    # ---- the end ----

    def close(self) -> None:
        """Save what is not saved, and release the folder. May be called more than once."""
        if not (self._closed or self._broken):
            with self._working():
                self._milestones.save_if_unsaved(self._progress)
        self._release()

    def _release(self) -> None:
        self._closed = True
        self._closing.close()

    def __enter__(self) -> "Trainer":
        """Return the trainer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; after an error nothing is saved."""
        self.close() if error is None else self._release()

    # ---- contexts ----

    @contextlib.contextmanager
    def _training(self, until: int) -> Iterator[None]:
        """Let the clock run, up to a step."""
        self._until = until
        self._asked.clear()
        self._throughput.resume()
        try:
            yield
        finally:
            self._throughput.pause()

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Use the mesh, for as long as the caller waits: no longer, or it would be set there too.

        Raises:
          ValueError: if the trainer is closed, or a step of it has failed or was interrupted.
        """
        if self._closed or self._broken:
            what = "is closed" if self._closed else "has failed"
            raise ValueError(f"this Trainer {what}; a new one goes on from the last checkpoint")
        with self._explaining(self.config), jax.set_mesh(self.mesh):
            yield

    @staticmethod
    @contextlib.contextmanager
    def _explaining(config: Config) -> Iterator[None]:
        """Turn the runtime's errors into the user's."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            raise explain(error, config) from error


class _Fresh:
    """The records that the caller has not had yet; an `Output`."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()

    def write(self, record: Record) -> None:
        self._records.append(record)

    def close(self) -> None:
        """There is nothing to finish."""

    def take(self) -> Iterator[Record]:
        """Yield each record once."""
        while self._records:
            yield self._records.popleft()
