"""The compiled training step, read as text: what crosses between devices, how often, how much."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from spectral_dist.settings import Config
from spectral_dist.training.state import abstract_state, init_state

MESHES = ("8x1x1", "1x8x1", "1x1x8", "2x2x2")
Read = Callable[[str], list[Any]]
MakeConfig = Callable[..., Config]
MakeMesh = Callable[[Config], Mesh]


def state_bytes(config: Config, mesh: Mesh) -> tuple[int, int]:
    """Return the bytes of a state, all of it and one device's share, from its description."""
    leaves = jax.tree.leaves(abstract_state(config, mesh))
    return (
        sum(s.dtype.itemsize * int(np.prod(s.shape)) for s in leaves),
        sum(s.dtype.itemsize * int(np.prod(s.sharding.shard_shape(s.shape))) for s in leaves),
    )


# ---- the mixer ----


@pytest.mark.parametrize("mesh", MESHES)
def test_no_collective_comes_from_inside_a_mixer(
    model: MakeConfig, compiled_step: Callable[[Config], Any], collectives: Read, mesh: str
) -> None:
    config = model(mesh)
    found = collectives(compiled_step(config).as_text())
    assert found
    for c in found:
        # The accumulation is itself a shard_map over data: what counts is the one inside it.
        inner = c.origin.replace("jit(train_step)/shard_map/", "")
        assert set(re.findall(r"shard_map/([\w/]+)", inner)) <= {"psum"}, c.line
        # And no kernel of a chunk, [channels, C or N or C + N, C], crosses before it is collapsed
        # to the coefficients that it was made of.
        chunk, poles, dim = (
            config.mixers.spectral.chunk_size,
            config.mixers.spectral.num_poles,
            config.model.hidden_dim,
        )
        for shape in c.shapes:
            kernel = len(shape) >= 3 and shape[-1] == chunk
            kernel = kernel and shape[-2] in (chunk, poles, chunk + poles)
            assert not (kernel and shape[-3] in (dim, dim // 2, dim // 8)), c.line


# ---- the gradient ----


def test_gradients_cross_data_once_a_step_whatever_is_accumulated(
    model: MakeConfig, mesh_of: MakeMesh, compiled_step: Callable[[Config], Any], collectives: Read
) -> None:
    sizes = []
    for accum_steps in (2, 4):
        config = model("8x1x1", accum_steps=accum_steps)
        found = collectives(compiled_step(config).as_text())
        assert {c.kind for c in found} == {"all-reduce"}
        assert [c.line for c in found if c.in_loop] == []
        sizes.append((len(found), sum(c.bytes for c in found)))
    assert sizes[0] == sizes[1]
    # Every gradient once, in float32, and the two sums: of the loss and of the tokens.
    params = abstract_state(config, mesh_of(config)).params
    expected = 4 * sum(int(np.prod(s.shape)) for s in jax.tree.leaves(params)) + 8
    assert sizes[0][1] == expected


def test_what_is_inside_a_loop_is_recognised(
    model: MakeConfig, compiled_step: Callable[[Config], Any], collectives: Read
) -> None:
    """On tensor, every layer of a micro-batch sums what w_out gives; the norm is summed once."""
    found = collectives(compiled_step(model("1x1x8")).as_text())
    assert any(c.in_loop and (8, 32, 64) in c.shapes for c in found)
    assert any(not c.in_loop for c in found)


def test_on_tensor_nothing_is_ever_gathered(
    model: MakeConfig, compiled_step: Callable[[Config], Any], collectives: Read
) -> None:
    found = collectives(compiled_step(model("1x1x8")).as_text())
    assert {c.kind for c in found} == {"all-reduce"}


@pytest.mark.parametrize("mesh", ["1x8x1", "2x2x2"])
def test_the_running_sum_of_gradients_stays_divided(
    model: MakeConfig, compiled_step: Callable[[Config], Any], collectives: Read, mesh: str
) -> None:
    """A parameter is gathered to be used, never a sum of gradients to be added to."""
    found = collectives(compiled_step(model(mesh)).as_text())
    gathers = [c for c in found if c.kind == "all-gather"]
    assert gathers
    of_sums = ("/add", "/sharding_constraint")
    assert [c.line for c in gathers if c.origin.endswith(of_sums)] == []


# ---- memory ----


def test_fsdp_divides_the_state_by_the_devices(
    model: MakeConfig, mesh_of: MakeMesh, compiled_step: Callable[[Config], Any]
) -> None:
    changes = {"hidden_dim": 256, "head_dim": 32, "mlp_dim": 704, "layer_pattern": "spectral"}
    config = model("1x8x1", **changes)
    mesh = mesh_of(config)
    total, share = state_bytes(config, mesh)
    with jax.set_mesh(mesh):
        state = init_state(config, mesh)
    first = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    assert total > 50e6
    assert held == share
    assert held == pytest.approx(total / 8, rel=0.02)
    memory = compiled_step(config).memory_analysis()
    tokens = 2 * 8 // 8 * (32 + 1)
    assert memory.argument_size_in_bytes == pytest.approx(held + tokens, rel=0.001)
    assert memory.alias_size_in_bytes == pytest.approx(held, rel=0.001)  # donated


# ---- what the compiler has to say ----

PROGRAM = """
    import json, sys
    import jax, jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    jax.config.update("jax_num_cpu_devices", 8)
    from spectral_dist.settings import from_flat, resolve
    from spectral_dist.mesh import make_mesh
    from spectral_dist.training.state import abstract_state
    from spectral_dist.training.step import batch_sharding, make_train_step

    mesh = make_mesh((2, 2, 2))
    if sys.argv[1] == "control":  # looking rows up in a table that is divided along its rows
        def place(*spec):
            return NamedSharding(mesh, PartitionSpec(*spec))

        def look_up(table, tokens):
            rows = ("data", "fsdp")
            return jax.lax.with_sharding_constraint(table[tokens], place(rows, None, None))

        table = jax.ShapeDtypeStruct((256, 64), jnp.float32, sharding=place(None, "fsdp"))
        tokens = jax.ShapeDtypeStruct((8, 32), jnp.int32, sharding=place(("data", "fsdp"), None))
        jax.jit(look_up).lower(table, tokens).compile()
    else:
        config = resolve(from_flat(json.loads(sys.argv[1])))
        place = batch_sharding(config, mesh)
        shape = (config.data.accum_steps, config.data.batch_size, config.data.seq_len + 1)
        tokens = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=place)
        with jax.set_mesh(mesh):
            lowered = make_train_step(config, mesh).lower(abstract_state(config, mesh), tokens)
            lowered.compile()
    print("compiled")
"""
WARNING = "nvoluntary full rematerialization"


def compile_apart(argument: str) -> str:
    """Compile in a program of its own, without the cache; return what it wrote to stderr."""
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    environment |= {"PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), argument],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout == "compiled\n", done.stderr[-2000:]
    return done.stderr


def test_the_step_needs_no_involuntary_rematerialization(model: MakeConfig) -> None:
    stderr = compile_apart(json.dumps(model("2x2x2").flat()))
    assert WARNING not in stderr, stderr


def test_the_warning_would_be_seen() -> None:
    assert WARNING in compile_apart("control")
