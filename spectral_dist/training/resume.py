"""What a checkpoint says of its run, and what a run that resumes from it may change.

Owns the description stored with every checkpoint and the comparison with the settings of today. The
settings of the model must be the same; everything else may change, and is told. Read `resume`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from spectral_dist.config import COMPUTE_SETTINGS, Config, from_flat, resolve
from spectral_dist.data.tokens import TokenFile
from spectral_dist.params import Params
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.checkpoint import resolve as find_checkpoint
from spectral_dist.training.state import TrainState, abstract_state

# Changing these says nothing about the state: no word is lost on them.
_SILENT = (
    "run_name",
    "checkpoint_dir",
    "log_every",
    "keep",
    "prefetch_steps",
    "wandb_mode",
    "wandb_project",
)
# With these the row of an index is another one: rows may repeat or be skipped.
_ORDER = ("seed", "seq_len", "data_paths", "data_weights", "validation_fraction")


def describe(config: Config, files: Sequence[TokenFile], next_row: int) -> dict[str, Any]:
    """Return what a checkpoint stores beside its arrays.

    Args:
      config: the settings.
      files: the sources.
      next_row: global index of the first row that no completed step has seen.
    """
    sources = [
        {"name": f.name, "tokens": len(f.tokens), "split": f.split, "sha256": f.sha256}
        for f in files
    ]
    return {"config": config.flat(), "sources": sources, "next_row": next_row}


def stored_config(description: dict[str, Any]) -> Config:
    """Return the settings of the run that stored a description."""
    return resolve(from_flat(description["config"]))


def _model_settings(config: Config) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(config.model).items() if k not in COMPUTE_SETTINGS}


def check_model(config: Config, description: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model.

    Raises:
      ValueError: names each setting that differs, with both values.
    """
    now, then = _model_settings(config), _model_settings(stored_config(description))
    changed = [f"{k}={now[k]} (was {then[k]})" for k in now if now[k] != then[k]]
    if changed:
        raise ValueError(
            f"run_name={config.run.run_name!r} was trained with another model:"
            f" {', '.join(changed)}; use its settings, or another --run_name"
        )


def resume(
    checkpoints: Checkpoints,
    abstract: TrainState,
    config: Config,
    files: Sequence[TokenFile],
    report: Callable[[str], None],
) -> tuple[TrainState, int, int] | None:
    """Return the state, its step and the next row from the newest readable checkpoint, or None.

    Raises:
      ValueError: if the model changed, or there are checkpoints and none can be read.
    """
    found = checkpoints.restore_latest(abstract, lambda stored: check_model(config, stored))
    if found is None:
        return None
    state, description = found
    step = int(state.step)
    report(f"resumed from step {step} in {checkpoints.folder}")
    before, now = description["config"], config.flat()
    changed = [k for k in now if k in before and now[k] != before[k] and k not in _SILENT]
    if changed:
        shown = ", ".join(f"{k} {_short(before[k])} -> {_short(now[k])}" for k in changed)
        report(f"changed since then: {shown}")
    hashes = [source["sha256"] for source in description["sources"]]
    new_data = hashes != [f.sha256 for f in files]
    if new_data or any(k in _ORDER for k in changed):
        report(
            "the order of the data is another one from here on: some rows may come twice or never"
        )
    return state, step, int(description["next_row"])


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained model.

    Attributes:
      config: the settings it was trained with.
      params: its parameters, on the mesh it was loaded onto.
      step: completed steps.
      description: what its checkpoint says.
    """

    config: Config
    params: Params
    step: int
    description: dict[str, Any]


def load_run(checkpoint_dir: str, run_name: str, checkpoint: str, mesh: Mesh) -> LoadedRun:
    """Load one checkpoint of a run onto a mesh, changing nothing.

    Args:
      checkpoint_dir: folder of the runs.
      run_name: the run.
      checkpoint: checkpoint_0 (latest), checkpoint_1 (previous) or a step.
      mesh: of any shape.

    Raises:
      ValueError: if there is no such run or checkpoint, or it cannot be read.
    """
    folder = Path(checkpoint_dir) / run_name
    if not run_name or not folder.is_dir():
        there = sorted(p.name for p in Path(checkpoint_dir).glob("*") if p.is_dir())
        raise ValueError(
            f"run_name={run_name!r}: no such run in {checkpoint_dir};"
            f" there: {', '.join(there) or 'none'}"
        )
    step = find_checkpoint(folder, checkpoint)
    checkpoints = Checkpoints(folder, keep=1, warn=lambda text: None)
    try:
        description = checkpoints.describe(step)
        config = stored_config(description)
        state, _ = checkpoints.restore(abstract_state(config, mesh), step)
    finally:
        checkpoints.close()
    return LoadedRun(config, state.params, step, description)


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
