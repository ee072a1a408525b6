"""Sections of the settings: run, mesh, data, datasets, phases, model, evaluation, output.

Each setting is declared once, by `setting`, with its type, range, default, meaning and traits. The
settings of mixers and optimizers are in `mixers` and `optimizers`; `config` puts all together.
Imports no JAX.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from spectral_dist.settings.declare import (
    STRICT,
    Bool,
    DerivedInt,
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
SEQUENCE = "sequence"  # the third mesh axis in place of tensor, where it divides time
AUTO_MESH = "auto"  # the mesh is still to be chosen


def _one_folder(name: str) -> str:
    # A name with a slash could write outside checkpoint_dir.
    if not name or name in (".", "..") or any(c in name for c in "/\\\0\n"):
        raise ValueError("must name one folder")
    return name


def _steps_to_trace(text: str) -> str:
    if text != "off":
        match = re.fullmatch(r"([1-9][0-9]{0,8}):([1-9][0-9]{0,8})", text, re.ASCII)
        if match is None or int(match[2]) < int(match[1]):
            raise ValueError("must be FIRST:LAST, two steps counted from 1, or off")
    return text


def _url_or_nothing(url: str) -> str:
    if url and not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", url):
        raise ValueError("must be a URL such as s3://bucket/runs")
    return url


def _some_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("must name at least one parameter")
    return names


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
        "checkpoints", "folder that holds the folders of all runs", resume="silent"
    )
    seed: Int = not_negative(
        0, "seed of the initial parameters and of the order of the data", order=True
    )
    steps: DerivedInt = positive(
        None,
        "length of the run, in optimizer steps (default: that of its phases, or 10000)",
        daily=True,
        derive=lambda config: sum(config.phase_steps) or 10_000,
        follows=("phases", "data.batch_size", "data.accum_steps", "data.seq_len"),
    )
    # A new run: its optimizer, schedule and data begin at step 0, whatever the other one's did.
    init_from: Text = setting(
        "",
        "start a new run with the parameters of another: a run (its latest checkpoint), a"
        " checkpoint of one (RUN/500, RUN/best) or an exported model (a folder)",
        resume="silent",
    )
    init_names: Annotated[Texts, AfterValidator(_some_names)] = setting(
        ("*",),
        "the parameters that init_from gives, by name: patterns such as embed,groups/*/mlp/*; the"
        " others start from the seed",
        resume="silent",
    )
    log_every: Int = positive(10, "steps between two lines of metrics", resume="silent")
    # A save costs 0.26 s of training, of which it blocks 0.05 s (155 MB of state, two CPU cores).
    save_every: Int = positive(500, "steps between two checkpoints")
    # Steps alone say little of what a kill costs: 1,000 steps of level 3 take hours.
    save_minutes: Float = not_negative(
        15.0,
        "minutes between two checkpoints, whatever their steps; 0 leaves it to save_every",
        resume="silent",
    )
    # At least 2 in practice: if the latest one is damaged, resuming takes the one before it.
    keep: Int = positive(
        2,
        "number of latest checkpoints to keep, beside the one with the best validation",
        resume="silent",
    )
    store: Annotated[Text, AfterValidator(_url_or_nothing)] = setting(
        "",
        "URL under which the checkpoints are copied as well, and fetched from at a start, such as"
        " s3://bucket/runs or gs://bucket/runs",
        resume="silent",
    )
    keep_every: Int = not_negative(
        0, "steps between two checkpoints that are kept for ever; 0 keeps none", resume="silent"
    )
    lock: Bool = setting(
        True,
        "lock the run folder against a second run; false where its file system has no locks",
        resume="silent",
    )
    # A single bad batch is skipped; many in succession mean that training has diverged.
    max_bad_steps: Int = positive(10, "non-finite steps in succession after which the run stops")
    # A scheduler would start again for ever what fails each time in the same place.
    max_failed_starts: Int = not_negative(
        3,
        "starts in a row that may fail before the next checkpoint; 0 allows any number",
        resume="silent",
    )
    compilation_cache: Text = setting(
        "auto",
        "folder of compiled programs, which a later start need not compile: a path, auto (in the"
        " user's cache) or off",
        resume="silent",
    )
    profile: Annotated[Text, AfterValidator(_steps_to_trace)] = setting(
        "off",
        "steps to trace, as FIRST:LAST; the trace is in the run folder, for xprof and Perfetto",
        resume="silent",
    )
    # Loading JAX can take a minute on a busy file system; schedulers start hosts one by one.
    start_timeout: Float = positive(300.0, "seconds in which all processes must report in")
    hang_timeout: Float = positive(
        600.0, "seconds without progress after which a run counts as hung"
    )

    @property
    def traced_steps(self) -> range | None:
        """The steps that `profile` names, counted from 1."""
        if self.profile == "off":
            return None
        first, last = map(int, self.profile.split(":"))
        return range(first, last + 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MeshConfig:
    """The device mesh."""

    mesh: Text = setting(
        "1x1x1",
        "devices along each mesh axis, as DATAxFSDPxTENSOR; or auto, to have the best chosen",
        daily=True,
        compiled=True,
    )
    # What crosses between shards of time does not grow with the length of the sequence.
    sequence_parallel: Bool = setting(
        False,
        "sequence parallelism: the last number of mesh divides the time of each sequence, in place"
        " of the channels",
        compiled=True,
    )

    @property
    def axes(self) -> tuple[str, str, str]:
        """The names of the mesh axes."""
        return (*MESH_AXES[:2], SEQUENCE if self.sequence_parallel else MESH_AXES[2])

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each mesh axis by its name, in the order of the mesh; raises as `shape`."""
        return dict(zip(self.axes, self.shape, strict=True))

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
    """How text becomes tokens and batches."""

    # Whether a resumed run has the same one is asked of its fingerprint, not of its path.
    tokenizer: Text = setting(
        "bytes",
        "how text is split into tokens: bytes, or the path of a tokenizer.json",
        resume="silent",
        compiled=True,
    )
    # The end of a text, not a random part: its neighbours in training would give it away.
    validation_fraction: Float = setting(
        0.01,
        "share of each dataset, at its end, that is held out for validation",
        gt=0,
        lt=1,
        order=True,
    )
    seq_len: Int = positive(
        2048, "length of a training sequence, in tokens", daily=True, compiled=True, order=True
    )
    # Over all devices, not for each: a run sees the same batches on any mesh.
    batch_size: Int = positive(
        16, "sequences in a micro-batch, on all devices together", daily=True, compiled=True
    )
    accum_steps: Int = positive(
        1,
        "gradient accumulation: micro-batches in a step, of batch_size sequences each",
        daily=True,
        compiled=True,
    )
    allow_replaced: Bool = setting(
        False,
        "train also where more than a thousandth of a text is no UTF-8, with U+FFFD in its place",
        resume="silent",
    )
    data_cache: Text = setting(
        "auto",
        "folder for the tokens of texts behind a URL; auto for one in the user's cache",
        resume="silent",
    )
    prefetch_steps: Int = positive(
        2, "batches prepared ahead of the devices, in steps", resume="silent", compiled=True
    )

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, over all devices: batch_size x accum_steps x seq_len."""
        return self.batch_size * self.accum_steps * self.seq_len


def _ngrams(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if sizes and (min(sizes) < 2 or max(sizes) > 16 or sorted(set(sizes)) != list(sizes)):
        raise ValueError("must be rising numbers from 2 to 16")
    return sizes


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The model. A resumed run cannot change what its parameters depend on."""

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
        "mixers of the layers, repeated up to num_layers: spectral, window or attention",
        resume="same",
        compiled=True,
    )
    mlp_dim: Int | None = positive(
        None,
        "inner width of SwiGLU (default: 8/3 D rounded up to 64)",
        resume="same",
        compiled=True,
        # A multiple of 64 divides over tensor shards, and fills the tiles of a GPU's products.
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
    document_mask: Bool = setting(
        False,
        "whether each document begins anew: attention, state and short convolutions see none of"
        " those before it in a sequence; a GPU then does without our kernels",
        resume="same",
        compiled=True,
    )
    ngrams: Annotated[Ints, AfterValidator(_ngrams)] = setting(
        (),
        "lengths n of n-gram embeddings, such as 2,3,4,5: the last n tokens have a row of a hashed"
        " table, added to the embedding (default: none)",
        resume="same",
        compiled=True,
    )
    ngram_rows: Int = positive(
        16_384,
        "rows of the table of each n of ngrams; n-grams that meet in one row share it",
        le=2**24,
        resume="same",
        compiled=True,
    )
    # Parameters, norms, sums and the loss stay in float32.
    compute_dtype: Literal["bfloat16", "float32"] = setting(
        "bfloat16", "dtype of the operands of matrix products", compiled=True
    )
    unroll: Literal["auto", "all", "none"] = setting(
        "auto",
        "which blocks of layers are compiled one after another in place of one loop; auto: all of a"
        " shallow model on a CPU",
        compiled=True,
    )
    kernels: Literal["auto", "off"] = setting(
        "auto",
        "kernels of our own for the mixers: on a GPU (auto), or never (off)",
        compiled=True,
    )
    # Level 1 on one L4 (22.5 GiB) needs 26.4 GiB with none, which does not fit, and 8.1 with dots.
    remat: Literal["none", "dots", "full"] = setting(
        "dots",
        "activation checkpointing: the backward pass recomputes nothing (none), all but the dense"
        " products (dots), or everything (full)",
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
    """Evaluation on held-out text."""

    eval_every: Int = positive(500, "steps between two evaluations")
    eval_windows: Int = positive(64, "held-out windows of seq_len tokens to evaluate, per dataset")
    # 1 is the length of training, with which the others are compared.
    eval_lengths: Annotated[Ints, AfterValidator(_lengths)] = setting(
        (1, 2, 4),
        "context lengths of the extrapolation table, as multiples of seq_len",
        compiled=True,
    )
    # The same last seq_len tokens of each, with more context in front: a difference is not chance.
    extrapolation_windows: Int = positive(
        64, "windows of long held-out documents to evaluate at every context length, per dataset"
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputConfig:
    """Weights & Biases, beside the console and metrics.jsonl."""

    wandb_mode: Literal["auto", "online", "offline", "disabled"] = setting(
        "auto",
        "Weights & Biases: auto is online if there is an API key, and offline if not",
        resume="silent",
    )
    wandb_project: Text = setting(
        "spectral-jax-scaling", "Weights & Biases project", resume="silent"
    )
