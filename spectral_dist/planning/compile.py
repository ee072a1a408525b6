"""The programs of a run, compiled for devices that are not there.

Owns the described mesh and the list of programs: the training step, every evaluation step and the
initial state, as the run compiles them, from shapes alone. Judges nothing. Read `described_mesh`,
then `compile_programs`.
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
from spectral_dist.settings import Config
from spectral_dist.training.evaluation import sequences_at_once
from spectral_dist.training.state import TrainState, abstract_state, make_init
from spectral_dist.training.step import batch_sharding, make_eval_step, make_train_step

INSTALL_HINT = "pip install 'spectral-dist[dryrun]'"
_PLUGINS = ("cuda12", "cuda13")
_REMATERIALIZED = "nvoluntary full rematerialization"


@dataclass(frozen=True)
class Program:
    """One compiled program, in bytes per device.

    Attributes:
      name: what it does.
      arguments: what it reads.
      outputs: what it returns.
      aliased: the part of the outputs that is written over arguments.
      temporaries: what it needs between.
      resident: what else lies in memory while it runs.
      text: the compiled program; empty where there is none.
      seconds: spent on compiling.
      warnings: what the compiler said against it.
      parameters: the part of the arguments that are parameters.
      optimizer_state: the part that are the optimizer's state.
      batch: the part that are tokens.
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
        """The most memory that is in use at once, by the compiler's plan."""
        new = max(0, self.outputs - self.aliased)
        return self.arguments + new + self.temporaries + self.resident


@dataclass(frozen=True)
class Compiler:
    """Which compiler makes the programs.

    Attributes:
      kind: "cuda" or "cpu".
      exact: whether it is the one that compiles on the devices themselves.
      version: of it.
    """

    kind: str
    exact: bool
    version: str


def cuda_plugin() -> str | None:
    """Return the package that holds the compiler for NVIDIA GPUs, or None; a GPU is not needed."""
    for version in _PLUGINS:
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(f"jax_plugins.xla_{version}") is not None:
                return f"jax-{version}-plugin"
    return None


def find_compiler(gpu: Gpu | None) -> Compiler:
    """Return the compiler for a GPU, or for the processor if None."""
    plugin = cuda_plugin()
    if gpu is not None and plugin is not None:
        version = importlib.metadata.version(plugin)
        return Compiler("cuda", True, f"jax {jax.__version__}, {plugin} {version}")
    return Compiler("cpu", gpu is None, f"jax {jax.__version__}")


