"""A trained model scored on text: which part of it, by which settings, and the figures as a file.

`evaluate` is its command line. Read `score` first.
"""

import dataclasses
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jax

from spectral_dist.atomic_file import write_text
from spectral_dist.data.tokens import TokenFile, prepare
from spectral_dist.data.trained import recognise
from spectral_dist.inference import LoadedRun, load_run
from spectral_dist.outputs.console import MEANS, Console
from spectral_dist.pairs import BUILT_IN, read_pairs, score_pairs
from spectral_dist.sample_text.turkish_pairs import turkish_pairs
from spectral_dist.settings import Config, DatasetConfig, from_flat, resolve
from spectral_dist.settings.declare import split_list
from spectral_dist.stream import Distance, read_streams
from spectral_dist.training.evaluation import Evaluation


def score(flags: Namespace) -> None:
    """Print, and write where it is asked for, the bits per byte of a run.

    Args:
      flags: of `evaluate.make_parser`.

    Raises:
      ValueError: names what cannot be read, or is too short for one window.
    """
    console = Console(0)
    loaded = _load(flags)
    files = open_texts(loaded, flags.data_paths, console, flags.allow_replaced == "true")
    own = flags.data_paths is None
    config = _config(loaded.config, flags, None if own else files)
    with jax.set_mesh(loaded.mesh):
        evaluation = Evaluation(config, files, loaded.mesh, report=console.note)
        measured = evaluation.by_dataset(loaded.params) | evaluation.extrapolation(loaded.params)
    if not measured:
        raise ValueError(
            f"data_paths={','.join(str(f.path) for f in files)}: no text is as long as one window"
            f" of {config.data.seq_len + 1} tokens"
        )
    console.note(f"{flags.run_name} at step {loaded.step}, windows of {config.data.seq_len} tokens")
    if not own and "val/bits_per_byte" in measured:
        # The weights are those of the mixture, which other texts are no part of.
        measured[MEANS["mean of the texts"]] = measured.pop("val/bits_per_byte")
    console.show_tables(measured, "Validation" if own else "The texts given")
    if flags.json:
        _write_json(Path(flags.json), loaded, flags, measured)


def score_tasks(flags: Namespace) -> None:
    """Print, and write where it is asked for, what a run reaches in tasks of the harness.

    Args:
      flags: of `evaluate.make_parser`.

    Raises:
      ValueError: names the task that is not known, or the extra that is missing.
    """
    tasks = [task.strip() for task in flags.tasks.split(",") if task.strip()]
    if not tasks:
        raise ValueError(f"tasks={flags.tasks!r}: must be names joined by commas")
    try:
        from spectral_dist.harness import run_tasks
    except ImportError as error:
        raise ValueError(
            f"tasks={flags.tasks!r}: needs the lm-evaluation-harness ({error}):"
            " pip install 'spectral-dist[eval]'"
        ) from error
    console, loaded = Console(0), _load(flags)
    found = run_tasks(
        loaded,
        tasks,
        limit=flags.limit,
        include_path=flags.include_path,
        batch_size=flags.batch_size,
    )
    console.note(f"{flags.run_name} at step {loaded.step}")
    for task, metrics in found.items():
        for name, value in metrics.items():
            console.note(f"{task}  {name}  {value:.4f}")
    if flags.json:
        values = {f"{task}/{name}": v for task, m in found.items() for name, v in m.items()}
        _write_json(Path(flags.json), loaded, flags, values)


def score_pair_files(flags: Namespace) -> None:
    """Print, and write where it is asked for, how often a run prefers the right sentence.

    Args:
      flags: of `evaluate.make_parser`.

    Raises:
      ValueError: names the file and what is wrong with it.
    """
    columns = [name.strip() for name in flags.pair_columns.split(",")]
    if len(columns) != 2 or not all(columns):
        raise ValueError(f"pair_columns={flags.pair_columns!r}: must be two names, RIGHT,WRONG")
    names = split_list(flags.pairs)
    paths = [Path(name).expanduser() for name in names if name != BUILT_IN]
    # All of them before the model is loaded.
    files = {path.stem: read_pairs(path, columns) for path in paths}
    suite = turkish_pairs() if BUILT_IN in names else {}
    if len(files) != len(paths) or files.keys() & suite.keys() or not names:
        raise ValueError(f"pairs={flags.pairs!r}: must be files of different names")
    files |= suite
    console, loaded = Console(0), _load(flags)
    found = score_pairs(loaded, files, flags.batch_size)
    console.note(f"{flags.run_name} at step {loaded.step}")
    values: dict[str, float] = {}
    for name, result in found.items():
        low, high = result.interval
        alike = f"; {result.alike:,} left out, both sentences alike" if result.alike else ""
        console.note(
            f"{name}  {result.share:.1%} of {result.pairs:,} pairs, 95% interval {low:.1%} to"
            f" {high:.1%}; the right one is the shorter in {result.shorter:,}{alike}"
        )
        values |= {f"{name}/share": result.share, f"{name}/pairs": result.pairs}
        values[f"{name}/shorter"] = result.shorter
    values["mean"] = fmean(result.share for result in found.values())
    console.note(f"mean of {len(found)} tables  {values['mean']:.1%}; chance is 50%")
    if flags.json:
        _write_json(Path(flags.json), loaded, flags, values)


