"""No logit knows a later token: shown by perturbation and by gradient, at the real pattern.

Row t of one batch has token t changed, and in another its own cotangent at t alone: two passes
show every pair (token, logit). That the checks can fail is shown on masks broken on purpose.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.model.lm import describe_model
from spectral_dist.model.mixers import attention, spectral_forms, window
from spectral_dist.settings import Config, from_flat, resolve, with_values

VOCAB_SIZE = 256
TIME = 24
REAL_PATTERN = "spectral,spectral,window"

# Compiled without optimisation: the compiler's time is most of the tests', and it is no part of
# what they show.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Influence(NamedTuple):
    """What each token does to each logit: [token, logit], as shares of the largest."""

    by_change: np.ndarray
    by_gradient: np.ndarray


def _config(pattern: str, num_layers: int, form: str = "chunked") -> Config:
    """A window and chunks that end many times within the text."""
    values = {"hidden_dim": 16, "head_dim": 8, "num_layers": num_layers, "mlp_dim": 16}
    values |= {"layer_pattern": pattern, "window": 5, "num_poles": 4, "chunk_size": 7}
    values |= {"attention_conv_width": 3, "ssd_chunk_size": 7}
    values |= {"spectral_form": form, "compute_dtype": "float32", "seq_len": TIME}
    return resolve(from_flat(values))


@functools.cache
def _params(config: Config) -> Any:
    return _jit(describe_model(config, VOCAB_SIZE).init)(jax.random.key(0))


def _influence(config: Config) -> Influence:
    """Measure both, in one compiled program."""
    params = _params(with_values(config, {"spectral_form": "chunked"}))
    tokens_T = np.random.default_rng(0).integers(0, VOCAB_SIZE, TIME)
    changed_TT = np.tile(tokens_T, (TIME, 1))
    changed_TT[np.diag_indices(TIME)] = (tokens_T + 77) % VOCAB_SIZE
    one_hot = jax.nn.one_hot

    def run(
        params: Any, same_TT: jax.Array, changed_TT: jax.Array, cotangents_TTV: jax.Array
    ) -> tuple[jax.Array, ...]:
        model = describe_model(config, VOCAB_SIZE).bind(params)

        def logits(nudge_TTV: jax.Array) -> jax.Array:
            with pytest.MonkeyPatch.context() as patch:  # the input of the embedding, made soft
                patch.setattr(jax.nn, "one_hot", lambda *a, **k: one_hot(*a, **k) + nudge_TTV)
                return model(same_TT)[0]

        plain, transpose = jax.vjp(logits, jnp.zeros((TIME, TIME, VOCAB_SIZE)))
        return plain, model(changed_TT)[0], transpose(cotangents_TTV)[0]

    noise_TV = np.random.default_rng(1).standard_normal((TIME, VOCAB_SIZE))
    cotangents_TTV = np.zeros((TIME, TIME, VOCAB_SIZE), np.float32)
    cotangents_TTV[np.diag_indices(TIME)] = noise_TV
    plain, changed, gradient = _jit(run)(
        params, np.tile(tokens_T, (TIME, 1)), changed_TT, cotangents_TTV
    )
    by_change = np.max(np.abs(np.asarray(changed) - np.asarray(plain)), axis=-1)
    by_gradient = np.max(np.abs(np.asarray(gradient)), axis=-1).T
    return Influence(by_change / np.max(by_change), by_gradient / np.max(by_gradient))


def _check(found: Influence, reach: int, tolerance: float) -> None:
    """Nothing before the token, something at it and for `reach` tokens after it."""
    before = np.tril(np.ones((TIME, TIME), bool), -1)
    lag = np.arange(TIME)[None, :] - np.arange(TIME)[:, None]
    within = (lag >= 0) & (lag <= reach)
    for name, matrix in found._asdict().items():
        leak = np.max(matrix[before])
        assert leak <= tolerance, f"{name}: a later token changes a logit by {leak:.1e}"
        assert np.min(matrix[within]) > 1e-7, f"{name}: a token leaves no trace"


@pytest.mark.parametrize(("form", "tolerance"), [("chunked", 0.0), ("recurrent", 0.0)])
def test_the_hybrid_is_causal(form: str, tolerance: float) -> None:
    """The real pattern at the real depth: exactly zero, in both directions of proof."""
    _check(_influence(_config(REAL_PATTERN, 12, form)), TIME, tolerance)


def test_the_hybrid_by_fft_is_causal_to_rounding() -> None:
    """An FFT mixes all tokens and cancels: what is left is float32's rounding."""
    _check(_influence(_config(REAL_PATTERN, 12, "fft")), TIME, 3e-5)