def described_mesh(gpu: Gpu | None, shape: tuple[int, int, int], gpus_per_host: int) -> Mesh:
    """Return a mesh of devices that are described and not attached.

    tensor lies inside a host, then fsdp; data spans hosts first.

    Args:
      gpu: the kind of all devices; fake devices of the processor if None. Without the CUDA plugin
        they stand for the GPU.
      shape: sizes of the mesh axes data, fsdp and tensor.
      gpus_per_host: GPUs of one host.

    Raises:
      ValueError: as `check_hosts` does, or if there are too few fake devices.
    """
    check_hosts(shape, gpus_per_host)
    count = math.prod(shape)
    if gpu is not None and cuda_plugin() is not None:
        return make_mesh(shape, described_devices(gpu, count // gpus_per_host, gpus_per_host))
    return make_mesh(shape, fake_devices(count))


def check_hosts(shape: tuple[int, int, int], gpus_per_host: int) -> None:
    """Check that a mesh can be laid over hosts.

    Raises:
      ValueError: if hosts would be filled in part, or tensor would span hosts.
    """
    count = math.prod(shape)
    text = "x".join(map(str, shape))
    if count % gpus_per_host:
        raise ValueError(
            f"mesh={text}: its {count} devices do not fill hosts of gpus_per_host={gpus_per_host}"
        )
    if gpus_per_host % shape[2]:
        raise ValueError(
            f"mesh={text}: tensor={shape[2]} must divide gpus_per_host={gpus_per_host}, so that it"
            " lies inside a host"
        )


def described_devices(gpu: Gpu, hosts: int, gpus_per_host: int) -> Sequence[Any]:
    """Return the devices of a described cluster, host by host; nothing can run on them.

    Raises:
      ValueError: if the compiler for NVIDIA GPUs cannot start.
    """
    topology = f"1x{hosts}x{gpus_per_host}"
    try:
        with tempfile.TemporaryFile() as said, _stderr_into(said):  # it looks for a driver, loudly
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
    """Return devices of the processor, made now if JAX has not started yet.

    Raises:
      ValueError: if JAX has started with fewer.
    """
    counted = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    settings: Any = jax.config  # its attributes are made when it runs
    if not counted and settings.jax_num_cpu_devices < count:
        with contextlib.suppress(RuntimeError):  # it has started
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

    No array is made. Each comes as soon as it is compiled, so that a reader may stop early.

    Raises:
      ValueError: if the compiler refuses one, or the mesh cannot divide an array.
    """
    state = abstract_state(config, mesh)
    batch = abstract_batch(config, mesh)
    state_bytes, batch_bytes = local_bytes(state), local_bytes(batch)
    # The batches made ready wait on the device, and the state waits for the evaluation to end.
    waiting = config.data.prefetch_steps * batch_bytes
    parameters = local_bytes(state.params)
    step = make_train_step(config, mesh)
    yield dataclasses.replace(
        _compile("train step", mesh, lambda: step.lower(state, batch), resident=waiting),
        parameters=parameters,
        optimizer_state=local_bytes(state.opt_state),
        batch=batch_bytes,
    )
    eval_step = make_eval_step(config, mesh)
    kept = state_bytes - parameters + waiting
    for name, tokens, targets in evaluation_shapes(config, mesh):
        lower = partial(eval_step.lower, state.params, tokens, targets)
        program = _compile(name, mesh, lower, resident=kept)
        yield dataclasses.replace(program, parameters=parameters, batch=local_bytes(tokens))
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = make_init(config, mesh)
    yield _compile("initial state", mesh, lambda: init.lower(key), resident=0)
    # The arrays of a checkpoint are read straight into their places: nothing is compiled.
    yield Program("restore", 0, state_bytes, 0, 0, 0, "", 0.0, ())


def abstract_batch(config: Config, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Return the tokens of one step, [A, B, T + 1], where they lie."""
    data = config.data
    shape = (data.accum_steps, data.batch_size, data.seq_len + 1)
    dtype = find_tokenizer(config).dtype
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(config, mesh))


def evaluation_shapes(
    config: Config, mesh: Mesh
) -> Iterator[tuple[str, jax.ShapeDtypeStruct, int]]:
    """Give name, tokens [B, T + 1] and targets of each evaluation step, shortest context first."""
    seq_len = config.data.seq_len
    sequences = NamedSharding(mesh, PartitionSpec(RULES["batch"]))
    dtype = find_tokenizer(config).dtype
    for k in sorted({1, *config.evaluation.eval_lengths}):
        shape = (sequences_at_once(config, mesh, k), k * seq_len + 1)
        tokens = jax.ShapeDtypeStruct(shape, dtype, sharding=sequences)
        yield f"evaluation {k}x", tokens, seq_len


def local_bytes(tree: TrainState | Any) -> int:
    """Return the bytes that one device holds of abstract arrays."""
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
    with tempfile.TemporaryFile() as said:
        try:
            with jax.set_mesh(mesh), _stderr_into(said):
                compiled = lower().compile()
        except jax.errors.JaxRuntimeError as error:
            lines = str(error).strip().splitlines() or [""]
            raise ValueError(f"{name}: the compiler refused it: {lines[0]}") from error
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").splitlines()
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
    """Return what the compiler's log lines say of arrays that it had to make whole again."""
    return tuple(dict.fromkeys(line.strip() for line in lines if _REMATERIALIZED in line))


@contextlib.contextmanager
def _stderr_into(file: Any) -> Iterator[None]:
    """Send what is written to file descriptor 2 into a file: XLA's log knows no other way."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