def score_streams(flags: Namespace) -> None:
    """Print, and write where it is asked for, what the bytes far from the start of a text cost.

    Args:
      flags: of `evaluate.make_parser`.

    Raises:
      ValueError: names what cannot be read, or that no text is as long.
    """
    console, loaded = Console(0), _load(flags)
    files = open_texts(loaded, flags.data_paths, console, flags.allow_replaced == "true")
    found = read_streams(
        loaded,
        files,
        flags.stream,
        lanes=flags.windows or flags.batch_size,
        batch_size=flags.batch_size,
    )
    seq_len = loaded.config.data.seq_len
    console.note(
        f"{flags.run_name} at step {loaded.step}, streams of {flags.stream * seq_len:,} tokens,"
        f" {flags.stream} x seq_len={seq_len}"
    )
    start = found[0].state
    for distance in found:
        console.note(_stream_line(distance, start))
    values: dict[str, float] = {}
    for at in found:
        base = f"stream/{at.last}x"
        values |= {
            f"{base}/bits_per_byte": at.carried,
            f"{base}/restarted_bits_per_byte": at.restarted,
            f"{base}/difference": at.difference,
            f"{base}/difference_upper": at.upper,
            f"{base}/success": float(at.success),
        }
        for name, (carried, restarted) in at.by_text.items():
            values[f"{base}/{name}/bits_per_byte"] = carried
            values[f"{base}/{name}/restarted_bits_per_byte"] = restarted
        values |= {f"{base}/state/{name}": rms for name, rms in at.state.items()}
    if flags.json:
        _write_json(Path(flags.json), loaded, flags, values)


def _stream_line(at: Distance, start: Mapping[str, float]) -> str:
    """Return the line of a distance; `start`: the norms of the state after the first piece."""
    grown = max((rms / start[name] for name, rms in at.state.items() if start[name]), default=1.0)
    return (
        f"{at.first:>5} to {at.last:>5}x  carried {at.carried:.4f} bits/byte, restarted"
        f" {at.restarted:.4f}, difference {at.difference:+.4f} (at most {at.upper:+.4f})"
        f"{'' if at.success else ', worse'}; no array of the state above {grown:.2f} of its size"
        " at 1x"
    )


def _load(flags: Namespace) -> LoadedRun:
    return load_run(
        flags.run_name,
        checkpoint_dir=flags.checkpoint_dir,
        checkpoint=flags.checkpoint,
        mesh=flags.mesh,
        sequence_parallel=flags.sequence_parallel == "true",
    )


def open_texts(
    loaded: LoadedRun, data_paths: str | None, console: Console, allow_replaced: bool = False
) -> list[TokenFile]:
    """Return the texts to score, each reduced to what the run did not train on."""
    data = loaded.config.data
    datasets = loaded.config.validation or loaded.config.datasets
    if data_paths is not None:
        datasets = tuple(DatasetConfig(paths=(path,)) for path in split_list(data_paths))
    if not datasets:
        raise ValueError(f"data_paths={data_paths!r}: must be files joined by commas")
    files = prepare(
        datasets,
        tokenizer=data.tokenizer,
        validation_fraction=data.validation_fraction,
        min_tokens=1,
        allow_replaced=data.allow_replaced or allow_replaced,
        cache=data.data_cache,
        report=console.note,
    )
    return [
        dataclasses.replace(file, split=_split(loaded, file, ", ".join(dataset.paths), console))
        for file, dataset in zip(files, datasets, strict=True)
    ]


def _split(loaded: LoadedRun, file: TokenFile, path: str, console: Console) -> int:
    """Return the index of the first token of a text that the run was not trained on.

    Says what is known of a text that is like none of the run's, and yet holds some of it.
    """
    datasets = loaded.description["datasets"]
    for stored in datasets:
        if stored["sha256"] == file.sha256:
            return stored["split"]
    overlap = recognise(file.tokens, datasets, file.tokenizer)
    if overlap.split:
        console.note(
            f"{path}: begins with a text that the run was trained on: scored from token"
            f" {overlap.split:,} of {len(file.tokens):,} on"
        )
    elif overlap.documents:
        console.warn(
            f"{path}: holds {overlap.documents} of {overlap.sampled} documents sampled from what"
            " the run was trained on: its figure is in part one of training, and no validation"
        )
    return overlap.split


def _config(config: Config, flags: Namespace, files: Sequence[TokenFile] | None) -> Config:
    """Return the run's settings with what this evaluation asks for in their place.

    Args:
      config: of the run.
      flags: of `evaluate.make_parser`.
      files: other texts than the run's own.
    """
    wanted: dict[str, Any] = {"batch_size": flags.batch_size}
    if flags.lengths is not None:
        wanted["eval_lengths"] = flags.lengths
    if flags.windows is not None:
        wanted |= {"eval_windows": flags.windows, "extrapolation_windows": flags.windows}
    if files is not None:
        wanted["datasets"] = [{"name": f.name, "paths": [str(f.path)], "weight": 1} for f in files]
        wanted["validation"] = []
    wanted |= {"mesh": flags.mesh, "sequence_parallel": flags.sequence_parallel, "phases": []}
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
