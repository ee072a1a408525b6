"""The settings: one frozen dataclass for each concern, one flat set of names for the user.

The same names are the keys of a YAML file and the flags of the command line. Every field declares
its help text; `resolve` checks every value and fills in the derived defaults: nobody else sees
`None` for a number. Imports no JAX. Read `resolve`; the command line is read in `command_line`.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field, fields
from typing import Any

MESH_AXES = ("data", "fsdp", "tensor")
AUTO_MESH = "auto"  # stands for the mesh that is still to be chosen
MIXERS = ("spectral", "window", "attention")


def setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """Declare one setting: its default, what it means (with its unit) and its choices."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run: its name, its length, how often it reports and saves."""

    run_name: str = setting("default", "name of the run; its folder is CHECKPOINT_DIR/RUN_NAME")
    checkpoint_dir: str = setting("checkpoints", "folder that holds one folder for each run")
    seed: int = setting(0, "seed of the initial parameters and of the order of the data")
    steps: int = setting(10_000, "length of the run, in optimizer steps")
    log_every: int = setting(10, "steps between two lines of metrics")
    save_every: int = setting(500, "steps between two checkpoints")
    keep: int = setting(2, "latest checkpoints kept, beside the best by validation")
    max_bad_steps: int = setting(10, "non-finite steps in a row after which the run stops")
    start_timeout: float = setting(300.0, "time for all processes to report in, in seconds")
    hang_timeout: float = setting(600.0, "time without progress that means a hang, in seconds")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The devices."""

    mesh: str = setting("1x1x1", "devices as DATAxFSDPxTENSOR, their count; or auto, to choose")

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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text and how it becomes batches."""

    data_paths: tuple[str, ...] = setting((), "text files, joined by commas; one source each")
    data_weights: tuple[float, ...] = setting((), "share of each source (default: equal)")
    validation_fraction: float = setting(
        0.01, "share of each source's tail held out for validation"
    )
    seq_len: int = setting(2048, "training length, in tokens (bytes)")
    batch_size: int = setting(16, "sequences in a micro-batch, over all devices")
    accum_steps: int = setting(1, "micro-batches in a step; batch_size x accum_steps is the batch")
    prefetch_steps: int = setting(2, "batches made ready ahead of the device, in steps")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model. Everything here must be the same when a run is resumed, but for the last three."""

    hidden_dim: int = setting(512, "width D of the residual stream, in channels")
    num_layers: int = setting(12, "layers, each a mixer and a SwiGLU")
    layer_pattern: str = setting(
        "spectral,spectral,window",
        f"mixers from the first layer on, repeated to the depth; of {', '.join(MIXERS)}",
    )
    mlp_dim: int | None = setting(None, "inner width of SwiGLU (default: 8/3 D rounded up to 64)")
    head_dim: int = setting(64, "channels of an attention head and of a normalised group")
    num_kv_heads: int | None = setting(None, "heads of keys and values (default: half the heads)")
    window: int = setting(512, "reach of window attention, in tokens")
    num_poles: int = setting(16, "state size N of the spectral mixer, for each channel")
    tau_min: float = setting(0.5, "shortest time constant of the spectral mixer, in tokens")
    tau_max: float | None = setting(
        None,
        "longest time constant, in tokens (default: seq_len / 4; above it, no extrapolation)",
    )
    conv_width: int = setting(4, "taps of the short convolution, in tokens")
    chunk_size: int = setting(128, "tokens in a chunk of the chunked form")
    spectral_form: str = setting(
        "chunked",
        "how training computes the spectral mixer",
        choices=("chunked", "fft", "recurrent"),
    )
    compute_dtype: str = setting(
        "bfloat16", "type of the matrix products' operands", choices=("bfloat16", "float32")
    )
    remat: str = setting(
        "dots",
        "what the backward pass computes again: nothing, all but the dense products, or all",
        choices=("none", "dots", "full"),
    )

    @property
    def pattern(self) -> tuple[str, ...]:
        """The names of the mixers in `layer_pattern`."""
        return tuple(name.strip() for name in self.layer_pattern.split(","))


# A checkpoint does not depend on these settings of the model: they change how it is computed.
COMPUTE_SETTINGS = ("chunk_size", "spectral_form", "compute_dtype", "remat")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule and the loss."""

    lr: float = setting(1e-3, "peak learning rate")
    warmup_steps: int | None = setting(None, "steps of linear warm-up (default: 5% of steps)")
    schedule: str = setting(
        "cosine", "decay of the learning rate after warm-up", choices=("cosine", "wsd")
    )
    decay_fraction: float = setting(0.2, "share of the steps that wsd decays over, at the end")
    final_lr_fraction: float = setting(0.1, "last learning rate, as a share of the peak")
    weight_decay: float = setting(0.1, "AdamW's decay, of the matrices alone")
    beta1: float = setting(0.9, "AdamW's decay of the first moment")
    beta2: float = setting(0.95, "AdamW's decay of the second moment")
    adam_eps: float = setting(1e-8, "AdamW's epsilon")
    clip_norm: float = setting(1.0, "largest global norm of the gradient; above it is scaled down")
    z_loss: float = setting(0.0, "weight of the squared log of the softmax's sum (1e-4 is usual)")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The measurements on held-out text."""

    eval_every: int = setting(500, "steps between two evaluations")
    eval_windows: int = setting(64, "held-out windows of seq_len tokens scored for each source")
    eval_lengths: tuple[int, ...] = setting(
        (1, 2, 4), "context lengths of the extrapolation table, as multiples of seq_len"
    )
    extrapolation_windows: int = setting(
        64, "windows of long held-out documents scored at every context length, for each source"
    )


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the figures go beside the console and metrics.jsonl."""

    wandb_mode: str = setting(
        "auto",
        "Weights & Biases: auto is online with a key and offline without",
        choices=("auto", "online", "offline", "disabled"),
    )
    wandb_project: str = setting("spectral-jax-scaling", "Weights & Biases project")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings, by concern. The user sees one flat set of names."""

    run: RunConfig = RunConfig()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvalConfig = EvalConfig()
    output: OutputConfig = OutputConfig()

    def flat(self) -> dict[str, Any]:
        """Every setting by its flat name, tuples as lists: what config.yaml holds."""
        values: dict[str, Any] = {}
        for group in fields(self):
            values |= dataclasses.asdict(getattr(self, group.name))
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


SETTINGS: dict[str, tuple[str, dataclasses.Field[Any]]] = {
    f.name: (group.name, f)
    for group in fields(Config)
    for f in fields(typing.cast(Any, group.type))
}


def from_flat(values: dict[str, Any]) -> Config:
    """Build a Config from flat names, each value converted to its setting's type.

    Raises:
      ValueError: names the setting whose value has the wrong type.
    """
    groups: dict[str, dict[str, Any]] = {group.name: {} for group in fields(Config)}
    for name, value in values.items():
        group, declared = SETTINGS[name]
        groups[group][name] = _convert(name, value, declared)
    built = {g.name: typing.cast(Any, g.type)(**groups[g.name]) for g in fields(Config)}
    return Config(**built)


def _convert(name: str, value: Any, declared: dataclasses.Field[Any]) -> Any:
    """Convert a flag's text or a YAML value to the type of its field."""
    kind: Any = declared.type
    if isinstance(kind, types.UnionType):  # X | None: None stands for the derived default
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            parts = [parts]
        parts = [p.strip() if isinstance(p, str) else p for p in parts]
        return tuple(_scalar(name, part, item) for part in parts if part != "")
    converted = _scalar(name, value, kind)
    choices = declared.metadata["choices"]
    if choices and converted not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}")
    return converted


