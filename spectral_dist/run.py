"""A whole run, from settings to a trained model.

Read `run` and `train_run` first: they are the flow on one page, and data goes down that page only.
What a resumed run may change is in `training/resume`.
"""

import contextlib
import dataclasses
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from spectral_dist.cluster.group import Processes
from spectral_dist.cluster.signals import StopSignal, exit_code
from spectral_dist.cluster.start import start_processes
from spectral_dist.command_line import UNSAVED
from spectral_dist.config import AUTO_MESH, Config, from_flat, resolve
from spectral_dist.data.mixture import Batch, TrainRows, token_batches
from spectral_dist.data.sample import build_sample
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.data.tokens import TokenFile, prepare
from spectral_dist.data.weights import normalise_weights
from spectral_dist.mesh import make_mesh
from spectral_dist.model.flops import flops_per_token
from spectral_dist.model.sampling import sample
from spectral_dist.outputs import Output
from spectral_dist.outputs.console import Console
from spectral_dist.outputs.jsonl import MetricsFile
from spectral_dist.outputs.report import write_report
from spectral_dist.outputs.run_folder import code_version, locked, write_run_folder
from spectral_dist.outputs.wandb import WandbMirror
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.evaluation import Evaluation, Interrupted
from spectral_dist.training.failures import explain
from spectral_dist.training.loop import Progress, train
from spectral_dist.training.metrics import Record, Throughput, memory_bytes, mfu
from spectral_dist.training.resume import describe, resume
from spectral_dist.training.state import TrainState, abstract_state, init_state, model_spec
from spectral_dist.training.step import batch_sharding, make_train_step

SAMPLE_FOLDER = Path("data/sample")
SAMPLE_BYTES = 400


def run(config: Config, argv: Sequence[str], stop: StopSignal) -> int:
    """Train, as one process or as one of several.

    Args:
      config: the settings, checked.
      argv: the command line, for the notes of the run.
      stop: the signals of this process.

    Returns:
      The exit code.

    Raises:
      ValueError: for what a user can cause: what was asked and the rule it breaks.
      Ending: where another process is lost, or a signal leaves nothing to save.
    """
    with start_processes(stop, config.run.start_timeout, config.run.hang_timeout) as processes:
        processes.agree("settings", config.flat())
        processes.agree("version", code_version())
        try:
            return train_run(config, argv, stop, processes)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            raise explain(error, config) from error


def train_run(config: Config, argv: Sequence[str], stop: StopSignal, processes: Processes) -> int:
    """Train, in every process of a run alike; return the exit code."""
    console = Console(config.run.steps, enabled=processes.lead)
    config = settle_mesh(config, stop, processes, console.note)
    mesh = make_mesh(config.mesh.shape)
    config, files = open_sources(config, console.note, processes)
    folder = Path(config.run.checkpoint_dir) / config.run.run_name

    with jax.set_mesh(mesh), contextlib.ExitStack() as closing:
        if processes.lead:
            closing.enter_context(locked(folder, config, console.note))
        processes.agree("folder", {})
        checkpoints = Checkpoints(folder, keep=config.run.keep, warn=console.warn)
        closing.callback(checkpoints.close)
        abstract = abstract_state(config, mesh)
        with stop.interruptible("reading the checkpoint"):
            processes.enter("reading the checkpoint")
            restored = resume(checkpoints, abstract, config, files, console.note)
            write_run_folder(folder, config, argv, enabled=processes.lead)
            state, step, row = restored or (init_state(config, mesh), 0, 0)
        with stop.interruptible("compiling"):
            processes.enter("compiling", waits=False)
            train_step = compile_step(config, mesh, abstract, step, console.note)
        batches = open_batches(config, files, mesh, step, row)
        # A run that is asked to stop ends like one that is through: with the last step's figures.
        batches = itertools.takewhile(lambda batch: not processes.should_stop(), batches)
        evaluation = Evaluation(
            config, files, mesh, report=console.note, should_stop=processes.should_stop
        )

        outputs: list[Output] = [console]
        if processes.lead:
            outputs.append(MetricsFile(folder / "metrics.jsonl", step, warn=console.warn))
            outputs.append(WandbMirror(config, folder, resume=step > 0))
        for output in outputs:
            closing.callback(output.close)
        console.start(step)
        processes.enter("training")

        milestones = Milestones(config, files, checkpoints, evaluation, outputs, (step, row))
        progress = Progress(step, state, None)
        for progress in train(train_step, state, batches, config, milestones.throughput):
            milestones.reach(progress)
        milestones.finish(progress)
        checkpoints.close()
        console.close()
        stopped = stop.received if processes.should_stop() else None
        if stopped is None and processes.lead:
            console.show_tables(milestones.measured)
            if processes.count == 1:
                show_sample(config, files, progress, console)
            show_next_steps(config, folder, console)
        return say_end(stopped, progress.step, checkpoints, console)


