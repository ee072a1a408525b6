"""The parts of a run, each made by one function: settings, mesh, datasets, batches, compiled step.

`trainer.Trainer` calls them in the order in which they stand here.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Generator, Mapping
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
from spectral_dist.flags import configs_folder
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
from spectral_dist.training.state import TrainState
from spectral_dist.training.step import batch_sharding, make_train_step

SAMPLE_FOLDER = Path("data/sample")


def make_config(config: Config | str | PathLike[str] | None, settings: Mapping[str, Any]) -> Config:
    """Return settings from a YAML file, or made elsewhere, some of them overridden by name.

    As on the command line, the demo's file stands in where no file and no text is named.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    layer = {name: _plain(value) for name, value in settings.items()}
    if isinstance(config, Config):
        base = config.flat()
    elif config is None and not {"data_paths", "datasets"}.isdisjoint(layer):
        base = {}
    else:
        base = read_yaml(Path(configs_folder() / "demo.yaml" if config is None else config))
    return resolve(from_layers([base, layer]))


def _plain(value: Any) -> Any:
    """Return a setting as YAML would hold it: paths as text, one or many of them."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return os.fspath(value) if isinstance(value, PathLike) else value


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


def open_datasets(
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
) -> Generator[Batch, None, None]:
    """Return the batches of the steps that are left, made ready ahead; to be closed."""
    data, run = config.data, config.run
    batches = token_batches(
        TrainSequences(files, phases_of(config, step, row), data.seq_len, run.seed),
        accum_steps=data.accum_steps,
        batch_size=data.batch_size,
        sharding=batch_sharding(config, mesh),
        start_step=step,
        start_sequence=row,
        steps=run.steps,
        prefetch_steps=data.prefetch_steps,
    )
    return cast("Generator[Batch, None, None]", batches)  # it is written with yield


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
