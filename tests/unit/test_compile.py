"""The described mesh and the programs, for fake devices and, where it can be, for an L4."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
import pytest

from spectral_dist.planning import compile as planning
from spectral_dist.planning.compile import (
    Program,
    abstract_batch,
    compile_programs,
    cuda_plugin,
    described_mesh,
    evaluation_shapes,
    fake_devices,
    find_compiler,
    find_defects,
    local_bytes,
)
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.state import abstract_state

needs_plugin = pytest.mark.skipif(cuda_plugin() is None, reason="needs the CUDA compiler plugin")


def tiny(**changes: object) -> Config:
    values = {
        "mesh": "2x2x1",
        "hidden_dim": 16,
        "head_dim": 8,
        "num_layers": 1,
        "layer_pattern": "spectral",
        "mlp_dim": 32,
        "num_poles": 4,
        "chunk_size": 8,
        "seq_len": 16,
        "batch_size": 8,
        "compute_dtype": "float32",
        "remat": "none",
        "eval_lengths": "2",
    }
    return resolve(from_flat(values | changes))


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    config = tiny()
    before = jax.live_arrays()  # held: those of other tests are not freed in between
    found = list(compile_programs(config, described_mesh(None, config.mesh.shape, 4)))
    assert len(jax.live_arrays()) == len(before), "an array was made"
    return found


def test_the_programs_are_those_of_a_run(programs: list[Program]) -> None:
    names = [program.name for program in programs]
    assert names == ["train step", "evaluation 1x", "evaluation 2x", "initial state", "restore"]
    assert all(program.text for program in programs[:-1])


def test_memory_is_that_of_the_shapes(programs: list[Program]) -> None:
    config = tiny()
    mesh = described_mesh(None, config.mesh.shape, 4)
    state, batch = abstract_state(config, mesh), abstract_batch(config, mesh)
    step, short, long, init, restore = programs
    assert step.arguments == local_bytes(state) + local_bytes(batch)
    assert step.aliased == local_bytes(state)
    assert step.parameters == local_bytes(state.params)
    assert step.optimizer_state == local_bytes(state.opt_state)
    assert step.batch == local_bytes(batch)
    # What is left are the three counters of the state.
    assert step.arguments - step.parameters - step.optimizer_state - step.batch == 3 * 4
    assert short.parameters + short.batch == short.arguments
    assert step.resident == config.data.prefetch_steps * local_bytes(batch)
    assert step.temporaries > 0
    assert step.peak == step.arguments + step.temporaries + step.resident + (
        step.outputs - step.aliased
    )
    # The moments wait while the parameters are evaluated.
    opt_state = local_bytes(state) - local_bytes(state.params)
    assert short.resident == opt_state + step.resident
    assert short.arguments == local_bytes(state.params) + 2 * 17
    assert long.arguments == local_bytes(state.params) + 1 * 33
    assert restore.peak == local_bytes(state)
    # The compiler counts the table of pointers to the outputs, 8 bytes for each array.
    assert init.outputs == local_bytes(state) + 8 * len(jax.tree.leaves(state))


def test_local_bytes_counts_one_shard() -> None:
    config = tiny()
    mesh = described_mesh(None, config.mesh.shape, 4)
    batch = abstract_batch(config, mesh)
    assert local_bytes(batch) == math.prod(batch.shape) // 4


def test_evaluation_has_the_rows_of_training() -> None:
    config = tiny(batch_size=16, eval_lengths="4,8")
    mesh = described_mesh(None, config.mesh.shape, 4)
    shapes = [(n, t.shape, targets) for n, t, targets in evaluation_shapes(config, mesh)]
    assert shapes == [
        ("evaluation 1x", (16, 17), 16),
        ("evaluation 4x", (4, 65), 16),
        ("evaluation 8x", (4, 129), 16),  # one row for each of the four shards
    ]


def devices_in_order(mesh: jax.sharding.Mesh) -> np.ndarray:
    return np.vectorize(lambda device: device.id)(mesh.devices)


def test_tensor_lies_inside_a_host_and_data_across() -> None:
    ids = devices_in_order(described_mesh(None, (2, 2, 2), 4)) % 8
    hosts = ids // 4
    assert (ids.ravel() == np.arange(8)).all()
    assert (hosts == hosts[:, :1, :1]).all(), "fsdp and tensor lie inside a host"
    assert hosts[:, 0, 0].tolist() == [0, 1], "data spans the hosts"


@pytest.mark.parametrize(
    ("shape", "per_host", "text"),
    [
        ((1, 6, 1), 4, "mesh=1x6x1: its 6 devices do not fill hosts of gpus_per_host=4"),
        ((1, 1, 8), 4, "mesh=1x1x8: its last number, 8, must divide gpus_per_host=4"),
        ((16, 1, 1), 4, "16 devices are wanted, but XLA made 8"),
    ],
)
def test_meshes_that_cannot_be(shape: tuple[int, int, int], per_host: int, text: str) -> None:
    jax.devices()
    with pytest.raises(ValueError, match=text):
        described_mesh(None, shape, per_host)


def test_without_the_plugin_the_cpu_compiler_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "cuda_plugin", lambda: None)
    gpu = find_gpu("l4")
    compiler = find_compiler(gpu)
    assert (compiler.kind, compiler.exact) == ("cpu", False)
    assert find_compiler(None).exact
    assert described_mesh(gpu, (1, 2, 1), 2).devices[0, 0, 0].platform == "cpu"


def test_fake_devices_never_shrink_what_is_there() -> None:
    assert len(fake_devices(1)) == 1
    assert len(jax.devices()) == 8


def test_defects_are_found_in_the_log() -> None:
    line = "W0000 spmd_partitioner.cc:1] [SPMD] Involuntary full rematerialization. The compiler x"
    assert find_defects(["noise", line, line]) == (line,)
    assert find_defects(["noise"]) == ()


def test_the_compilers_words_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    class Lowered:
        def compile(self) -> jax.stages.Compiled:
            os.write(2, b"involuntary full rematerialization of x\n")
            return jax.jit(lambda x: x + 1).lower(1.0).compile()

    config = tiny(mesh="1x1x1")
    mesh = described_mesh(None, config.mesh.shape, 1)
    lower: Callable[[], jax.stages.Lowered] = Lowered  # type: ignore[assignment]
    program = planning._compile("step", mesh, lower, resident=3)
    assert program.warnings == ("involuntary full rematerialization of x",)
    assert program.resident == 3


def test_a_refusal_is_one_line() -> None:
    def refuse() -> jax.stages.Lowered:
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: no such thing\nmore")

    mesh = described_mesh(None, (1, 1, 1), 1)
    with pytest.raises(ValueError, match=r"^step: the compiler refused it: UNIMPLEMENTED: no such"):
        planning._compile("step", mesh, refuse, resident=0)


@needs_plugin
@pytest.mark.slow
def test_the_l4_compiles_a_step_over_two_hosts() -> None:
    config = tiny(mesh="2x2x1")
    mesh = described_mesh(find_gpu("l4"), config.mesh.shape, 2)
    step = next(compile_programs(config, mesh))
    assert step.temporaries > 0
    assert step.aliased == local_bytes(abstract_state(config, mesh))
    assert "replica_groups" in step.text
    assert dataclasses.asdict(find_compiler(find_gpu("l4")))["exact"]