def _scalar(name: str, value: Any, kind: type) -> Any:
    words = {int: "an integer", float: "a number", str: "text"}
    wrong = ValueError(f"{name}={value!r}: must be {words[kind]}")
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        raise wrong
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    try:
        # YAML reads 3e-4 as text and 50_000 as a number: both are numbers to the user.
        number = float(value)
        if kind is int:
            number = int(value) if isinstance(value, str) else number
            if number != int(number):
                raise wrong
            return int(number)
    except (ValueError, OverflowError) as error:
        raise wrong from error
    return number


def resolve(config: Config) -> Config:
    """Check every value and fill in the derived defaults.

    Raises:
      ValueError: names the setting, its value and the rule it breaks.
    """
    from spectral_dist.data.weights import normalise_weights

    _check_ranges(config)
    data, model, optimizer = config.data, config.model, config.optimizer
    if data.data_paths:
        normalise_weights(data.data_weights, data.data_paths)
    heads = model.hidden_dim // model.head_dim
    filled = dataclasses.replace(
        model,
        mlp_dim=model.mlp_dim or -(-model.hidden_dim * 8 // 3 // 64) * 64,
        num_kv_heads=model.num_kv_heads or max(1, heads // 2),
        tau_max=model.tau_max or max(data.seq_len / 4, 2 * model.tau_min),
    )
    if optimizer.warmup_steps is None:
        optimizer = dataclasses.replace(optimizer, warmup_steps=max(1, config.run.steps // 20))
    config = dataclasses.replace(config, model=filled, optimizer=optimizer)
    _check_relations(config)
    return config


# Every other number must be positive.
_AT_LEAST_ZERO = ("seed", "weight_decay", "z_loss", "warmup_steps")
_BELOW_ONE = ("beta1", "beta2", "final_lr_fraction", "decay_fraction")


def _check_ranges(config: Config) -> None:
    for name, value in config.flat().items():
        if isinstance(value, int | float):
            _check_number(name, value)
    held_out = config.data.validation_fraction
    if held_out >= 1:
        raise ValueError(f"validation_fraction={held_out}: must be above 0 and below 1")
    lengths = config.evaluation.eval_lengths
    if not lengths or min(lengths) < 1:
        raise ValueError(f"eval_lengths={','.join(map(str, lengths))}: must be positive integers")
    name = config.run.run_name
    if not name or name in (".", "..") or any(c in name for c in "/\\\0\n"):
        raise ValueError(f"run_name={name!r}: must name one folder")


def _check_number(name: str, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be finite")
    if name in _AT_LEAST_ZERO and value < 0:
        raise ValueError(f"{name}={value}: must not be negative")
    if name in _BELOW_ONE and not 0 <= value < 1:
        raise ValueError(f"{name}={value}: must be at least 0 and below 1")
    if value <= 0 and name not in (*_AT_LEAST_ZERO, *_BELOW_ONE):
        raise ValueError(f"{name}={value}: must be positive")
    if value >= 2**31:
        raise ValueError(f"{name}={value}: must be below 2**31")


def _check_relations(config: Config) -> None:
    data, model, run = config.data, config.model, config.run
    # A mesh that is still to be chosen asks for no more than one device does.
    mesh = MeshConfig() if config.mesh.mesh == AUTO_MESH else config.mesh
    if data.batch_size % (shards := math.prod(mesh.shape[:2])):
        raise ValueError(
            f"batch_size={data.batch_size}: must be a multiple of data x fsdp = {shards} of"
            f" mesh={mesh.mesh}"
        )
    for name in model.pattern:
        if name not in MIXERS:
            raise ValueError(
                f"layer_pattern={model.layer_pattern!r}: {name!r} is not one of {', '.join(MIXERS)}"
            )
    _check_heads(model, mesh)
    if typing.cast(float, model.tau_max) <= model.tau_min:
        raise ValueError(f"tau_max={model.tau_max}: must be above tau_min={model.tau_min}")
    if model.num_poles > 64:
        raise ValueError(f"num_poles={model.num_poles}: must be at most 64, or the poles coincide")
    if (warmup := typing.cast(int, config.optimizer.warmup_steps)) > run.steps:
        raise ValueError(f"warmup_steps={warmup}: must be at most steps={run.steps}")


def _check_heads(model: ModelConfig, mesh: MeshConfig) -> None:
    dim, size, tensor = model.hidden_dim, model.head_dim, mesh.shape[2]
    kv_heads = typing.cast(int, model.num_kv_heads)
    if dim % size:
        raise ValueError(f"hidden_dim={dim}: must be a multiple of head_dim={size}")
    if size % 2:
        raise ValueError(f"head_dim={size}: must be even, for rotary positions")
    heads = f"the {dim // size} heads of hidden_dim={dim} and head_dim={size}"
    if dim // size % kv_heads:
        raise ValueError(f"num_kv_heads={kv_heads}: must divide {heads}")
    if dim // size % tensor:
        raise ValueError(f"mesh={mesh.mesh}: tensor={tensor} must divide {heads}")
    if kv_heads % tensor and set(model.pattern) != {"spectral"}:
        raise ValueError(f"mesh={mesh.mesh}: tensor={tensor} must divide num_kv_heads={kv_heads}")
