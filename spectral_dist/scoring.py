"""A trained model scored on text: which part of it, by which settings, and the figures as a file.

`evaluate` is its command line. Read `score` first.
"""

import dataclasses
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from spectral_dist.atomic_file import write_text
from spectral_dist.data.tokens import TokenFile, prepare
from spectral_dist.inference import LoadedRun, load_run
from spectral_dist.outputs.console import Console
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.evaluation import Evaluation


def score(flags: Namespace) -> None:
    """Print, and write where it is asked for, the bits per byte of a run.

    Args:
      flags: of `evaluate.make_parser`.

    Raises:
      ValueError: names what cannot be read, or is too short for one window.
    """
    console = Console(0)
    loaded = load_run(
        flags.run_name,
        checkpoint_dir=flags.checkpoint_dir,
        checkpoint=flags.checkpoint,
        mesh=flags.mesh,
        sequence_parallel=flags.sequence_parallel == "true",
    )
    files = open_texts(loaded, flags.data_paths, console)
    config = _config(loaded.config, flags, files)
    with jax.set_mesh(loaded.mesh):
        evaluation = Evaluation(config, files, loaded.mesh, report=console.note)
        measured = evaluation.by_dataset(loaded.params) | evaluation.extrapolation(loaded.params)
    if not measured:
        raise ValueError(
            f"data_paths={','.join(str(f.path) for f in files)}: no text is as long as one window"
            f" of {config.data.seq_len + 1} tokens"
        )
    console.note(f"{flags.run_name} at step {loaded.step}, windows of {config.data.seq_len} tokens")
    console.show_tables(measured)
    if flags.json:
        _write_json(Path(flags.json), loaded, flags, measured)


def open_texts(loaded: LoadedRun, data_paths: str | None, console: Console) -> list[TokenFile]:
    """Return the texts to score, each reduced to what the run did not train on."""
    data = loaded.config.data
    datasets = loaded.config.datasets
    own = [dataset.paths[0] for dataset in datasets]
    asked = [path.strip() for path in (data_paths or "").split(",")]
    # As in training: blanks around a comma and one at the end are no part of a path.
    paths = [path for path in asked if path] if data_paths is not None else own
    if not paths:
        raise ValueError(f"data_paths={data_paths!r}: must be files joined by commas")
    files = prepare(
        paths,
        names=None if data_paths is not None else [str(dataset.name) for dataset in datasets],
        tokenizer=data.tokenizer,
        validation_fraction=data.validation_fraction,
        min_tokens=1,
        report=console.note,
    )
    trained_on = {stored["sha256"]: stored["split"] for stored in loaded.description["datasets"]}
    return [dataclasses.replace(file, split=trained_on.get(file.sha256, 0)) for file in files]


def _config(config: Config, flags: Namespace, files: Sequence[TokenFile]) -> Config:
    """Return the run's settings with what this evaluation asks for in their place."""
    wanted: dict[str, Any] = {"batch_size": flags.batch_size}
    if flags.lengths is not None:
        wanted["eval_lengths"] = flags.lengths
    if flags.windows is not None:
        wanted |= {"eval_windows": flags.windows, "extrapolation_windows": flags.windows}
    datasets = [{"name": f.name, "paths": [str(f.path)], "weight": 1 / len(files)} for f in files]
    wanted |= {"mesh": flags.mesh, "sequence_parallel": flags.sequence_parallel}
    wanted |= {"datasets": datasets, "phases": []}
    return resolve(from_flat(config.flat() | wanted))


def _write_json(
    path: Path, loaded: LoadedRun, flags: Namespace, measured: dict[str, float]
) -> None:
    found = {
        "run_name": flags.run_name,
        "step": loaded.step,
        "seq_len": loaded.config.data.seq_len,
        "metrics": measured,
    }
    try:
        write_text(path, json.dumps(found, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"json={str(path)!r}: cannot be written: {error.strerror}") from error