def settle_mesh(
    config: Config, stop: StopSignal, processes: Processes, report: Callable[[str], None]
) -> Config:
    """Return the settings with a mesh for the attached devices where it is `auto`: the lead's."""
    if config.mesh.mesh != AUTO_MESH:
        return config
    from spectral_dist.planning.choice import attached, choose_mesh  # nobody else pays for it

    def tell(text: str) -> None:
        report(text)
        processes.move()

    cluster = attached()
    with stop.interruptible("choosing the mesh"):
        chosen = processes.from_lead("mesh", lambda: choose_mesh(config, cluster, tell).flat())
    return resolve(from_flat(chosen))


def open_sources(
    config: Config, report: Callable[[str], None], processes: Processes
) -> tuple[Config, list[TokenFile]]:
    """Return the settings with their sources and normalised weights, and the sources prepared."""

    def tell(text: str) -> None:
        report(text)
        processes.move()

    processes.enter("preparing text")
    data = config.data
    if not data.data_paths:
        paths = build_sample(SAMPLE_FOLDER, report=tell)
        data = dataclasses.replace(data, data_paths=tuple(map(str, paths)))
    weights, message = normalise_weights(data.data_weights, data.data_paths)
    if message:
        report(message)
    files = prepare(
        data.data_paths,
        validation_fraction=data.validation_fraction,
        min_tokens=data.seq_len + 1,
        report=tell,
    )
    processes.move()
    data = dataclasses.replace(data, data_weights=weights)
    sources = {f.name: f"{f.sha256}, held out from token {f.split}" for f in files}
    processes.agree("text", sources)
    return dataclasses.replace(config, data=data), files


def open_batches(
    config: Config, files: list[TokenFile], mesh: Mesh, step: int, row: int
) -> Iterator[Batch]:
    """Return the batches of the steps that are left, made ready ahead."""
    data, run = config.data, config.run
    return token_batches(
        TrainRows(files, data.data_weights, data.seq_len, run.seed),
        accum_steps=data.accum_steps,
        batch_size=data.batch_size,
        sharding=batch_sharding(config, mesh),
        start_step=step,
        start_row=row,
        steps=run.steps,
        prefetch_steps=data.prefetch_steps,
    )


def compile_step(
    config: Config, mesh: Mesh, abstract: TrainState, step: int, report: Callable[[str], None]
) -> Any:
    """Compile the training step, and say how long that took and what it needs.

    Returns None where nothing is left to train.
    """
    if step >= config.run.steps:
        report(f"complete at step {step}: nothing is left to train; more --steps would go on")
        return None
    started = time.perf_counter()
    data = config.data
    shape = (data.accum_steps, data.batch_size, data.seq_len + 1)
    dtype = find_tokenizer(config).dtype
    tokens = jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(config, mesh))
    compiled = make_train_step(config, mesh).lower(abstract, tokens).compile()
    seconds = time.perf_counter() - started
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    memory = compiled.memory_analysis()
    need = ""
    if memory is not None:
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        need = f", {total / 2**30:.2f} GiB a device"
    report(f"{count:,} parameters; training step compiled in {seconds:.1f} s{need}")
    return compiled


