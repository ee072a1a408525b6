"""A whole run, from settings to a trained model.

Read `run` and `train_run` first: they are the flow on one page, and data goes down that page only.
What a resumed run may change is in `training/resume`.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.cluster.start import start_processes
from spectral_dist.data.mixture import Batch, TrainSequences, token_batches
from spectral_dist.data.phases import phases_of
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.data.tokens import TokenFile, prepare
from spectral_dist.mesh import make_mesh
from spectral_dist.outputs import Output
from spectral_dist.outputs.console import Console
from spectral_dist.outputs.jsonl import MetricsFile
from spectral_dist.outputs.run_folder import code_version, locked, write_run_folder
from spectral_dist.outputs.summary import Saved, say_end, show_next_steps, show_sample
from spectral_dist.outputs.wandb import WandbMirror
from spectral_dist.settings import (
    AUTO_MESH,
    Config,
    DatasetConfig,
    from_flat,
    normalise_weights,
    resolve,
)
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.evaluation import Evaluation
from spectral_dist.training.failures import explain
from spectral_dist.training.loop import Progress, train
from spectral_dist.training.milestones import Milestones
from spectral_dist.training.resume import resume
from spectral_dist.training.state import TrainState, abstract_state, init_state
from spectral_dist.training.step import batch_sharding, make_train_step

SAMPLE_FOLDER = Path("data/sample")


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
    console = Console(config.run.steps, enabled=processes.is_coordinator)
    config = settle_mesh(config, stop, processes, console.note)
    mesh = make_mesh(config.mesh.shape)
    config, files = open_sources(config, console.note, processes)
    folder = Path(config.run.checkpoint_dir) / config.run.run_name

    with jax.set_mesh(mesh), contextlib.ExitStack() as closing:
        if processes.is_coordinator:
            closing.enter_context(locked(folder, config, console.note))
        processes.agree("folder", {})
        checkpoints = Checkpoints(folder, keep=config.run.keep, warn=console.warn)
        closing.callback(checkpoints.close)
        abstract = abstract_state(config, mesh)
        with stop.interruptible("reading the checkpoint"):
            processes.enter("reading the checkpoint")
            restored = resume(checkpoints, abstract, config, files, console.note)
            write_run_folder(folder, config, argv, enabled=processes.is_coordinator)
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
        if processes.is_coordinator:
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
        if stopped is None and processes.is_coordinator:
            console.show_tables(milestones.measured)
            if processes.count == 1:
                show_sample(config, files, progress.state.params, console)
            show_next_steps(config, folder, console)
        saved = Saved(checkpoints.folder, checkpoints.steps(), checkpoints.failed_saves)
        return say_end(stopped, progress.step, saved, console)


def settle_mesh(
    config: Config, stop: StopSignal, processes: Processes, report: Callable[[str], None]
) -> Config:
    """Return the settings with a mesh for the attached devices where it is `auto`: process 0's."""
    if config.mesh.mesh != AUTO_MESH:
        return config
    from spectral_dist.planning.search.choice import (  # nobody else pays for it
        attached,
        choose_mesh,
    )

    def tell(text: str) -> None:
        report(text)
        processes.note_progress()

    cluster = attached()
    with stop.interruptible("choosing the mesh"):
        chosen = processes.from_coordinator(
            "mesh", lambda: choose_mesh(config, cluster, tell).flat()
        )
    return resolve(from_flat(chosen))


def open_sources(
    config: Config, report: Callable[[str], None], processes: Processes
) -> tuple[Config, list[TokenFile]]:
    """Return the settings with their sources and normalised weights, and the sources prepared."""

    def tell(text: str) -> None:
        report(text)
        processes.note_progress()

    processes.enter("preparing text")
    if not config.datasets:
        from spectral_dist.sample_text.build import build_sample  # nobody else loads a grammar

        paths = build_sample(SAMPLE_FOLDER, report=tell)
        datasets = tuple(DatasetConfig(name=path.stem, paths=(str(path),)) for path in paths)
        config = dataclasses.replace(config, datasets=datasets)
    weights, message = normalise_weights(config.datasets)
    if message:
        report(message)
    files = prepare(
        [dataset.paths[0] for dataset in config.datasets],
        names=[str(dataset.name) for dataset in config.datasets],
        tokenizer=config.data.tokenizer,
        validation_fraction=config.data.validation_fraction,
        min_tokens=config.data.seq_len + 1,
        report=tell,
    )
    processes.note_progress()
    weighted = zip(config.datasets, weights, strict=True)
    datasets = tuple(dataclasses.replace(d, weight=weight) for d, weight in weighted)
    config = dataclasses.replace(config, datasets=datasets)
    sources = {f.name: f"{f.sha256}, held out from token {f.split}" for f in files}
    processes.agree("text", sources)
    return config, files


def open_batches(
    config: Config, files: list[TokenFile], mesh: Mesh, step: int, row: int
) -> Iterator[Batch]:
    """Return the batches of the steps that are left, made ready ahead."""
    data, run = config.data, config.run
    return token_batches(
        TrainSequences(files, phases_of(config, step, row), data.seq_len, run.seed),
        accum_steps=data.accum_steps,
        batch_size=data.batch_size,
        sharding=batch_sharding(config, mesh),
        start_step=step,
        start_sequence=row,
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
