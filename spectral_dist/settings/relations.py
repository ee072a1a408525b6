"""Rules between settings, beyond the range of each one. Imports no JAX.

A mixer's rules for the model and the mesh are in its own section. Read `check_relations`.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, cast

from spectral_dist.settings.mixers import MixersConfig
from spectral_dist.settings.sections import AUTO_MESH, SEQUENCE, MeshConfig

if TYPE_CHECKING:
    from spectral_dist.settings.config import Config


def mixer_names() -> tuple[str, ...]:
    """Return the names that a layer pattern may hold."""
    return tuple(f.name for f in dataclasses.fields(cast(Any, MixersConfig)))


def check_relations(config: "Config") -> None:
    """Check the rules between settings.

    Raises:
      ValueError: names the setting, its value and the rule.
    """
    data, model, run = config.data, config.model, config.run
    # With mesh=auto, only the rules of one device hold yet; the chosen mesh is checked again.
    mesh = MeshConfig() if config.mesh.mesh == AUTO_MESH else config.mesh
    # Each device along data and fsdp gets the same number of whole sequences.
    if data.batch_size % (shards := math.prod(mesh.shape[:2])):
        raise ValueError(
            f"batch_size={data.batch_size}: must be a multiple of data x fsdp = {shards} of"
            f" mesh={mesh.mesh}"
        )
    # The kernels of a GPU work in chunks of at most 32 tokens.
    shards = mesh.sizes.get(SEQUENCE, 1)
    if shards > 1 and data.seq_len % (32 * shards):
        raise ValueError(
            f"seq_len={data.seq_len}: must be a multiple of 32 x {shards} tokens, with"
            f" sequence_parallel and mesh={mesh.mesh}"
        )
    known = mixer_names()
    for name in model.pattern:
        if name not in known:
            raise ValueError(
                f"layer_pattern={model.layer_pattern!r}: {name!r} is not one of {', '.join(known)}"
            )
    # Only the mixers in use: a pattern without attention needs no valid num_kv_heads.
    for name in dict.fromkeys(model.pattern):
        getattr(config.mixers, name).check(model, mesh)
    # A warm-up longer than the run would never reach the learning rate that was asked for.
    if (warmup := cast(int, config.optimizer.warmup_steps)) > run.steps:
        raise ValueError(f"warmup_steps={warmup}: must be at most steps={run.steps}")
    if (traced := run.traced_steps) is not None and traced[-1] > run.steps:
        raise ValueError(f"profile={run.profile}: must end by steps={run.steps} of the run")
    _check_phases(config)


def _check_phases(config: "Config") -> None:
    names = [dataset.name for dataset in config.datasets]
    for number, phase in enumerate(config.phases):
        path = f"phases.{number}.weights"
        for name, _ in phase.weights:
            if name not in names:
                there = ", ".join(map(str, names)) or "none"
                raise ValueError(f"{path}.{name}: must name one of the datasets: {there}")
        if sum(weight for _, weight in phase.weights) <= 0:
            raise ValueError(f"{path}: at least one weight must be above 0")
        ramp = f"phases.{number}.ramp={phase.ramp}"
        if phase.ramp > (steps := config.phase_steps[number]):
            raise ValueError(f"{ramp}: must be at most its steps={steps}")
        if phase.ramp and number == 0:
            raise ValueError(f"{ramp}: must be 0, since no phase comes before it")
    # Equal, because steps without a phase would have no mixture.
    total = sum(config.phase_steps)
    if config.phases and total != config.run.steps:
        raise ValueError(
            f"phases: their steps sum to {total}; must be steps={config.run.steps} of the run"
        )