class Milestones:
    """What happens between two steps: records go out, evaluations and checkpoints fall due."""

    def __init__(
        self,
        config: Config,
        files: list[TokenFile],
        checkpoints: Checkpoints,
        evaluation: Evaluation,
        outputs: Sequence[Output],
        first: tuple[int, int],
    ) -> None:
        """Listen to a run.

        Args:
          config: the settings.
          files: the sources.
          checkpoints: where states are saved.
          evaluation: what is measured on held-out text.
          outputs: who is told.
          first: the step and the row that this start of the run begins at.
        """
        self._config, self._files, self._first = config, files, first
        self._checkpoints, self._evaluation, self._outputs = checkpoints, evaluation, outputs
        self._flops = flops_per_token(model_spec(config), config.data.seq_len)
        self._told_wait = 0.0
        self.throughput = Throughput()
        self.measured: dict[str, float] = {}

    def reach(self, progress: Progress) -> None:
        """Do what is due at a step; the run's last one is `finish`'s."""
        run, step = self._config.run, progress.step
        if progress.record is not None:
            self._write(self._completed(progress.record))
        if step == run.steps:
            return
        validation = None
        if step % self._config.evaluation.eval_every == 0:
            validation = self.evaluate(progress)
        # A run that diverges must not push its healthy checkpoints out.
        if step % run.save_every == 0 and int(progress.state.bad_in_row) == 0:
            self._save(progress, validation)

    def finish(self, progress: Progress) -> None:
        """Evaluate, as far as the run was not asked to stop, and save after the last step."""
        self._save(progress, self.evaluate(progress))

    def evaluate(self, progress: Progress) -> float | None:
        """Measure on held-out text; return bits per byte, the clock of training stopped.

        None where the run is asked to stop before all is measured.
        """
        self.throughput.pause()
        params = progress.state.params
        try:
            found = self._evaluation.by_source(params) | self._evaluation.extrapolation(params)
        except Interrupted:
            return None
        finally:
            self.throughput.resume()
        self.measured = found
        self._write(Record(progress.step, self.measured))
        return self.measured.get("val/bits_per_byte")

    def _save(self, progress: Progress, validation: float | None) -> None:
        data, (step, row) = self._config.data, self._first
        next_row = row + (progress.step - step) * data.batch_size * data.accum_steps
        description = describe(self._config, self._files, next_row)
        self._checkpoints.save(progress.step, progress.state, description, validation=validation)
        waited = self._checkpoints.wait_seconds
        self.throughput.add(0, 0, checkpoint_wait=waited - self._told_wait)
        self._told_wait = waited

    def _completed(self, record: Record) -> Record:
        """Add the figures that need the devices."""
        metrics, devices = dict(record.metrics), jax.devices()
        speed = metrics.get("perf/tokens_per_second")
        dtype = self._config.model.compute_dtype
        if speed is not None:
            share = mfu(speed, self._flops, devices[0].device_kind, len(devices), dtype)
            metrics |= {} if share is None else {"perf/mfu": share}
        peak = memory_bytes(jax.local_devices())
        metrics |= {} if peak is None else {"perf/memory_bytes": peak}
        return Record(record.step, metrics)

    def _write(self, record: Record) -> None:
        for output in self._outputs:
            output.write(record)


def show_sample(
    config: Config, files: list[TokenFile], progress: Progress, console: Console
) -> None:
    """Print what the model writes after the beginning of a held-out text."""
    shards, tokenizer = math.prod(config.mesh.shape[:2]), find_tokenizer(config)
    prompt = bytes(files[0].validation[:64]).split(b"\0")[0]
    prompt = prompt.decode("utf-8", "ignore").encode()
    if "attention" not in config.model.pattern:
        text = sample(
            model_spec(config),
            progress.state.params,
            prompt,
            end=tokenizer.end,
            max_new_tokens=SAMPLE_BYTES,
            temperature=0.8,
            key=jax.random.key(config.run.seed),
            copies=shards,
        )
        console.show_sample(prompt, bytes(text))


def show_next_steps(config: Config, folder: Path, console: Console) -> None:
    """Say where things are and what to try."""
    name = config.run.run_name
    console.note(f"results are in {folder}")
    try:
        console.note(f"curves are in {write_report(folder)}")
    except (OSError, ValueError) as error:  # a full disk, say: the training is done all the same
        console.warn(f"the curves could not be drawn: {error}")
    console.note("next, for example:")
    console.note(f'  python -m spectral_dist.generate --run_name {name} --prompt "Bir "')
    console.note(f"  python -m spectral_dist.evaluate --run_name {name} --lengths 1,2,4,8")
    console.note(
        "  python -m spectral_dist.train --config configs/level1.yaml --data_paths YOUR.txt"
    )


def say_end(
    stop: signal.Signals | None, step: int, checkpoints: Checkpoints, console: Console
) -> int:
    """Say what was not saved and what a signal stopped; return the exit code."""
    folder, there = checkpoints.folder, checkpoints.steps()
    saved = step in there
    if stop is not None:
        what = f"saved step {step}" if saved else f"step {step} could NOT be saved"
        console.note(f"stopped by {stop.name}: {what} in {folder}; the same command continues")
    if checkpoints.failed_saves:
        text = f"{checkpoints.failed_saves} checkpoints could not be saved"
        if not saved:
            start = f"step {there[-1]}" if there else "the beginning"
            text += f", step {step} among them: the same command goes on from {start}"
        console.warn(f"{text}; see above")
    if stop is not None:
        return exit_code(stop)
    return 0 if saved else UNSAVED
