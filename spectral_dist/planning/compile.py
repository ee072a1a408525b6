"""Ahead-of-time compilation of a run's programs, for GPUs that are not attached.

Owns the described mesh and the list of programs: the training step, every evaluation step and the
initial state. They are the functions that a run itself compiles, lowered from shapes alone. Judges
nothing. Read `described_mesh`, then `compile_programs`.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.mesh import RULES, make_mesh
from spectral_dist.planning.hardware import Gpu
from spectral_dist.settings import MESH_AXES, Config
from spectral_dist.training.evaluation import sequences_at_once
from spectral_dist.training.state import TrainState, abstract_state, make_init
from spectral_dist.training.step import batch_sharding, make_eval_step, make_train_step

INSTALL_HINT = "pip install 'spectral-dist[dryrun]'"
# jax-cuda12-plugin brings the module jax_plugins.xla_cuda12, and so on.
_PLUGINS = ("cuda12", "cuda13")
# XLA's warning that it must replicate an array to reshard it, without its first letter, so that
# either case is found. It costs memory and traffic: an embedding lookup once caused it.
_REMATERIALIZED = "nvoluntary full rematerialization"


@dataclass(frozen=True)
class Program:
    """One compiled program, in bytes per device.

    Attributes:
      name: as the report shows it, "train step" or "evaluation 4x".
      arguments: size of its inputs.
      outputs: size of its results.
      aliased: the part of the outputs that is written over donated arguments.
      temporaries: scratch memory while it runs.
      resident: other arrays in device memory while it runs, such as prefetched batches.
      text: the optimized HLO; empty where nothing is compiled.
      seconds: time of the compilation.
      warnings: full rematerializations that the compiler reported.
      parameters: the part of the arguments that is params.
      optimizer_state: the part that is opt_state.
      batch: the part that is tokens.
    """

    name: str
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    resident: int
    text: str
    seconds: float
    warnings: tuple[str, ...]
    parameters: int = 0
    optimizer_state: int = 0
    batch: int = 0

    @property
    def peak(self) -> int:
        """The peak memory of a device, by the compiler's buffer assignment."""
        # An aliased output lies in the memory of a donated argument: counted once.
        new = max(0, self.outputs - self.aliased)
        return self.arguments + new + self.temporaries + self.resident


@dataclass(frozen=True)
class Compiler:
    """Which of XLA's compilers makes the programs.

    Attributes:
      kind: "cuda" or "cpu".
      exact: whether a run on the planned devices would use the same compiler.
      version: of JAX and of the plugin.
    """

    kind: str
    exact: bool
    version: str


def cuda_plugin() -> str | None:
    """Return the package that holds XLA's compiler for NVIDIA GPUs, or None; it needs no GPU."""
    for version in _PLUGINS:
        # find_spec imports the parent package, which is missing where no plugin is installed.
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(f"jax_plugins.xla_{version}") is not None:
                return f"jax-{version}-plugin"
    return None


def find_compiler(gpu: Gpu | None) -> Compiler:
    """Return the compiler for a GPU, or for the CPU if None."""
    plugin = cuda_plugin()
    if gpu is not None and plugin is not None:
        version = importlib.metadata.version(plugin)
        return Compiler("cuda", True, f"jax {jax.__version__}, {plugin} {version}")
    # For a GPU the CPU compiler is a stand-in: the same sharding, but other fusions and scratch.
    return Compiler("cpu", gpu is None, f"jax {jax.__version__}")


def described_mesh(
    gpu: Gpu | None,
    shape: tuple[int, int, int],
    gpus_per_host: int,
    axes: tuple[str, str, str] = MESH_AXES,
) -> Mesh:
    """Return a mesh of described devices, which need not be attached.

    The last mesh axis lies inside a host, then fsdp; data is the first to span hosts.

    Args:
      gpu: the kind of all devices; fake CPU devices if None. Without the CUDA plugin fake devices
        stand in for the GPU too.
      shape: sizes of the mesh axes.
      gpus_per_host: GPUs of one host.
      axes: their names, as `MeshConfig.axes` says.

    Raises:
      ValueError: as `check_hosts` does, or if there are too few fake devices.
    """
    check_hosts(shape, gpus_per_host)
    count = math.prod(shape)
    if gpu is not None and cuda_plugin() is not None:
        devices = described_devices(gpu, count // gpus_per_host, gpus_per_host)
        return make_mesh(shape, devices, axes)
    return make_mesh(shape, fake_devices(count), axes)


def check_hosts(shape: tuple[int, int, int], gpus_per_host: int) -> None:
    """Check that a mesh fits the hosts.

    Raises:
      ValueError: if it would leave a host partly used, or tensor would span hosts.
    """
    count = math.prod(shape)
    text = "x".join(map(str, shape))
    if count % gpus_per_host:
        raise ValueError(
            f"mesh={text}: its {count} devices do not fill hosts of gpus_per_host={gpus_per_host}"
        )
    # tensor sums activations in every layer, and shards of time wait for each other in every layer:
    # the network between hosts is too slow for that.
    if gpus_per_host % shape[2]:
        raise ValueError(
            f"mesh={text}: its last number, {shape[2]}, must divide gpus_per_host={gpus_per_host},"
            " so that this mesh axis lies inside a host"
        )


def described_devices(gpu: Gpu, hosts: int, gpus_per_host: int) -> Sequence[Any]:
    """Return the devices of a described cluster, host by host; programs compile but cannot run.

    Raises:
      ValueError: if the compiler for NVIDIA GPUs cannot start.
    """
    topology = f"1x{hosts}x{gpus_per_host}"  # slices x hosts of each x GPUs of each
    try:
        # XLA looks for a CUDA driver and logs that there is none, which would alarm the user.
        with tempfile.TemporaryFile() as log, _stderr_into(log):
            described = topologies.get_topology_desc(
                gpu.name, platform="cuda", target_config=gpu.target, topology=topology
            )
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"gpu={gpu.name!r}: {cuda_plugin()} cannot describe {topology}: {reason}"
        ) from error
    return described.devices


