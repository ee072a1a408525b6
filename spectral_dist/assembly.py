"""The parts of a run, each made by one function: settings, mesh, datasets, batches, compiled step.

`trainer.Trainer` calls these functions in the order of this file.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.data.mixture import Batch, TrainSequences, token_batches
from spectral_dist.data.phases import phases_of
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.data.tokens import TokenFile, prepare
from spectral_dist.data.trained import recognise
from spectral_dist.flags import configs_folder, find_config
from spectral_dist.mesh import unused_gpu
from spectral_dist.outputs import Output
from spectral_dist.outputs.console import Console
from spectral_dist.outputs.jsonl import MetricsFile, last_value
from spectral_dist.outputs.redrawn import RedrawnReport
from spectral_dist.outputs.run_folder import locked, restore
from spectral_dist.outputs.starts import started
from spectral_dist.outputs.store import StoreMirror, fetch
from spectral_dist.outputs.wandb import WandbMirror
from spectral_dist.settings import (
    AUTO_MESH,
    Config,
    DatasetConfig,
    from_flat,
    from_layers,
    normalise_weights,
    resolve,
)
from spectral_dist.settings.files import read_yaml
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.progress import HOURS
from spectral_dist.training.state import TrainState
from spectral_dist.training.step import batch_sharding, make_train_step

SAMPLE_FOLDER = Path("data/sample")
# Up to 4 passes a repeated text is worth nearly as much as a new one (Muennighoff et al. 2023,
# "Scaling Data-Constrained Language Models").
_MANY_PASSES = 4


def make_config(config: Config | str | PathLike[str] | None, settings: Mapping[str, Any]) -> Config:
    """Return the settings of a YAML file or a `Config`, with overrides by name.

    As on the command line, configs/demo.yaml is used if neither a file nor a dataset is given.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    layer = {name: _plain(value) for name, value in settings.items()}
    if isinstance(config, Config):
        base = config.flat()  # with `derived`: what an override affects is derived again
    elif config is None and not {"data_paths", "datasets"}.isdisjoint(layer):
        base = {}
    else:
        base = read_yaml(configs_folder() / "demo.yaml" if config is None else find_config(config))
    return resolve(from_layers([base, layer]))


