"""The description of the parameters: built once, and everything about them follows from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_dist.mesh import make_mesh
from spectral_dist.model.layers import fan_in, ones, parameter
from spectral_dist.model.lm import SpectralLM
from spectral_dist.params import Parameter, is_matrix, make_spec
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.evaluation import Evaluation
from spectral_dist.training.state import abstract_state, make_init, model_spec
from spectral_dist.training.step import make_train_step


class Small(nnx.Module):
    """A table, a stack of two matrices and a vector."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.table = parameter(rngs, (10, 4), ("vocab", "embed"), fan_in(4))
        self.stack = nnx.vmap(Matrix, in_axes=0, out_axes=0)(rngs.split(2))
        self.scale = parameter(rngs, (4,), ("norm",), ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...]


class Matrix(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.w = parameter(rngs, (4, 8), ("embed", "mlp"), fan_in(4))


def test_the_description_is_that_of_the_arrays() -> None:
    spec = make_spec(Small)
    assert spec.parameters == (
        Parameter("scale", ("norm",), (4,)),
        Parameter("stack/w", ("layers", "embed", "mlp"), (2, 4, 8)),
        Parameter("table", ("vocab", "embed"), (10, 4)),
    )
    params = spec.init(jax.random.key(1))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda s: (s.shape, s.dtype), spec.shapes
    )
    assert spec.axes["stack"]["w"] == ("layers", "embed", "mlp")
    assert spec.size == sum(leaf.size for leaf in jax.tree.leaves(params)) == 4 + 64 + 40
    assert spec.matrix_size == 64, "a table is looked up, a vector is no matrix"
    np.testing.assert_array_equal(spec.bind(params)(jnp.full(4, 3.0)), np.full(4, 3.0))


def test_what_each_token_is_multiplied_by() -> None:
    for axes in (("embed", "vocab"), ("layers", "channels", "embed"), ("embed", "branches", "mlp")):
        assert is_matrix(axes)
    for axes in (("vocab", "embed"), ("norm",), ("layers", "poles", "thin_channels")):
        assert not is_matrix(axes)


def test_a_device_holds_its_share() -> None:
    spec = make_spec(Small)
    # fsdp divides the norm, the table and the stack; tensor the other side of table and stack.
    assert spec.local_size({"data": 2, "fsdp": 2, "tensor": 2}) == 2 + 64 // 4 + 10
    with pytest.raises(ValueError, match=r"stack/w.*'mlp'.*tensor=3"):
        spec.local_size({"data": 1, "fsdp": 1, "tensor": 3})
    placed = spec.shardings(make_mesh((2, 2, 2)))
    assert placed["stack"]["w"].shard_shape((2, 4, 8)) == (2, 2, 4)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often the model is built."""
    counted: list[int] = []
    build = SpectralLM.__init__

    def count(self: SpectralLM, *args: Any, **settings: Any) -> None:
        counted.append(1)
        build(self, *args, **settings)

    monkeypatch.setattr(SpectralLM, "__init__", count)
    return counted


def test_the_model_is_built_twice_before_the_first_step(builds: list[int]) -> None:
    """Once without arrays, for all that asks for a description; once to draw initial values."""
    config: Config = resolve(from_flat({"hidden_dim": 24, "head_dim": 8, "num_layers": 2}))
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    abstract_state(config, mesh)
    make_train_step(config, mesh)
    Evaluation(config, [], mesh, report=pytest.fail)
    assert len(builds) == 1
    with jax.set_mesh(mesh):
        make_init(config, mesh).lower(jax.random.key(0))
    assert len(builds) == 2
    again = resolve(from_flat({"hidden_dim": 24, "head_dim": 8, "num_layers": 2, "lr": 0.1}))
    assert model_spec(again) is model_spec(config), "the learning rate is no part of the model"
