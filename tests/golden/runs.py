"""The runs behind the golden file: which ones there are, and how the program makes one.

`train_and_evaluate` holds every call into the package: it follows the code when that moves, and
nothing else here does. Read it first.
"""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from spectral_dist.assembly import open_batches, open_datasets
from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.mesh import make_mesh
from spectral_dist.sample_text.build import build_sample
from spectral_dist.settings import from_flat, resolve
from spectral_dist.training.evaluation import Evaluation
from spectral_dist.training.loop import train
from spectral_dist.training.metrics import Throughput
from spectral_dist.training.state import init_state
from spectral_dist.training.step import make_train_step

# Of the built-in text, what comes from our own generators: the rest is cut from the Python
# installation, and differs from one Python to the next.
DATASETS = ("turkish", "math")
_TEXT_BYTES = 60_000

DEFAULT_PATTERN = "spectral,spectral,window"
PATTERNS = (DEFAULT_PATTERN, "attention", "window")
REMATS = ("none", "dots", "full")
DTYPES = ("float32", "bfloat16")
MESHES = ("1x1x1", "2x2x2")

# Every block is stacked and every chunk, window and conv ends within a sequence. The learning rate
# is that of the defaults: the losses must move for their equality to mean something.
SETTINGS: dict[str, Any] = {
    **{"hidden_dim": 32, "head_dim": 8, "num_layers": 6, "mlp_dim": 64, "num_kv_heads": 2},
    **{"window": 8, "num_poles": 4, "chunk_size": 8, "seq_len": 32},
    **{"batch_size": 8, "accum_steps": 2, "steps": 20, "warmup_steps": 2, "lr": 1e-3, "seed": 3},
    **{"data_weights": (0.75, 0.25), "validation_fraction": 0.05, "log_every": 1},
    **{"eval_windows": 16, "eval_lengths": (1,)},
}


class Case(NamedTuple):
    """What sets one golden run apart from the others; its values are the settings' own."""

    layer_pattern: str
    remat: str
    compute_dtype: str
    mesh: str

    @property
    def key(self) -> str:
        """The case's name in the golden file and in a test's name."""
        return " ".join(self)


CASES = tuple(Case(*values) for values in itertools.product(PATTERNS, REMATS, DTYPES, MESHES))


class Numbers(NamedTuple):
    """What one run gives.

    Attributes:
      losses: of each step, in nats per token.
      bits_per_byte: after the last step, by dataset, and "mean", weighted.
    """

    losses: list[float]
    bits_per_byte: dict[str, float]


def write_text(folder: Path) -> list[Path]:
    """Write the text of the golden runs; the same bytes on every machine and Python."""
    written = build_sample(folder, bytes_per_source=_TEXT_BYTES, report=lambda line: None)
    by_name = {path.stem: path for path in written}
    return [by_name[name] for name in DATASETS]


def train_and_evaluate(case: Case, texts: list[Path], changes: Mapping[str, Any]) -> Numbers:
    """Train for the settings' steps and evaluate once, by the same calls as the program's.

    Args:
      case: which run.
      texts: of `write_text`.
      changes: settings to change, by their flags' names.
    """
    paths = {"data_paths": tuple(map(str, texts))}
    config = resolve(from_flat({**SETTINGS, **case._asdict(), **paths, **changes}))
    config, files, _ = open_datasets(config, lambda line: None, Processes(StopSignal()))
    shape = config.mesh.shape
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
        batches = open_batches(config, files, mesh, 0, 0, lambda line: None)
        state = init_state(config, mesh)
        losses = []
        for progress in train(make_train_step(config, mesh), state, batches, config, Throughput()):
            state = progress.state
            if progress.record is not None:
                losses.append(progress.record.metrics["train/loss"])
        scores = Evaluation(config, files, mesh, report=print).by_dataset(state.params)
    bits = {name: scores[f"val/{name}/bits_per_byte"] for name in DATASETS}
    return Numbers(losses, bits | {"mean": scores["val/bits_per_byte"]})