def fake_devices(count: int) -> Sequence[Any]:
    """Return fake CPU devices, created now if JAX has not started its CPU backend yet.

    Raises:
      ValueError: if JAX has started with fewer.
    """
    # A count in XLA_FLAGS is the user's own choice: it is not overridden.
    counted = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    settings: Any = jax.config  # its attributes exist at run time only
    if not counted and settings.jax_num_cpu_devices < count:
        with contextlib.suppress(RuntimeError):  # too late: the backend has started
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"{count} devices are wanted, but XLA made {len(devices)} of the processor:"
            f" XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def compile_programs(config: Config, mesh: Mesh) -> Iterator[Program]:
    """Compile the programs of a run one after another, the training step first.

    Allocates no array. A generator, so that a caller can stop at the first program that does not
    fit: compiling one may take a minute.

    Raises:
      ValueError: if the compiler refuses one, or the mesh cannot divide an array.
    """
    state = abstract_state(config, mesh)
    batch = abstract_batch(config, mesh)
    state_bytes, batch_bytes = local_bytes(state), local_bytes(batch)
    # Prefetched batches are on the device already, beside the one that the step reads.
    waiting = config.data.prefetch_steps * batch_bytes
    parameters = local_bytes(state.params)
    # replace(): the sizes of params, opt_state and batch are ours, the others are the compiler's.
    step = make_train_step(config, mesh)
    yield dataclasses.replace(
        _compile("train step", mesh, lambda: step.lower(state, batch), resident=waiting),
        parameters=parameters,
        optimizer_state=local_bytes(state.opt_state),
        batch=batch_bytes,
    )
    eval_step = make_eval_step(config, mesh)
    # An evaluation reads params alone, but the optimizer state keeps its memory meanwhile.
    kept = state_bytes - parameters + waiting
    for name, tokens, targets in evaluation_shapes(config, mesh):
        lower = partial(eval_step.lower, state.params, tokens, targets)
        program = _compile(name, mesh, lower, resident=kept)
        yield dataclasses.replace(program, parameters=parameters, batch=local_bytes(tokens))
    key = jax.eval_shape(lambda: jax.random.key(0))  # the shape of a key: no device is touched
    init = make_init(config, mesh)
    yield _compile("initial state", mesh, lambda: init.lower(key), resident=0)
    # A restore reads arrays straight into their shards: nothing to compile, the state is its peak.
    yield Program("restore", 0, state_bytes, 0, 0, 0, "", 0.0, ())


def abstract_batch(config: Config, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Return the abstract batch of one step, tokens [A, B, T + 1], with its sharding.

    A is the number of gradient accumulation steps.
    """
    data = config.data
    shape = (data.accum_steps, data.batch_size, data.seq_len + 1)
    dtype = find_tokenizer(config).dtype
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(config, mesh))


def evaluation_shapes(
    config: Config, mesh: Mesh
) -> Iterator[tuple[str, jax.ShapeDtypeStruct, int]]:
    """Yield the shapes of each evaluation step, shortest context first.

    Each is a name, tokens [B, k T + 1] and the number of targets, for a context of k times seq_len.
    """
    seq_len = config.data.seq_len
    sequences = NamedSharding(mesh, PartitionSpec(RULES["batch"]))
    dtype = find_tokenizer(config).dtype
    # The validation during training is 1x, whatever eval_lengths compares at the end.
    for k in sorted({1, *config.evaluation.eval_lengths}):
        shape = (sequences_at_once(config, mesh, k), k * seq_len + 1)
        tokens = jax.ShapeDtypeStruct(shape, dtype, sharding=sequences)
        yield f"evaluation {k}x", tokens, seq_len


def local_bytes(tree: TrainState | Any) -> int:
    """Return the bytes that one device holds of a tree of abstract arrays."""
    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    """Return the bytes that one device holds of one abstract array."""
    assert leaf.sharding is not None, "only placed arrays are counted"
    shape = leaf.sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    for length in shape:
        size *= length
    return size


def _compile(
    name: str, mesh: Mesh, lower: Callable[[], jax.stages.Lowered], *, resident: int
) -> Program:
    start = time.perf_counter()
    # XLA gives its warnings to stderr alone. A file and not a pipe: a full pipe would block it.
    with tempfile.TemporaryFile() as log:
        try:
            # The model's sharding constraints are resolved against the mesh in this context.
            with jax.set_mesh(mesh), _stderr_into(log):
                compiled = lower().compile()
        except jax.errors.JaxRuntimeError as error:
            lines = str(error).strip().splitlines() or [""]
            raise ValueError(f"{name}: the compiler refused it: {lines[0]}") from error
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").splitlines()
    stats = compiled.memory_analysis()
    assert stats is not None, "XLA's CPU and CUDA compilers both give the figures"
    return Program(
        name=name,
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        resident=resident,
        text=compiled.as_text() or "",
        seconds=time.perf_counter() - start,
        warnings=find_defects(lines),
    )


def find_defects(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the compiler's warnings of full rematerializations (replicated arrays), each once."""
    return tuple(dict.fromkeys(line.strip() for line in lines if _REMATERIALIZED in line))


@contextlib.contextmanager
def _stderr_into(file: Any) -> Iterator[None]:
    """Redirect file descriptor 2 into a file."""
    # Assigning sys.stderr would miss XLA's log, which C++ code writes to the descriptor itself.
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
