"""The sections of the settings that every run has: a frozen model for each concern.

Each setting is declared once, by `setting`: its type, range, default, meaning and traits. The
sections of the mixers are in `mixers`, those of the optimizers in `optimizers`; `config` puts all
together. Imports no JAX.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic.dataclasses import dataclass

from spectral_dist.settings.declare import (
    STRICT,
    Float,
    Int,
    Ints,
    Text,
    Texts,
    not_negative,
    positive,
    setting,
)

MESH_AXES = ("data", "fsdp", "tensor")
AUTO_MESH = "auto"  # stands for the mesh that is still to be chosen


def _one_folder(name: str) -> str:
    if not name or name in (".", "..") or any(c in name for c in "/\\\0\n"):
        raise ValueError("must name one folder")
    return name


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """The run: its name, its length, how often it reports and saves."""

    run_name: Annotated[Text, AfterValidator(_one_folder)] = setting(
        "default",
        "name of the run; its folder is CHECKPOINT_DIR/RUN_NAME",
        daily=True,
        resume="silent",
    )
    checkpoint_dir: Text = setting(
        "checkpoints", "folder that holds one folder for each run", resume="silent"
    )
    seed: Int = not_negative(
        0, "seed of the initial parameters and of the order of the data", order=True
    )
    steps: Int = positive(10_000, "length of the run, in optimizer steps", daily=True)
    log_every: Int = positive(10, "steps between two lines of metrics", resume="silent")
    save_every: Int = positive(500, "steps between two checkpoints")
    keep: Int = positive(
        2, "latest checkpoints kept, beside the best by validation", resume="silent"
    )
    max_bad_steps: Int = positive(10, "non-finite steps in a row after which the run stops")
    start_timeout: Float = positive(300.0, "time for all processes to report in, in seconds")
    hang_timeout: Float = positive(600.0, "time without progress that means a hang, in seconds")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MeshConfig:
    """The devices."""

    mesh: Text = setting(
        "1x1x1",
        "devices as DATAxFSDPxTENSOR, their count; or auto, to choose",
        daily=True,
        compiled=True,
    )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The sizes of the mesh axes data, fsdp and tensor.

        Raises:
          ValueError: if the text is not three positive integers joined by "x".
        """
        sizes = self.mesh.lower().split("x")
        if len(sizes) != 3 or not all(s.isascii() and s.isdigit() and int(s) > 0 for s in sizes):
            raise ValueError(
                f"mesh={self.mesh!r}: must be DATAxFSDPxTENSOR, three positive integers"
            )
        return (int(sizes[0]), int(sizes[1]), int(sizes[2]))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """How text becomes batches."""

    tokenizer: Literal["bytes"] = setting(
        "bytes", "what turns text into tokens", flag="", resume="same", compiled=True
    )
    validation_fraction: Float = setting(
        0.01,
        "share of each dataset's tail held out for validation",
        gt=0,
        lt=1,
        order=True,
    )
    seq_len: Int = positive(
        2048, "training length, in tokens", daily=True, compiled=True, order=True
    )
    batch_size: Int = positive(
        16, "sequences in a micro-batch, over all devices", daily=True, compiled=True
    )
    accum_steps: Int = positive(
        1,
        "gradient accumulation: micro-batches in a step; batch_size x accum_steps is the batch",
        daily=True,
        compiled=True,
    )
    prefetch_steps: Int = positive(
        2, "batches made ready ahead of the device, in steps", resume="silent", compiled=True
    )


def _dataset_name(name: str | None) -> str | None:
    # It stands in the names of metrics, val/<name>/bits_per_byte.
    if name is not None and (not name or "/" in name or "\n" in name):
        raise ValueError("must be a name without a slash or a line break")
    return name


