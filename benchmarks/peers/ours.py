"""Our own training step, as `spectral-dist train` compiles it, on one device."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.peers import Shape, Step
from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.settings import Config
from spectral_dist.training.state import init_state, model_spec
from spectral_dist.training.step import batch_sharding, make_train_step


def settings(shape: Shape, words: Sequence[str]) -> Config:
    """Return the settings of a shape; its parameters are not looked at.

    Args:
      shape: of the comparison.
      words: flags as of `spectral-dist train`, which stand over the shape's.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    # The text is never opened: the settings only have to be complete. On a GPU as in the presets.
    own = f"""--data_paths none.txt --compute_dtype {shape.dtype} --hidden_dim {shape.hidden_dim}
        --num_layers {shape.num_layers} --seq_len {shape.seq_len}
        --batch_size {shape.batch_size}"""
    presets = ["--remat=none", "--unroll=all"] if jax.default_backend() == "gpu" else []
    return load_config([*own.split(), *presets, *words])


def count(config: Config) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(model_spec(config).shapes))


def make_step(shape: Shape, words: Sequence[str] = ()) -> tuple[int, Step]:
    """Return the number of parameters, and the training step; `words` as in `settings`."""
    config = settings(shape, words)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        train_step = make_train_step(config, mesh)
        state: Any = init_state(config, mesh)
    where = batch_sharding(config, mesh)

    def step(tokens: np.ndarray) -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = train_step(state, jax.device_put(tokens[None], where))
        jax.block_until_ready(state)  # a call returns before its step is done
        return float(metrics["loss"])

    return count(config), step