@pytest.mark.parametrize("mixer", ["attention", "ssd"])
def test_a_mixer_alone_is_causal(mixer: str) -> None:
    """Layers of it; of attention with its short convolution."""
    _check(_influence(_config(mixer, 12 if mixer == "attention" else 3)), TIME, 0.0)


def test_window_layers_alone_reach_as_far_as_they_say() -> None:
    """Two layers of W tokens: 2 (W - 1) tokens back, and not one more."""
    config = _config("window", 2)
    found = _influence(config)
    reach = 2 * (config.mixers.window.window - 1)
    _check(found, reach, 0.0)
    lag = np.arange(TIME)[None, :] - np.arange(TIME)[:, None]
    for matrix in found:
        assert np.all(matrix[lag > reach] == 0)


def _additive_mask(patch: pytest.MonkeyPatch) -> None:
    """A boolean mask taken as a bias: every token sees the future."""

    def attend(query: Any, key: Any, value: Any, visible: Any) -> Any:
        repeated = [jnp.repeat(x, query.shape[2] // key.shape[2], axis=2) for x in (key, value)]
        scores = jnp.einsum("bqhe,bshe->bhqs", query, repeated[0]) + visible[:, None].astype(
            query.dtype
        )
        return jnp.einsum("bhqs,bshe->bqhe", jax.nn.softmax(scores), repeated[1])

    patch.setattr(attention, "attend", attend)


def _one_too_many(patch: pytest.MonkeyPatch) -> None:
    """A window that begins and ends a token late."""
    right = attention.attend

    def attend(query: Any, key: Any, value: Any, visible: Any) -> Any:
        return right(query, key, value, visible | jnp.roll(visible, 1, axis=2))

    patch.setattr(window, "attend", attend)


def _both_ways(patch: pytest.MonkeyPatch) -> None:
    """A Toeplitz matrix with a little of its transpose."""
    right = spectral_forms.toeplitz

    def toeplitz(h_DC: Any) -> Any:
        matrix = right(h_DC)
        return matrix + 1e-3 * matrix.swapaxes(1, 2)

    patch.setattr(spectral_forms, "toeplitz", toeplitz)


def _unpadded_fft(patch: pytest.MonkeyPatch) -> None:
    """A circular convolution: the end of the text comes before its beginning."""
    rfft, irfft = jnp.fft.rfft, jnp.fft.irfft
    patch.setattr(jnp.fft, "rfft", lambda x, n, axis: rfft(x, n // 2, axis=axis))
    patch.setattr(jnp.fft, "irfft", lambda x, n, axis: irfft(x, n // 2, axis=axis))


BROKEN = {
    "additive mask": ("attention", "chunked", _additive_mask),
    "one key too many": ("window", "chunked", _one_too_many),
    "Toeplitz both ways": ("spectral", "chunked", _both_ways),
    "unpadded FFT": ("spectral", "fft", _unpadded_fft),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_mask_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By perturbation and by gradient, each on its own, with the tolerance of the FFT."""
    pattern, form, break_it = BROKEN[name]
    mutation: Callable[[pytest.MonkeyPatch], None] = break_it
    mutation(monkeypatch)
    found = _influence(_config(pattern, 1, form))
    for matrix in found:
        with pytest.raises(AssertionError, match="a later token changes"):
            _check(Influence(matrix, matrix), 0, 3e-5)
