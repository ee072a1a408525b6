"""A training run, from settings to a trained model: the whole flow on one page.

`Trainer.__init__` sets the run up, in the order of the data; `Trainer._advance` is one step of it.
Notebooks import `Trainer` from `api`. `python -m spectral_dist.train` uses it through `run`, which
adds signals, several processes and exit codes. `training/resume` says which settings a resumed run
may change.
"""

import contextlib
import threading
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
    open_folder,
    open_record,
    settle_mesh,
)
from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.compilation_cache import keep_compilations
from spectral_dist.data.mixture import Batch
from spectral_dist.inference import Generator, LoadedRun
from spectral_dist.mesh import make_mesh
from spectral_dist.outputs import Output
from spectral_dist.outputs.console import Console
from spectral_dist.outputs.run_folder import environment, write_run_folder
from spectral_dist.outputs.summary import Saved
from spectral_dist.outputs.unread import UnreadRecords
from spectral_dist.params import Params
from spectral_dist.settings import Config
from spectral_dist.training.evaluation import Evaluation
from spectral_dist.training.failures import explaining
from spectral_dist.training.hosts import HostFigures
from spectral_dist.training.init_from import first_state
from spectral_dist.training.loop import Progress, train
from spectral_dist.training.metrics import Record
from spectral_dist.training.milestones import Figure, Milestones
from spectral_dist.training.profile import profiled
from spectral_dist.training.resume import resume
from spectral_dist.training.state import abstract_state


