"""The mesh, and where the rules put every dimension."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spectral_dist import mesh as mesh_module
from spectral_dist.mesh import (
    RULES,
    constrain,
    constrain_like,
    local,
    make_mesh,
    partition_spec,
    sharding,
)

CUBE = {"data": 2, "fsdp": 2, "tensor": 2}

# Written out by hand: a changed rule must be changed here too, knowingly.
EXPECTED = {
    "batch": ("data", "fsdp"),
    "time": None,
    "width": None,
    "tokens": None,
    "embed": ("fsdp",),
    "channels": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "thin_channels": ("tensor", "fsdp"),
    "norm": ("fsdp",),
    "layers": None,
    "vocab": ("tensor",),
    "branches": None,
    "taps": None,
    "poles": None,
    "head": None,
}


IN_TIME = {"data": 2, "fsdp": 2, "sequence": 2}
# What differs on a mesh that divides time: nothing is divided over tensor, which it has not.
EXPECTED_IN_TIME = {
    "time": ("sequence",),
    "embed": ("fsdp", "sequence"),
    "thin_channels": ("fsdp", "sequence"),
    "norm": ("fsdp", "sequence"),
    **dict.fromkeys(("channels", "heads", "kv_heads", "mlp", "vocab")),
}


@pytest.mark.parametrize("axis", EXPECTED)
def test_a_rule_places_its_axis_where_time_is_divided(axis: str) -> None:
    expected = (EXPECTED | EXPECTED_IN_TIME)[axis]
    assert partition_spec("p", (axis,), (8,), IN_TIME) == PartitionSpec(expected)


def test_every_rule_has_a_place() -> None:
    assert set(EXPECTED) == set(RULES)


@pytest.mark.parametrize("axis", EXPECTED)
def test_a_rule_places_its_axis(axis: str) -> None:
    assert partition_spec("p", (axis,), (8,), CUBE) == PartitionSpec(EXPECTED[axis])
    # Another dimension before it changes nothing.
    spec = partition_spec("p", ("poles", axis), (3, 8), CUBE)
    assert spec == PartitionSpec(None, EXPECTED[axis])


def test_a_mesh_axis_of_size_one_divides_nothing() -> None:
    one = {"data": 8, "fsdp": 1, "tensor": 1}
    assert partition_spec("p", ("embed", "mlp"), (7, 5), one) == PartitionSpec(None, None)
    assert partition_spec("p", ("batch",), (8,), one) == PartitionSpec(("data",))


def test_a_collision_names_parameter_and_axes() -> None:
    with pytest.raises(ValueError, match="some/scale") as error:
        partition_spec("some/scale", ("embed", "norm"), (8, 8), CUBE)
    message = str(error.value)
    assert "'embed'" in message
    assert "'norm'" in message
    assert "'fsdp'" in message
    assert "\n" not in message


def test_axes_collide_only_where_the_mesh_has_more_than_one() -> None:
    one = {"data": 2, "fsdp": 1, "tensor": 4}
    spec = partition_spec("p", ("embed", "norm"), (8, 8), one)
    assert spec == PartitionSpec(None, None)


def test_an_indivisible_size_names_parameter_axis_and_sizes() -> None:
    mesh_shape = {"data": 1, "fsdp": 2, "tensor": 4}
    with pytest.raises(ValueError, match="some/taps") as error:
        partition_spec("some/taps", ("taps", "thin_channels"), (4, 12), mesh_shape)
    message = str(error.value)
    assert "'thin_channels'" in message
    assert "12" in message
    assert "tensor=4 x fsdp=2" in message
    assert "\n" not in message


def test_the_mesh_has_the_axes_in_order() -> None:
    mesh = make_mesh((2, 4, 1))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert tuple(mesh.axis_names) == ("data", "fsdp", "tensor")
    assert make_mesh((1, 1, 2), jax.devices()[:2]).size == 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1), (4, 4, 1)])
def test_a_mesh_that_is_not_all_devices_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="mesh=") as error:
        make_mesh(shape)
    message = str(error.value)
    assert "x".join(map(str, shape)) in message
    assert "8 are attached" in message
    assert "--mesh=1x8x1" in message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "there is no such device, or no plugin for it"),
        (RuntimeError("Unable to initialize\n backend"), "Unable to initialize backend"),
    ],
)
def test_a_platform_that_is_not_here_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, reason: str
) -> None:
    def fails() -> list[Any]:
        raise error

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(mesh_module, "_NVIDIA", tmp_path / "none")
    with pytest.raises(ValueError, match=f"^JAX_PLATFORMS=cuda: {reason}$"):
        mesh_module.attached_devices()
    monkeypatch.setattr(mesh_module, "_NVIDIA", tmp_path)  # a driver, but no device: a fault
    with pytest.raises(type(error)):
        mesh_module.attached_devices()
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(type(error)):  # nobody asked for it: the machine's fault
        mesh_module.attached_devices()


def test_the_cpu_in_place_of_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mesh_module, "_NVIDIA", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert mesh_module.unused_gpu("cpu").startswith("warning: training on the CPU, although")
    assert mesh_module.unused_gpu("NVIDIA L4") == ""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert mesh_module.unused_gpu("cpu") == ""
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(mesh_module, "_NVIDIA", tmp_path / "none")
    assert mesh_module.unused_gpu("cpu") == ""


def test_sharding_is_the_rule_on_the_mesh() -> None:
    mesh = make_mesh((2, 2, 2))
    placed = sharding(mesh, "w", ("embed", "mlp"), (4, 6))
    assert placed == NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    assert placed.shard_shape((4, 6)) == (2, 3)


def test_constrain_places_an_activation() -> None:
    mesh = make_mesh((2, 2, 2))
    x = jnp.zeros((8, 3, 5))
    assert constrain(x, "batch", "time", "width") is x  # no mesh in use
    with jax.set_mesh(mesh):
        placed = jax.jit(lambda x: constrain(x, "batch", "time", "width"))(x)
    assert placed.sharding.shard_shape(x.shape) == (2, 3, 5)


@pytest.mark.parametrize(
    ("spec", "shard"),
    [
        (PartitionSpec(("fsdp",), None), (4, 8)),  # one mesh axis, which JAX may keep unpacked
        (PartitionSpec("fsdp", "tensor"), (4, 4)),
        (PartitionSpec(None, ("tensor", "fsdp")), (8, 2)),
        (PartitionSpec(), (8, 8)),
    ],
)
def test_constrain_like_pins_every_form_of_spec(
    spec: PartitionSpec, shard: tuple[int, int]
) -> None:
    with jax.set_mesh(make_mesh((2, 2, 2))):
        pinned = jax.jit(lambda tree: constrain_like(tree, {"w": spec}))({"w": jnp.ones((8, 8))})
    assert pinned["w"].sharding.shard_shape((8, 8)) == shard


def test_constrain_like_leaves_the_axes_that_shard_map_took() -> None:
    mesh = make_mesh((2, 2, 2))

    def body(x: jax.Array) -> jax.Array:
        return constrain_like(x, PartitionSpec(("data", "fsdp"))) * 2

    with jax.set_mesh(mesh):
        doubled = jax.jit(
            jax.shard_map(
                body,
                mesh=mesh,
                in_specs=PartitionSpec("data"),
                out_specs=PartitionSpec("data"),
                axis_names={"data"},
            )
        )(jnp.arange(8.0))
    np.testing.assert_array_equal(doubled, 2 * np.arange(8.0))


def test_local_runs_on_shards_and_without_a_mesh_as_it_is() -> None:
    shapes = []

    def double(x_BTC: jax.Array) -> jax.Array:
        shapes.append(x_BTC.shape)
        return x_BTC * 2

    axes = ("batch", "time", "channels")
    assert local(double, (axes,), axes) is double
    x = jnp.arange(8.0 * 2 * 4).reshape(8, 2, 4)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        doubled = jax.jit(local(double, (axes,), axes))(x)
    np.testing.assert_array_equal(doubled, 2 * x)
    assert set(shapes) == {(2, 2, 2)}


def test_local_sums_the_gradient_of_what_every_shard_shares() -> None:
    axes = ("batch", "time", "channels")

    def scale(x_BTC: jax.Array, weight_C: jax.Array) -> jax.Array:
        return x_BTC * weight_C[None, None]

    def total(weight_C: jax.Array) -> jax.Array:
        return jnp.sum(local(scale, (axes, ("channels",)), axes)(x, weight_C))

    x = jnp.arange(8.0 * 2 * 4).reshape(8, 2, 4)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        grad = jax.jit(jax.grad(total))(jnp.ones(4))
    np.testing.assert_allclose(grad, x.sum((0, 1)))


def test_no_rule_is_dead() -> None:
    """Every mesh axis is used by a rule, and every rule names mesh axes only."""
    used = {mesh_axis for over in mesh_module.RULES.values() for mesh_axis in over}
    assert used == {"data", "fsdp", "tensor", "sequence"}
