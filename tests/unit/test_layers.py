"""RMSNorm and SwiGLU against numpy, and what a parameter declares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_dist.model.layers import RMSNorm, SwiGLU, fan_in, normal, ones, parameter, rms_norm


def _rngs() -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.key(0))


def _draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
def test_rms_norm_is_its_formula(shape: tuple[int, ...]) -> None:
    norm = RMSNorm(5, "norm", _rngs())
    norm.scale[...] = jnp.arange(1.0, 6.0)
    x = 3.0 * _draw(*shape)
    x64 = np.asarray(x, np.float64)
    expected = x64 / np.sqrt(np.mean(x64**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(rms_norm(x), expected, rtol=1e-5)
    np.testing.assert_allclose(norm(x), expected * np.arange(1.0, 6.0), rtol=1e-5)


def test_rms_norm_keeps_the_type_and_sums_in_float32() -> None:
    """In bf16 a sum of 4,096 ones would stop at 256."""
    x = jnp.ones((1, 4096), jnp.bfloat16)
    norm = RMSNorm(4096, "norm", _rngs())
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(norm(x), x)


def test_rms_norm_of_nothing_is_nothing() -> None:
    np.testing.assert_array_equal(rms_norm(jnp.zeros((2, 4))), np.zeros((2, 4)))


def test_swiglu_is_its_formula() -> None:
    mlp = SwiGLU(6, 10, 3, _rngs())
    x = _draw(2, 4, 6)
    w_in, w_out = np.asarray(mlp.w_in[...], np.float64), np.asarray(mlp.w_out[...], np.float64)
    gate, up = np.asarray(x, np.float64) @ w_in[:, 0], np.asarray(x, np.float64) @ w_in[:, 1]
    expected = (gate / (1.0 + np.exp(-gate)) * up) @ w_out
    np.testing.assert_allclose(mlp(x), expected, rtol=0, atol=1e-5)
    assert mlp(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_initial_values_have_the_stated_spread() -> None:
    key, shape = jax.random.key(1), (400, 400)
    assert np.std(normal(0.5)(key, shape)) == pytest.approx(0.5, rel=0.01)
    assert np.std(fan_in(400)(key, shape)) == pytest.approx(0.05, rel=0.01)
    assert np.std(fan_in(400, 8)(key, shape)) == pytest.approx(0.0125, rel=0.01)
    np.testing.assert_array_equal(ones(key, (3,)), np.ones(3))


def test_a_parameter_carries_its_axes() -> None:
    declared = parameter(_rngs(), (2, 3), ("embed", "mlp"), ones)
    assert declared.get_metadata("axes") == ("embed", "mlp")
    assert declared.get_value().dtype == jnp.float32
    with pytest.raises(AssertionError):
        parameter(_rngs(), (2, 3), ("embed",), ones)