class Trainer:
    """A training run: iterate over it to train, and get the record of every step that is logged.

    A run that has checkpoints resumes from the latest one. If you leave the loop, everything stays
    ready: iterating again continues with the next step. Used as a context manager, it saves and
    cleans up at the end of the block; after an error it only cleans up. It is not thread-safe,
    except for `stop`.

    Attributes:
      config: the settings, complete.
      folder: the run folder, with config.yaml, metrics.jsonl and the checkpoints.
      mesh: the devices.
      files: the datasets, as token files.
      held_out: the same, or those of `validation`, whose held-out part is evaluated.
      console: prints the run if `verbose` was set, and nothing otherwise.
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
        """Prepare the datasets, restore or initialise the state, and compile the training step.

        Args:
          config: the path of a YAML file, or a `Config`. If neither it nor `data_paths` is given,
            the demo's settings are used.
          devices: the devices to train on, as many as `mesh` needs; by default all attached ones.
          figures: your own functions, whose figures are added to every record; see `Figure`.
          verbose: whether to print what the command line prints.
          argv: the command line, recorded in environment.json.
          stop: the signal handlers of this process, if it has any.
          processes: the processes of the run, if there are several.
          **settings: any setting by the name of its flag; they override the file.

        Raises:
          ValueError: names the setting, its value and the rule it breaks; or says what is wrong
            with the text, the devices, the folder or the checkpoint.
        """
        self._broken = self._closed = False
        self._stop = stop or StopSignal()  # not entered, so a notebook's Ctrl-C stays its own
        self._processes = processes or Processes(self._stop)
        config = make_config(config, settings)
        # Everything opened below is closed again if a later part of the set-up fails.
        with contextlib.ExitStack() as closing:
            self.console = console = Console(config.run.steps, enabled=verbose)
            closing.callback(console.close)
            keep_compilations(config.run.compilation_cache, console.warn)
            with explaining(config):
                config = settle_mesh(config, self._stop, self._processes, console.note)
                self.mesh = make_mesh(config.mesh.shape, devices, config.mesh.axes)
                opened = open_datasets(config, console.note, self._processes)
                config, self.files, self.held_out = opened
                self.config = config
                self.folder = Path(config.run.checkpoint_dir) / config.run.run_name
                with jax.set_mesh(self.mesh):
                    self._set_up(closing, figures, argv)
            self._closing = closing.pop_all()

    def _set_up(
        self, closing: contextlib.ExitStack, figures: Sequence[Figure], argv: Sequence[str]
    ) -> None:
        """Open the run folder, make the state, the compiled step, the batches and the outputs."""
        config, mesh, console = self.config, self.mesh, self.console
        processes, stop = self._processes, self._stop
        opened = open_folder(closing, config, self.folder, argv, processes, console)
        self._checkpoints, self._restore_folder = opened
        abstract = abstract_state(config, mesh)
        with stop.interruptible("reading the checkpoint"):
            processes.enter("reading the checkpoint")
            # Before config.yaml is written: a resume that is refused leaves the folder as it was.
            restored = resume(self._checkpoints, abstract, config, self.files, console.note)
            state, step, sequence = restored or first_state(config, mesh, console.note, processes)
            write_run_folder(self.folder, config, argv, enabled=processes.is_coordinator)
        with stop.interruptible("compiling"):
            # The compiler can take minutes, in which a busy processor is the only sign of life.
            processes.enter("compiling", waits=False)
            compiled = compile_step(config, mesh, abstract, step, console.note)
        folder = self.folder / "profile" / f"process_{jax.process_index()}"
        tracing = (config.run.traced_steps, folder, step, console.note, console.warn)
        self._train_step = closing.enter_context(profiled(compiled, *tracing))
        self._batches = open_batches(config, self.files, mesh, step, sequence, console.note)
        closing.callback(self._batches.close)
        self._evaluation = Evaluation(
            config, self.held_out, mesh, report=console.note, should_stop=processes.should_stop
        )

        self._progress = Progress(step, state, None)
        outputs, hours = self._open_outputs(closing, argv)
        console.start(step)
        processes.enter("training")
        self._milestones = Milestones(
            config,
            self.files,
            self._checkpoints,
            self._evaluation,
            outputs,
            (step, sequence),
            (HostFigures(processes, console.warn), *figures),
            processes,
            hours,
        )
        self._throughput = self._milestones.throughput
        self._throughput.pause()  # until the caller iterates
        self._loop: Iterator[Progress] | None = None  # the training loop, once it has started
        self._until = config.run.steps
        self._stop_requested = threading.Event()  # set by `stop`

    def _open_outputs(
        self, closing: contextlib.ExitStack, argv: Sequence[str]
    ) -> tuple[list[Output], float]:
        """Open what receives the records; return it, and the hours trained before this start."""
        self._unread, hours = UnreadRecords(), 0.0
        outputs: list[Output] = [self._unread, self.console]
        if self._processes.is_coordinator:
            sizes = {
                "parameters": sum(x.size for x in jax.tree.leaves(self.params)),
                "train_tokens": {file.name: file.split for file in self.files},
            }
            facts = {"environment": environment(argv), **sizes}
            start = self.config, self.folder, self.step, facts
            later = lambda: self.step, self._restore_folder, self.console
            kept, hours = open_record(closing, *start, *later)
            outputs += kept
        return outputs, hours

    # ---- training ----

    @property
    def step(self) -> int:
        """Completed steps; skipped ones (not finite) count too."""
        return self._progress.step

    @property
    def params(self) -> Params:
        """The parameters, a nested dict of float32 arrays on the mesh; the next step frees them."""
        return self._progress.state.params

    def __iter__(self) -> Iterator[Record]:
        """Train to the end of the run, yielding each record of metrics as soon as it is known.

        The last step is evaluated and saved. The time that the caller spends on a record counts
        as time of the step.

        Raises:
          ValueError: after max_bad_steps non-finite steps in succession, or if memory runs out.
        """
        with self._training(self.config.run.steps):
            while self._advance():
                # A step's record comes one step later, so that the devices never wait for the host.
                yield from self._unread.take()
            self._finish()
        # Outside `_training`: the time that the caller takes now belongs to no step.
        yield from self._unread.take()

    def run_until(self, step: int) -> list[Record]:
        """Train until `step` steps are completed; return the records up to that step.

        Raises:
          ValueError: if `step` is beyond the run, and as iterating does.
        """
        if step > self.config.run.steps:
            raise ValueError(
                f"step={step}: beyond the run's steps={self.config.run.steps}; a new Trainer with"
                " more steps resumes from the latest checkpoint"
            )
        with self._training(step):
            while self._advance():
                pass
            if step == self.config.run.steps:
                self._finish()
        return list(self._unread.take())

    def stop(self) -> None:
        """Stop training after the current step, which is saved; callable from any thread.

        Iterating again continues. With several processes, call it before the same step in all.
        """
        self._stop_requested.set()

    def _advance(self) -> bool:
        """Run one step and the milestones after it; return False if no step is left to run."""
        with self._working():
            if self._loop is None:
                self._loop = train(
                    self._train_step,
                    self._progress.state,
                    self._batches_until_stop(),
                    self.config,
                    self._throughput,
                )
            # The step donates the buffers of its input: one that fails leaves no state to use.
            self._broken = True
            progress = next(self._loop, None)
            if progress is None:
                self._loop, self._broken = None, False
                return False
            self._progress = progress
            self._milestones.reach(progress)
            self._broken = False
            return True

    def _batches_until_stop(self) -> Iterator[Batch]:
        """Yield batches until a stop is requested; the rest stays for the next loop."""
        # `should_stop` is a sync point: every process must call it, before each step.
        while (
            self.step < self._until
            and not self._stop_requested.is_set()
            and not self._processes.should_stop()
            and (batch := next(self._batches, None)) is not None
        ):
            yield batch

    def _finish(self) -> None:
        """Save the last step; evaluate it too, unless `stop` was called."""
        with self._working():
            if self._stop_requested.is_set():
                self._milestones.save(self._progress)
            else:
                self._milestones.finish(self._progress)

    # ---- between two steps ----

    def evaluate(self) -> dict[str, float]:
        """Evaluate now: return val/... and extrapolation/... on held-out text, in bits per byte.

        They are not added to the records, which hold the evaluations that `eval_every` plans.
        """
        # Excluded from the throughput, or tokens per second would drop in the next record.
        with self._working(), self._milestones.untimed(self._progress):
            return self._milestones.measure(self.params)

    def generate(self, prompt: str = "", **how: Any) -> str:
        """Return the text that the model generates after a prompt; see `Generator.stream`."""
        with self._working(), self._milestones.untimed(self._progress):
            run = LoadedRun(self.config, self.params, self.step, {}, self.mesh)
            return Generator(run).text(prompt, **how)

    @property
    def measured(self) -> dict[str, float]:
        """The metrics of the run's last evaluation; empty before the first."""
        return self._milestones.measured

    def save(self) -> Saved:
        """Save a checkpoint, wait until it is written, and return what is saved.

        A save that fails is a warning, counted in the result, and never an error.
        """
        with self._working():
            self._milestones.save(self._progress)
        return self.saved()

    def saved(self) -> Saved:
        """Wait for the save in flight; return the checkpoints of the run."""
        checkpoints = self._checkpoints
        with self._processes.phase("saving a checkpoint"):
            checkpoints.wait()
        return Saved(checkpoints.folder, checkpoints.steps(), checkpoints.failed_saves)

    # ---- the end ----

    def close(self) -> None:
        """Save the last step if it is not saved, and release the folder. Safe to call again."""
        # After a failed step there is no state left that could be saved.
        if not (self._closed or self._broken):
            with self._working():
                self._milestones.save_if_unsaved(self._progress)
        self._release()

    def _release(self, error: BaseException | None = None) -> None:
        self._closed = True
        # With its own traceback, which a context manager on the stack puts back.
        trace = error.__traceback__ if error else None
        self._closing.__exit__(type(error) if error else None, error, trace)

    def __enter__(self) -> "Trainer":
        """Return the trainer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; after an error, save nothing."""
        # The error may come from a state that is wrong: the last good checkpoint stays the latest.
        self.close() if error is None else self._release(error)

    # ---- contexts ----

    @contextlib.contextmanager
    def _training(self, until: int) -> Iterator[None]:
        """Measure the throughput while the caller trains up to a step."""
        self._until = until
        self._stop_requested.clear()  # a stop of an earlier loop must not end this one
        self._throughput.resume()
        try:
            yield
        finally:
            self._throughput.pause()

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Set the mesh for one call; refuse a trainer that is closed or has failed.

        Raises:
          ValueError: if the trainer is closed, or a step of it has failed or was interrupted.
        """
        if self._closed or self._broken:
            what = "is closed" if self._closed else "has failed"
            raise ValueError(f"this Trainer {what}; a new one resumes from the latest checkpoint")
        # Never across a `yield` to the caller: the mesh would be set in the caller's own code too.
        with explaining(self.config), jax.set_mesh(self.mesh):
            yield
