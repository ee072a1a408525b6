"""The state of a run: its arrays, where they lie, and how it begins."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.mesh import make_mesh
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.state import abstract_state, init_state, model_spec


def config(**settings: Any) -> Config:
    """Return a model of one layer."""
    values = {"hidden_dim": 32, "head_dim": 8, "num_layers": 1, "seq_len": 32, "batch_size": 8}
    return resolve(from_flat(values | {"layer_pattern": "spectral"} | settings))


def test_everything_is_float32_but_the_counts() -> None:
    state = abstract_state(config(), make_mesh((2, 2, 2)))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    floats = [s for s in jax.tree.leaves(state.moments) if s.ndim]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    for count in (state.step, state.skipped, state.bad_in_row):
        assert count.dtype == jnp.int32
        assert count.sharding.is_fully_replicated


def test_moments_lie_where_their_parameters_lie() -> None:
    made = config(layer_pattern="spectral,window,attention", num_layers=4)
    state = abstract_state(made, make_mesh((2, 2, 2)))
    of_params = [(s.shape, s.sharding) for s in jax.tree.leaves(state.params)]
    of_moments = [(s.shape, s.sharding) for s in jax.tree.leaves(state.moments) if s.ndim]
    assert of_moments == of_params * 2  # first and second moment
    assert model_spec(made).shardings(make_mesh((2, 2, 2))) == jax.tree.map(
        lambda s: s.sharding, state.params
    )


def test_every_long_dimension_is_divided() -> None:
    """On 2x2x2 every parameter is a quarter, but for norms (half) and head_dim norms (whole)."""
    made = config(layer_pattern="spectral,window,attention", num_layers=4)
    state = abstract_state(made, make_mesh((2, 2, 2)))
    axes = jax.tree.leaves(model_spec(made).axes, is_leaf=lambda node: isinstance(node, tuple))
    for leaf, names in zip(jax.tree.leaves(state.params), axes, strict=True):
        share = np.prod(leaf.shape) // np.prod(leaf.sharding.shard_shape(leaf.shape))
        halves = "norm" in names or "vocab" in names
        assert share == (1 if "head" in names else 2 if halves else 4), names


@pytest.mark.parametrize(
    ("mesh", "settings", "words"),
    [
        ((1, 1, 8), {"mlp_dim": 20}, ["layer_0/mlp/w_in", "'mlp'", "20", "tensor=8"]),
        ((1, 8, 1), {"hidden_dim": 36, "head_dim": 12}, ["embed", "'embed'", "36", "fsdp=8"]),
        (
            (1, 1, 8),
            {"layer_pattern": "window", "hidden_dim": 64, "num_kv_heads": 1, "head_dim": 4},
            ["mixer/w_key_value", "'kv_heads'", "4", "tensor=8"],
        ),
    ],
)
def test_a_mesh_that_cannot_divide_a_parameter_is_refused_by_name(
    mesh: tuple[int, int, int], settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError, match="cannot be divided") as error:
        abstract_state(config(**settings), make_mesh(mesh))
    for word in words:
        assert word in str(error.value)


def test_the_first_state_is_the_seed_and_nothing_else() -> None:
    made = config(seed=5)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    state = init_state(made, mesh)
    initial = jax.jit(model_spec(made).init)
    jax.tree.map(np.testing.assert_array_equal, state.params, initial(jax.random.key(5)))
    other = initial(jax.random.key(6))
    assert not np.array_equal(other["head"], state.params["head"])
    assert int(state.step) == int(state.skipped) == int(state.bad_in_row) == 0
    assert all(not np.any(m) for m in jax.tree.leaves(state.moments))
    described = abstract_state(made, mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), described
    )
