"""The state of a run: its arrays, where they lie, and how it begins."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spectral_dist.mesh import make_mesh
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.state import (
    abstract_state,
    init_state,
    model_spec,
    opt_state_shardings,
)


def config(**settings: Any) -> Config:
    """Return a model of one layer."""
    values = {"hidden_dim": 32, "head_dim": 8, "num_layers": 1, "seq_len": 32, "batch_size": 8}
    return resolve(from_flat(values | {"layer_pattern": "spectral"} | settings))


def test_everything_is_float32_but_the_counts() -> None:
    state = abstract_state(config(), make_mesh((2, 2, 2)))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    floats = [s for s in jax.tree.leaves(state.opt_state) if s.ndim]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    for count in (state.step, state.skipped, state.bad_in_row):
        assert count.dtype == jnp.int32
        assert count.sharding.is_fully_replicated


def test_moments_lie_where_their_parameters_lie() -> None:
    made = config(layer_pattern="spectral,window,attention", num_layers=4)
    state = abstract_state(made, make_mesh((2, 2, 2)))
    of_params = [(s.shape, s.sharding) for s in jax.tree.leaves(state.params)]
    of_opt_state = [(s.shape, s.sharding) for s in jax.tree.leaves(state.opt_state) if s.ndim]
    assert of_opt_state == of_params * 2  # first and second moment
    assert model_spec(made).shardings(make_mesh((2, 2, 2))) == jax.tree.map(
        lambda s: s.sharding, state.params
    )


# ---- the optimizer's state, placed by path ----

MESH = make_mesh((2, 2, 2))
LONG = {"head": (64, 32), "norm": {"scale": (64, 32)}, "layer": {"norm": {"scale": (64, 32)}}}


def shaped(shapes: Any) -> Any:
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def placed(opt_state: Any) -> dict[str, PartitionSpec]:
    """Return where each array of an optimizer's state lies, beside parameters of three layouts."""
    where = {"head": ("fsdp", None), "norm": {"scale": ("data",)}}
    where |= {"layer": {"norm": {"scale": ("tensor", "fsdp")}}}
    shardings = jax.tree.map(
        lambda spec: NamedSharding(MESH, PartitionSpec(*spec)),
        where,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    found = opt_state_shardings(opt_state, shaped(LONG), shardings)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }


def test_a_masked_state_lies_where_its_parameters_lie() -> None:
    labels = {"head": "adam", "norm": {"scale": "sgd"}, "layer": {"norm": {"scale": "sgd"}}}
    two = optax.partition({"adam": optax.scale_by_adam(), "sgd": optax.trace(0.9)}, labels)
    assert placed(jax.eval_shape(two.init, shaped(LONG))) == {
        "inner_states/adam/inner_state/count": PartitionSpec(),
        "inner_states/adam/inner_state/mu/head": PartitionSpec("fsdp", None),
        "inner_states/adam/inner_state/nu/head": PartitionSpec("fsdp", None),
        # Its last two keys are the path of another parameter.
        "inner_states/sgd/inner_state/trace/layer/norm/scale": PartitionSpec("tensor", "fsdp"),
        "inner_states/sgd/inner_state/trace/norm/scale": PartitionSpec("data"),
    }


def test_a_small_array_like_no_parameter_is_replicated() -> None:
    small = {"count": (), "coefficients": (32, 32)}
    assert placed(shaped(small)) == dict.fromkeys(small, PartitionSpec())


@pytest.mark.parametrize(
    ("opt_state", "words"),
    [
        ({"seen": {"rows": (33, 32)}}, ["seen/rows", "(33, 32)"]),  # no parameter's path
        ({"sums": {"head": (64, 17)}}, ["sums/head", "(64, 17)"]),  # another shape than head
    ],
)
def test_a_large_array_like_no_parameter_is_refused_by_name(
    opt_state: Any, words: list[str]
) -> None:
    with pytest.raises(ValueError, match="optimizer: its state's array") as error:
        placed(shaped(opt_state))
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


# ---- the whole state ----


def test_every_long_dimension_is_divided() -> None:
    """On 2x2x2 every parameter is a quarter, but for norms (half) and head_dim norms (whole)."""
    made = config(layer_pattern="spectral,window,attention", num_layers=4)
    state = abstract_state(made, make_mesh((2, 2, 2)))
    axes = jax.tree.leaves(model_spec(made).axes, is_leaf=lambda node: isinstance(node, tuple))
    for leaf, names in zip(jax.tree.leaves(state.params), axes, strict=True):
        share = np.prod(leaf.shape) // np.prod(leaf.sharding.shard_shape(leaf.shape))
        assert share == (1 if "head" in names else 2 if "norm" in names else 4), names


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
    assert all(not np.any(m) for m in jax.tree.leaves(state.opt_state))
    described = abstract_state(made, mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), described
    )
