"""The spectral mixer around its three computations: Toeplitz, short convolution, gate and norm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_dist.model.mixers.spectral import SpectralMixer, SpectralState, causal_convolution
from spectral_dist.model.mixers.spectral_forms import toeplitz
from spectral_dist.settings import Config, from_flat, resolve

DIM, POLES, GROUP = 16, 4, 8

# Compiled without optimisation: the compiler's time is most of the tests', and it is no part of
# what they show.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _config(**settings: Any) -> Config:
    tiny = {"hidden_dim": DIM, "head_dim": GROUP, "num_poles": POLES, "chunk_size": 8}
    tiny |= {"compute_dtype": "float32", "num_layers": 2}
    return resolve(from_flat({"seq_len": 64} | tiny | settings))


def _mixer(config: Config) -> SpectralMixer:
    return SpectralMixer(config.model, config.mixers.spectral, nnx.Rngs(params=jax.random.key(3)))


def _draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def _primitives(function: Any, *args: Any) -> set[str]:
    """The names of all primitives in a function's program, at any depth."""
    names, todo = set(), [jax.make_jaxpr(function)(*args).jaxpr]
    while todo:
        for equation in todo.pop().eqns:
            names.add(equation.primitive.name)
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    todo.append(inner)
    return names


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_toeplitz_is_its_definition(size: int) -> None:
    h_DC = _draw(3, size)
    expected = np.zeros((3, size, size), np.float32)
    for i in range(size):
        for j in range(i + 1):
            expected[:, j, i] = np.asarray(h_DC)[:, i - j]
    np.testing.assert_array_equal(toeplitz(h_DC), expected)


def test_toeplitz_transposes_to_sums_along_the_diagonals() -> None:
    """Its gradient is right, and neither it nor its gradient gathers or scatters."""
    h_DC, weights_DCC = _draw(3, 6), _draw(3, 6, 6, seed=1)

    def total(h_DC: jax.Array) -> jax.Array:
        return jnp.sum(toeplitz(h_DC) * weights_DCC)

    diagonals = [np.trace(weights_DCC, offset=k, axis1=1, axis2=2) for k in range(6)]
    np.testing.assert_allclose(jax.grad(total)(h_DC), np.stack(diagonals, 1), rtol=0, atol=1e-5)
    used = _primitives(jax.value_and_grad(total), h_DC)
    assert "reduce_sum" in used
    assert not [name for name in used if "gather" in name or "scatter" in name]


def test_the_search_for_gathers_finds_one() -> None:
    def by_index(h_C: jax.Array) -> jax.Array:
        return jnp.sum(jax.jit(lambda h: h[jnp.arange(4)[::-1]])(h_C))

    used = _primitives(jax.value_and_grad(by_index), _draw(4))
    assert [name for name in used if "gather" in name]
    assert [name for name in used if "scatter" in name]


@pytest.mark.parametrize("time", [1, 9])
def test_short_convolution_is_its_sum(time: int) -> None:
    x, before, taps = _draw(2, time, 5), _draw(2, 3, 5, seed=1), _draw(4, 5, seed=2)
    y = _jit(causal_convolution)(x, before, taps)
    padded = np.concatenate([before, x], axis=1)
    expected = np.zeros(x.shape)
    for t in range(time):
        for k in range(4):
            expected[:, t] += np.asarray(taps)[k] * padded[:, t + 3 - k]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_short_convolution_of_one_tap_needs_no_past() -> None:
    x, taps = _draw(2, 4, 5), _draw(1, 5, seed=2)
    y = causal_convolution(x, jnp.zeros((2, 0, 5)), taps)
    np.testing.assert_allclose(y, x * taps[None], rtol=1e-6)


def _naive_mixer(mixer: SpectralMixer, x_BTD: np.ndarray) -> np.ndarray:
    """The mixer's formula in float64, from the start of a sequence, by plain sums."""
    w_in, taps, coefficients, skip, w_out = (
        np.asarray(p[...], np.float64)
        for p in (mixer.w_in, mixer.taps, mixer.coefficients, mixer.skip, mixer.w_out)
    )
    time = x_BTD.shape[1]
    z = np.einsum("btd,dkc->btkc", np.asarray(x_BTD, np.float64), w_in)
    qkv = np.zeros_like(z)
    for t in range(time):
        for k in range(min(t + 1, taps.shape[0])):
            qkv[:, t] += taps[k] * z[:, t - k]
    u = qkv[:, :, 1] * qkv[:, :, 2]
    kernel_TD = mixer.recurrent.keywords["bank"].responses(time) @ coefficients
    y = skip * u
    for t in range(time):
        for s in range(t + 1):
            y[:, t] += kernel_TD[t - s] * u[:, s]
    groups = y.reshape(*y.shape[:2], -1, GROUP)
    groups = groups / np.sqrt(np.mean(groups**2, axis=-1, keepdims=True) + 1e-6)
    return (qkv[:, :, 0] * groups.reshape(y.shape)) @ w_out


@pytest.mark.parametrize("form", ["chunked", "fft", "recurrent"])
def test_the_mixer_is_its_formula_and_its_pieces(form: str) -> None:
    """As a whole against numpy; in pieces and token by token, with the state, against the whole."""
    mixer = _mixer(_config(spectral_form=form))
    x_BTD = _draw(2, 21, DIM)
    run = _jit(lambda x, state: mixer(x, state))
    whole, last = run(x_BTD, None)
    np.testing.assert_allclose(whole, _naive_mixer(mixer, np.asarray(x_BTD)), rtol=0, atol=2e-5)
    state, pieces, start = mixer.init_state(2, jnp.dtype("float32")), [], 0
    for length in (1, 1, 1, 1, 8, 9):
        y, state = run(x_BTD[:, start : start + length], state)
        pieces.append(y)
        start += length
    assert start == 21
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=2e-5)
    for mine, other in zip(state, last, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=2e-5)


def test_types_of_the_mixer_in_bfloat16() -> None:
    """Operands and the convolution's inputs in bf16, the poles' state in float32."""
    mixer = _mixer(_config())
    y, state = _jit(lambda x: mixer(x, None))(_draw(2, 8, DIM).astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert isinstance(state, SpectralState)
    assert state.conv.dtype == jnp.bfloat16
    assert state.poles.dtype == jnp.float32


def test_the_mixer_starts_as_spread_exponentials() -> None:
    """Near one unit-norm exponential for each channel, fast ones first; skip 1, taps identity."""
    mixer = _mixer(_config(hidden_dim=1024))
    bank = mixer.recurrent.keywords["bank"]
    coefficients_ND = np.asarray(mixer.coefficients[...])
    nearest_D = np.round(np.linspace(0, POLES - 1, 1024)).astype(int)
    rest_ND = coefficients_ND - bank.cholesky_NN[nearest_D].T
    assert np.std(rest_ND) == pytest.approx(0.1 / POLES**0.5, rel=0.1)
    np.testing.assert_array_equal(mixer.skip[...], np.ones(1024))
    taps = np.asarray(mixer.taps[...])
    assert taps[0].mean() == pytest.approx(1.0, abs=0.002)
    assert np.std(taps) > 0.02
    assert np.abs(taps[1:]).max() < 0.2