def _plain(value: Any) -> Any:
    """Return a setting as YAML holds it: a path as text, a tuple as a list."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return os.fspath(value) if isinstance(value, PathLike) else value


def settle_mesh(
    config: Config, stop: StopSignal, processes: Processes, report: Callable[[str], None]
) -> Config:
    """Return the settings; with mesh=auto, choose a mesh for the attached devices first."""
    if config.mesh.mesh != AUTO_MESH:
        return config
    # Imported here, because only mesh=auto needs the search, which loads slowly.
    from spectral_dist.planning.search.choice import attached, choose_mesh

    def report_progress(text: str) -> None:
        report(text)
        processes.note_progress()  # the search takes minutes, and must not count as a hang

    cluster = attached()
    with stop.interruptible("choosing the mesh"):
        # Process 0 chooses for all: the search compiles for minutes, on all cores of a host.
        chosen = processes.from_coordinator(
            "mesh", lambda: choose_mesh(config, cluster, report_progress).flat()
        )
    return resolve(from_flat(chosen))


def open_datasets(
    config: Config, report: Callable[[str], None], processes: Processes
) -> tuple[Config, list[TokenFile], list[TokenFile]]:
    """Prepare the datasets: tokenize them where needed, and normalise their weights.

    With `validation` datasets nothing of the others is held out.

    Args:
      config: without datasets, the built-in text is used.
      report: called with one line at a time about what is done.
      processes: of the run; they check that all of them read the same text.

    Returns:
      The settings with every dataset and its weight; the token files in the same order; and those
      whose held-out part is evaluated, which are the same ones if there are no `validation`
      datasets.

    Raises:
      ValueError: names the file and what is wrong with it, in one line.
    """

    def report_progress(text: str) -> None:
        report(text)
        processes.note_progress()  # text of many GB takes minutes, and must not count as a hang

    processes.enter("preparing text")
    if not config.datasets:
        # Imported here, so that a run on the user's own text loads no grammar.
        from spectral_dist.sample_text.build import build_sample

        paths = build_sample(SAMPLE_FOLDER, report=report_progress)
        datasets = tuple(DatasetConfig(name=path.stem, paths=(str(path),)) for path in paths)
        config = dataclasses.replace(config, datasets=datasets)
    weights, message = normalise_weights(config.datasets)
    if message:
        report(message)
    opened = partial(
        prepare,
        tokenizer=config.data.tokenizer,
        min_tokens=config.data.seq_len + 1,  # the inputs and the targets, shifted by one
        allow_replaced=config.data.allow_replaced,
        cache=config.data.data_cache,
        report=report_progress,
    )
    share = 0.0 if config.validation else config.data.validation_fraction
    files = held_out = opened(config.datasets, validation_fraction=share)
    if config.validation:
        held_out = opened(config.validation, validation_fraction=1.0)
        check_apart(files, held_out, report)
    processes.note_progress()
    weighted = zip(config.datasets, weights, strict=True)
    datasets = tuple(dataclasses.replace(d, weight=weight) for d, weight in weighted)
    config = dataclasses.replace(config, datasets=datasets)
    # Hosts with another copy of a file would train on other sequences without any other error.
    facts = {f.name: f"{f.sha256}, held out from token {f.split}" for f in files}
    facts |= {f"validation.{f.name}": f.sha256 for f in held_out if config.validation}
    facts["tokenizer"] = find_tokenizer(config).fingerprint  # its path may hold another file there
    processes.agree("text", facts)
    return config, files, held_out


def check_apart(
    files: Sequence[TokenFile], held_out: Sequence[TokenFile], report: Callable[[str], None]
) -> None:
    """Warn of validation text that is trained on, as far as a sample of documents shows it.

    Raises:
      ValueError: if a validation dataset is one of those that are trained on.
    """
    trained = [{"split": file.split, "sketch": file.sketch} for file in files]
    names = {file.sha256: file.name for file in files}
    for file in held_out:
        if file.sha256 in names:
            raise ValueError(
                f"validation: {file.name} is the same text as the dataset {names[file.sha256]},"
                " which is trained on"
            )
        overlap = recognise(file.tokens, trained, file.tokenizer)
        if overlap.documents:
            report(
                f"warning: validation {file.name} holds {overlap.documents} of"
                f" {overlap.sampled} documents sampled from what is trained on: its figure is in"
                " part one of training"
            )


def open_batches(
    config: Config,
    files: list[TokenFile],
    mesh: Mesh,
    step: int,
    sequence: int,
    report: Callable[[str], None],
) -> Generator[Batch, None, None]:
    """Return the batches of the remaining steps, prefetched; the caller closes the generator.

    Says how often the run goes through each dataset, and warns of text that comes very often.

    Args:
      config: the settings, complete.
      files: the datasets, in the order of the settings.
      mesh: the devices.
      step: completed steps.
      sequence: index of the first sequence that no step has seen.
      report: takes one line.
    """
    data, run = config.data, config.run
    sequences = TrainSequences(files, phases_of(config, step, sequence), data.seq_len, run.seed)
    last = sequence + (run.steps - step) * data.batch_size * data.accum_steps
    passes = sequences.passes(last)
    told = ", ".join(f"{name} {count:.3g}" for name, count in passes.items())
    report(f"passes over each dataset by step {run.steps:,}: {told}")
    often = [name for name, count in passes.items() if count > _MANY_PASSES]
    if often:
        report(
            f"warning: more than {_MANY_PASSES} passes over {', '.join(often)}: a text that is"
            " repeated so often is worth less with each pass"
        )
    batches = token_batches(
        sequences,
        accum_steps=data.accum_steps,
        batch_size=data.batch_size,
        sharding=batch_sharding(config, mesh),
        start_step=step,
        start_sequence=sequence,
        steps=run.steps,
        prefetch_steps=data.prefetch_steps,
    )
    return cast("Generator[Batch, None, None]", batches)  # a generator function


def open_folder(
    closing: contextlib.ExitStack,
    config: Config,
    folder: Path,
    argv: Sequence[str],
    processes: Processes,
    console: Console,
) -> tuple[Checkpoints, Callable[[], None]]:
    """Lock the run folder, fetch what the run's store has, and look at the checkpoints.

    Args:
      closing: closes all of it, in the right order.
      config: the settings.
      folder: the run folder.
      argv: the command line, for what is written again.
      processes: the processes of the run.
      console: where to print.

    Returns:
      The checkpoints; and what writes the folder's files again where they were deleted.

    Raises:
      Ending: if the run's store cannot be reached and may hold what the folder does not.
      ValueError: if another run uses the folder, or it cannot be written.
    """
    processes.enter("reading the store")
    if processes.is_coordinator:
        lock = closing.enter_context(locked(folder, config, console.note))
        fetch(config, folder, console.note, processes.note_progress)
        # Before the checkpoints: closed after them, it finds the last one committed.
        store = StoreMirror(config, folder, report=console.note, warn=console.warn)
        closing.callback(store.close)
        on_loss = partial(restore, folder, config, argv, lock)
    else:
        on_loss = _nothing
    processes.agree("folder", {})  # nobody reads a checkpoint before the folder is locked
    checkpoints = Checkpoints(
        folder,
        keep=config.run.keep,
        keep_every=config.run.keep_every,
        warn=console.warn,
        report=console.note,
        processes=processes,
    )
    closing.callback(checkpoints.close)
    return checkpoints, on_loss


def _nothing() -> None:
    """Stand for what process 0 alone does."""


def compile_step(
    config: Config, mesh: Mesh, abstract: TrainState, step: int, report: Callable[[str], None]
) -> Any:
    """Compile the training step; report its compile time and its memory on each device.

    Returns:
      The compiled step, or None if no step is left to train.
    """
    if step >= config.run.steps:
        report(
            f"complete at step {step}: nothing is left to train; a larger --steps continues the run"
        )
        return None
    # Compiled ahead of time, from shapes alone: memory is known before the first batch is there,
    # and a batch of another shape or dtype is an error instead of a second compilation.
    started = time.perf_counter()
    report("compiling the training step ...")
    data = config.data
    shape = (data.accum_steps, data.batch_size, data.seq_len + 1)
    dtype = find_tokenizer(config).dtype
    tokens = jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(config, mesh))
    compiled = make_train_step(config, mesh).lower(abstract, tokens).compile()
    seconds = time.perf_counter() - started
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    memory = compiled.memory_analysis()  # of one device; None where the backend does not say
    need = ""
    if memory is not None:
        # The outputs need no memory of their own: they take over the donated arguments.
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        need = f", {total / 2**30:.2f} GiB a device"
    kind = mesh.devices.flat[0].device_kind
    where = f"{mesh.size} x {kind}"
    if remark := unused_gpu(kind):
        report(remark)
    report(f"{count:,} parameters on {where}; training step compiled in {seconds:.1f} s{need}")
    return compiled


def open_record(
    closing: contextlib.ExitStack,
    config: Config,
    folder: Path,
    first: int,
    facts: Mapping[str, Any],
    step: Callable[[], int],
    on_loss: Callable[[], None],
    console: Console,
) -> tuple[list[Output], float]:
    """Open what is kept of a run in its folder: starts, metrics, report, and the mirror to W&B.

    Args:
      closing: closes all of it, in the right order.
      config: the settings.
      folder: the run folder.
      first: completed steps at this start.
      facts: of this start, for starts.jsonl.
      step: returns the completed steps.
      on_loss: called when the folder was deleted meanwhile.
      console: where to print.

    Returns:
      The outputs, and the hours of training before this start.

    Raises:
      ValueError: if too many starts in a row have failed from this step.
    """
    path = folder / "metrics.jsonl"
    report = RedrawnReport(folder, console.warn)
    closing.callback(report.close)  # last of all: it shows how this start ended
    closing.enter_context(started(config, folder, first, facts, step, console.warn))
    # In this order: the mirror starts with the file as the resumed run has trimmed it.
    metrics = MetricsFile(path, first, warn=console.warn, on_loss=on_loss)
    closing.callback(metrics.close)
    mirror = WandbMirror(config, folder, resume=first > 0, report=console.note)
    closing.callback(mirror.close)
    return [metrics, report], last_value(path, HOURS)
