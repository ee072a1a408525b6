"""Resuming: what a checkpoint stores about its run, and which settings may differ afterwards.

Owns the description stored with every checkpoint and its comparison with the current settings. The
settings of the model and the name of the optimizer must be the same. Everything else may change;
the changes are reported. Read `resume`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.data.tokens import TokenFile
from spectral_dist.flags import load_config
from spectral_dist.outputs.jsonl import read_metrics
from spectral_dist.settings import SETTINGS, Config, from_flat, resolve
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.checkpoint_folder import unread_work
from spectral_dist.training.migrations import FORMAT
from spectral_dist.training.schedule import learning_rate
from spectral_dist.training.state import TrainState


def describe(config: Config, files: Sequence[TokenFile], next_sequence: int) -> dict[str, Any]:
    """Return the description of a run that a checkpoint stores beside its arrays.

    Args:
      config: the settings.
      files: the datasets.
      next_sequence: global index of the first sequence that no completed step has seen.
    """
    # The SHA-256 and not the path: the same text in another folder is the same data.
    datasets = [
        {
            "name": f.name,
            "tokens": len(f.tokens),
            "split": f.split,
            "sha256": f.sha256,
            "sketch": f.sketch,
        }
        for f in files
    ]
    found = {"config": config.flat(), "datasets": datasets, "next_sequence": next_sequence}
    return {"format": FORMAT, "tokenizer": find_tokenizer(config).fingerprint} | found


def stored_config(description: dict[str, Any]) -> Config:
    """Return the settings of the run that stored a description.

    Raises:
      ValueError: if this version does not know one of them.
    """
    try:
        return resolve(from_flat(description["config"]))
    except ValueError as error:
        raise ValueError(
            f"the settings in the checkpoint cannot be read ({error}): another version of"
            " spectral_dist wrote it; use that one"
        ) from error


def _model_settings(config: Config) -> dict[str, Any]:
    """Return the settings that the parameters depend on."""
    # The settings of a mixer that the model does not have may change freely.
    unused = tuple(
        f"mixers.{f.name}."
        for f in dataclasses.fields(cast(Any, config.mixers))
        if f.name not in config.model.pattern
    )
    flat = config.flat()
    return {
        name: flat[name]
        for name, setting in SETTINGS.items()
        if setting.traits.resume == "same" and name in flat and not setting.path.startswith(unused)
    }


def check_model(config: Config, description: dict[str, Any]) -> None:
    """Refuse to resume from a checkpoint of another model.

    Raises:
      ValueError: names each setting that differs, with both values, and what it was derived from.
    """
    now, then = _model_settings(config), _model_settings(stored_config(description))
    changed = [k for k in now if now[k] != then.get(k)]
    if not changed:
        return
    shown, kept = [], []
    for name in changed:
        follows = ""
        if SETTINGS[name].path in config.derived:
            follows = f", follows from {', '.join(SETTINGS[name].traits.follows)}"
            kept.append(f"--{name} {then.get(name)}")
        shown.append(f"{name}={now[name]} (was {then.get(name)}{follows})")
    keep = f"; {' '.join(kept)} keeps what was derived" if kept else ""
    raise ValueError(
        f"run_name={config.run.run_name!r} was trained with another model:"
        f" {', '.join(shown)}; use its settings, or another --run_name{keep}"
    )


def changes(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Return the changed settings worth reporting: {name: (value before, value now)}."""
    old, new = _reported(before), _reported(now)
    return {name: (old[name], new[name]) for name in new if name in old and old[name] != new[name]}


def _reported(config: Config) -> dict[str, Any]:
    """Return the settings whose change is reported when a run resumes."""
    flat = config.flat()
    found = {
        name: flat[name]
        for name, setting in SETTINGS.items()
        if name in flat and setting.traits.resume != "silent"
    }
    # Under the names of the flags, which are what the user types.
    found["data_paths"] = [",".join(dataset.paths) for dataset in config.datasets]
    found["data_weights"] = [dataset.weight for dataset in config.datasets]
    found["validation"] = [",".join(dataset.paths) for dataset in config.validation]
    return found | {"phases": flat["phases"]}


def _changes_data_order(name: str, before: Any, now: Any) -> bool:
    """Return whether a changed setting decides which sequence an index stands for."""
    if name in SETTINGS:
        return SETTINGS[name].traits.order
    if name == "phases":  # their learning rates decide nothing
        old, new = ([{**phase, "lr_factor": 1.0} for phase in phases] for phases in (before, now))
        return old != new
    # The same text under another path is the same text.
    return name not in ("data_paths", "validation")


def check_optimizer(config: Config, description: dict[str, Any]) -> None:
    """Refuse to resume from another optimizer's opt_state, which has no meaning for this one.

    Raises:
      ValueError: names both.
    """
    # Checkpoints from before there was a choice name none; they get the default, adamw.
    now, then = config.optimizer.name, stored_config(description).optimizer.name
    if now != then:
        raise ValueError(
            f"optimizer.name={now}: run_name={config.run.run_name!r} was trained with {then}, whose"
            f" state is of no use to {now}; use --optimizer.name={then}, or another --run_name"
        )