def _one_file(paths: tuple[str, ...]) -> tuple[str, ...]:
    if len(paths) != 1:
        raise ValueError("must be one file; give each file a dataset of its own")
    return paths


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetConfig:
    """One dataset: text with a name and a weight in the mixture."""

    name: Annotated[Text | None, AfterValidator(_dataset_name)] = setting(
        None, "what metrics call it (default: the file's name without its ending)", order=True
    )
    paths: Annotated[Texts, AfterValidator(_one_file)] = setting(
        ..., "its text file, UTF-8, or a .bin that was made of one", order=True
    )
    weight: Float | None = not_negative(
        None, "its share of the batches, on any scale (default: equal shares)", order=True
    )


def _as_pairs(value: Any) -> Any:
    """Read a mapping as pairs, so that settings stay hashable."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        raise ValueError("must map names of datasets to weights")
    return tuple(value.items())


def _finite_weight(weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError("must be finite and not negative")
    return weight


Weight = Annotated[Float, AfterValidator(_finite_weight)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PhaseConfig:
    """One phase of a curriculum: a number of steps with a mixture of its own."""

    name: Text | None = setting(None, "what the run calls it (default: phase_1, phase_2, ...)")
    steps: Int = positive(..., "its length, in optimizer steps", order=True)
    weights: Annotated[tuple[tuple[Text, Weight], ...], BeforeValidator(_as_pairs)] = setting(
        ..., "share of each dataset by its name; one that is not named has none", order=True
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The model. What its parameters depend on must be the same when a run is resumed."""

    hidden_dim: Int = positive(
        512,
        "width D of the residual stream, in channels",
        daily=True,
        resume="same",
        compiled=True,
    )
    num_layers: Int = positive(
        12, "layers, each a mixer and a SwiGLU", daily=True, resume="same", compiled=True
    )
    layer_pattern: Text = setting(
        "spectral,spectral,window",
        "mixers from the first layer on, repeated to the depth; of spectral, window, attention",
        resume="same",
        compiled=True,
    )
    mlp_dim: Int | None = positive(
        None,
        "inner width of SwiGLU (default: 8/3 D rounded up to 64)",
        resume="same",
        compiled=True,
        derive=lambda config: -(-config.model.hidden_dim * 8 // 3 // 64) * 64,
        follows=("model.hidden_dim",),
    )
    head_dim: Int = positive(
        64,
        "channels of an attention head and of a normalised group",
        resume="same",
        compiled=True,
    )
    num_kv_heads: Int | None = positive(
        None,
        "heads of keys and values (default: half the heads)",
        resume="same",
        compiled=True,
        derive=lambda config: max(1, config.model.hidden_dim // config.model.head_dim // 2),
        follows=("model.hidden_dim", "model.head_dim"),
    )
    compute_dtype: Literal["bfloat16", "float32"] = setting(
        "bfloat16", "type of the matrix products' operands", compiled=True
    )
    remat: Literal["none", "dots", "full"] = setting(
        "dots",
        "activation checkpointing, what the backward pass computes again: nothing, all but the"
        " dense products, or all",
        compiled=True,
    )

    @property
    def pattern(self) -> tuple[str, ...]:
        """The names of the mixers in `layer_pattern`."""
        return tuple(name.strip() for name in self.layer_pattern.split(","))


def _lengths(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if not lengths or min(lengths) < 1 or max(lengths) >= 2**31:
        raise ValueError("must be positive integers")
    return lengths


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvalConfig:
    """The measurements on held-out text."""

    eval_every: Int = positive(500, "steps between two evaluations")
    eval_windows: Int = positive(64, "held-out windows of seq_len tokens scored for each dataset")
    eval_lengths: Annotated[Ints, AfterValidator(_lengths)] = setting(
        (1, 2, 4),
        "context lengths of the extrapolation table, as multiples of seq_len",
        compiled=True,
    )
    extrapolation_windows: Int = positive(
        64, "windows of long held-out documents scored at every context length, for each dataset"
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputConfig:
    """Where the figures go beside the console and metrics.jsonl."""

    wandb_mode: Literal["auto", "online", "offline", "disabled"] = setting(
        "auto",
        "Weights & Biases: auto is online with a key and offline without",
        resume="silent",
    )
    wandb_project: Text = setting(
        "spectral-jax-scaling", "Weights & Biases project", resume="silent"
    )
