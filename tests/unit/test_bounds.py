"""The lower bounds, against what the compiler and the model say of the same candidates."""

import math
from typing import Any

import pytest

from spectral_dist.model.flops import dense_flops
from spectral_dist.model.lm import describe_model
from spectral_dist.planning.compile import described_mesh, local_bytes
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.hlo.collectives import mesh_sizes
from spectral_dist.planning.roofline import rates_of
from spectral_dist.planning.search.bounds import (
    TimeBound,
    find_shapes,
    kernel_floor,
    memory_bound,
    saved_bytes,
    time_bound,
)
from spectral_dist.planning.search.worker import answer
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.state import abstract_state

pytestmark = pytest.mark.slow

L4 = rates_of(find_gpu("l4"))


def small(**changes: Any) -> Config:
    values = {
        "mesh": "2x2x1",
        "hidden_dim": 32,
        "head_dim": 8,
        "num_layers": 4,
        "layer_pattern": "spectral,window",
        "mlp_dim": 64,
        "num_poles": 4,
        "chunk_size": 8,
        "window": 8,
        "seq_len": 32,
        "batch_size": 8,
        "compute_dtype": "float32",
        "unroll": "none",  # the bounds are those of a loop, which deep models keep
        "eval_lengths": "1",
    }
    return resolve(from_flat(values | changes))


def level3(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "mesh": "4x8x1",
        "hidden_dim": 2048,
        "num_layers": 48,
        "mlp_dim": 5632,
        "chunk_size": 64,
        "batch_size": 64,
        "accum_steps": 4,
        "remat": "full",
    }
    return resolve(from_flat(values | changes))


def test_the_shapes_are_those_of_the_state() -> None:
    for mesh in ("1x1x1", "2x2x1", "1x2x2"):
        config = small(mesh=mesh)
        shapes = find_shapes(config)
        state = abstract_state(
            config, described_mesh(None, config.mesh.shape, 4 if mesh != "1x1x1" else 1)
        )
        assert shapes.local_bytes(mesh_sizes(config)) == local_bytes(state.params)
        assert shapes.copies == 3  # the parameters and Adam's two moments
    with pytest.raises(ValueError, match="cannot be divided by fsdp=3"):
        shapes.local_bytes({"data": 1, "fsdp": 3, "tensor": 1})


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize(("mesh", "accum"), [("2x2x1", 1), ("1x2x2", 2)])
def test_no_program_needs_less_than_its_bound(mesh: str, accum: int, remat: str) -> None:
    config = small(mesh=mesh, accum_steps=accum, remat=remat)
    shapes = find_shapes(config)
    request = {"config": config.flat(), "gpu": None, "per_host": 4, "unlimited": False}
    outcome = answer(request | {"whole": False})["outcome"]
    needs = memory_bound(config, shapes)
    assert outcome["peak"] >= needs
    # Sound is not enough: a bound that says little leaves all to the compiler.
    assert needs > outcome["peak"] / 4
    bound = time_bound(config, shapes, rates_of(None), 4)
    assert outcome["kernel_seconds"] >= bound.kernel_seconds > 0
    assert outcome["communication_seconds"] >= bound.communication_seconds > 0


def test_what_is_saved_grows_with_rows_and_shrinks_with_what_is_computed_again() -> None:
    none, dots, full = (saved_bytes(small(remat=remat)) for remat in ("none", "dots", "full"))
    assert none > dots > full
    assert full > 4 * 2 * 32 * 32 * 4  # layers, rows on a device, tokens, width, bytes
    assert saved_bytes(small(remat="dots", batch_size=16)) == 2 * dots
    # Each layer's input lies whole on every tensor shard.
    assert dots / 2 < saved_bytes(small(remat="dots", mesh="2x1x2", batch_size=4)) < dots


def test_memory_of_level_3_is_bound_from_below() -> None:
    """Measured: 3.36 + 4.90 GiB on 4x8x1; `none` needs 107 GiB with 4 rows on a device."""
    gib = 2**30
    config = level3()
    shapes = find_shapes(config)
    assert 5 * gib < memory_bound(config, shapes) < 8.26 * gib
    none = level3(remat="none", batch_size=128, accum_steps=2)
    assert 80 * gib < memory_bound(none, shapes) < 107 * gib


def test_time_of_level_3_is_bound_from_below() -> None:
    """Measured by the model: 2.449 s of arithmetic, 2.789 s of collectives."""
    config = level3()
    shapes = find_shapes(config)
    bound = time_bound(config, shapes, L4, 8)
    assert 2.2 < bound.kernel_seconds < 2.449 + 0.2  # and the update
    assert 2.7 < bound.communication_seconds < 2.789


def test_what_is_done_again_counts_where_a_loop_keeps_it_apart() -> None:
    spec = describe_model(small(remat="full"), 256)
    assert dense_flops(spec, "dots") == 6 * spec.matrix_size
    last = 4 * 32 * 64  # the MLPs' last products
    layers = spec.matrix_size - 32 * 256
    assert dense_flops(spec, "full") == 6 * spec.matrix_size + 2 * (layers - last)
    once = describe_model(small(remat="full", num_layers=2), 256)
    assert dense_flops(once, "full") == 6 * once.matrix_size


def test_the_parts_of_a_bound() -> None:
    bound = TimeBound(2.0, 3.0)
    assert bound.seconds(1.0) == 5.0
    assert bound.seconds(0.5) == 3.5
    assert bound.seconds(0.0) == 3.0, "collectives run one after another"


def test_a_floor_covers_what_can_only_fall_behind() -> None:
    of = level3(mesh="1x32x1", batch_size=256, accum_steps=1)
    shapes = find_shapes(of)

    def floor(other: Config, of: Config = of) -> float:
        return kernel_floor(7.0, of, other, shapes, L4)

    assert floor(of) == 7.0
    assert floor(level3(mesh="1x32x1", batch_size=64)) == 7.0
    # More of the state on a device: nothing is taken off. Less of it, or of the weights: a little.
    assert 6.5 < floor(level3(mesh="4x8x1", batch_size=64)) <= 7.0
    assert 6.5 < floor(level3(mesh="1x8x4", batch_size=64)) < 7.0
    assert floor(level3(mesh="1x32x1", batch_size=64, remat="dots")) == 0.0
    split = level3(mesh="1x8x4", batch_size=64)
    assert floor(of, split) == 0.0, "channels are split less"
    assert floor(of, level3(mesh="1x32x1", batch_size=64)) == 0.0, "larger micro-batches"
    assert 6 < floor(level3(mesh="1x32x1", batch_size=64), level3(mesh="4x8x1")) < 7.0
    assert math.isclose(kernel_floor(1e-6, of, split, shapes, L4), 0.0)