def check_tokenizer(config: Config, description: dict[str, Any]) -> None:
    """Refuse to resume with another tokenizer: its tokens mean something else.

    Raises:
      ValueError: names both.
    """
    # Checkpoints from before there was a choice name none.
    now, then = find_tokenizer(config).fingerprint, description.get("tokenizer", "bytes")
    if now != then:
        raise ValueError(
            f"tokenizer={config.data.tokenizer!r}: is {now}, and run_name={config.run.run_name!r}"
            f" was trained with {then}; its run folder holds a copy, or use another --run_name"
        )


def check_phases(config: Config, description: dict[str, Any]) -> None:
    """Refuse to resume with steps of another size if the phases are in tokens.

    Raises:
      ValueError: names both sizes.
    """
    # The steps that are done were counted in the old size: the phases would begin elsewhere.
    now, then = config.data.step_tokens, stored_config(description).data.step_tokens
    number = next((i for i, phase in enumerate(config.phases) if phase.tokens is not None), None)
    if number is not None and now != then:
        raise ValueError(
            f"phases.{number}.tokens={config.phases[number].tokens}: a step of"
            f" run_name={config.run.run_name!r} was {then:,} tokens and is now {now:,}; keep"
            " batch_size x accum_steps x seq_len, or give the phases in steps"
        )


def check_run(config: Config, description: dict[str, Any]) -> None:
    """Refuse to resume from a checkpoint that does not fit the settings.

    Raises:
      ValueError: names each setting that differs, with both values.
    """
    check_optimizer(config, description)
    check_tokenizer(config, description)
    check_model(config, description)
    check_phases(config, description)


def check_fresh(folder: Path, config: Config) -> None:
    """Refuse to begin at step 0 in a folder that holds the work of a run.

    Raises:
      ValueError: says what was found.
    """
    reason = unread_work(folder)
    if not reason:
        last, every = _last_logged(folder), _save_every(folder, config)
        # A step waits for the save of the checkpoint before last, so that one was complete.
        if last >= 2 * every:
            reason = f"metrics.jsonl goes to step {last}, with a checkpoint every {every} steps"
    if reason:
        raise ValueError(
            f"run_name={config.run.run_name!r}: {folder} has no checkpoint to resume from, but"
            f" {reason}. Nothing was changed: put the checkpoints back, each in a folder named by"
            " its step, or choose another --run_name"
        )


def _last_logged(folder: Path) -> int:
    """Return the last step in metrics.jsonl; 0 where there is none."""
    try:
        return max((record.step for record in read_metrics(folder / "metrics.jsonl")), default=0)
    except ValueError:  # no such file, or one that cannot be read
        return 0


def _save_every(folder: Path, config: Config) -> int:
    """Return the steps between two checkpoints of the run that wrote a folder."""
    path = folder / "config.yaml"
    try:
        return load_config([f"--config={path}"]).run.save_every
    except (OSError, ValueError):
        return config.run.save_every


def resume(
    checkpoints: Checkpoints,
    abstract: TrainState,
    config: Config,
    files: Sequence[TokenFile],
    report: Callable[[str], None],
) -> tuple[TrainState, int, int] | None:
    """Resume: return state, step and next sequence of the newest checkpoint that can be read.

    None if there is no checkpoint.

    Raises:
      ValueError: if the model or the optimizer changed, or there are checkpoints and none can be
        read, or there are none where there must have been some.
    """
    found = checkpoints.restore_latest(abstract, lambda stored: check_run(config, stored))
    if found is None:
        check_fresh(checkpoints.folder, config)
        return None
    state, description = found
    step, before = int(state.step), stored_config(description)
    if step > config.run.steps:
        raise ValueError(
            f"steps={config.run.steps}: run_name={config.run.run_name!r} has completed {step} steps"
            " already; give more, or another --run_name"
        )
    report(f"resumed from step {step} in {checkpoints.folder}")
    changed = changes(before, config)
    if changed:
        shown = ", ".join(f"{k} {_short(a)} -> {_short(b)}" for k, (a, b) in changed.items())
        report(f"changed since then: {shown}")
    # A run that is made longer jumps to another place of its schedule.
    old, new = (float(learning_rate(one)(step)) for one in (before, config))
    asked = "lr" in changed or step == config.run.steps
    if not asked and not math.isclose(old, new, rel_tol=0.01):
        report(f"the learning rate of the next step is {new:.3g}, and was to be {old:.3g}")
    # next_sequence is an index into the order of the data. In another order it still skips as many
    # sequences, but not the same ones.
    hashes = [dataset["sha256"] for dataset in description["datasets"]]
    new_data = hashes != [f.sha256 for f in files]
    if new_data or any(_changes_data_order(name, *both) for name, both in changed.items()):
        report(
            "the order of the data is another one from here on: some sequences may come twice or"
            " never"
        )
    return state, step, int(description["next_sequence"])


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
