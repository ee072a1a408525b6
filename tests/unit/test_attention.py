"""Attention against a naive masked softmax, its rotary positions taken as relative offsets."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_dist.model.mixers.attention import (
    ROTARY_BASE,
    FullAttention,
    attend,
    full_attention,
    rotate,
)
from spectral_dist.model.mixers.window import WindowAttention, WindowState, window_attention
from spectral_dist.settings import from_flat, resolve

BATCH, HEADS, GROUPS, SIZE = 2, 4, 2, 6

Arrays = tuple[jax.Array, jax.Array, jax.Array]

# Compiled as a whole, operation by operation each would be compiled by itself; and without
# optimisation, since the compiler's time is most of the tests'.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Blocks of 4 queries: short and long sequences meet first blocks, whole ones and a short last one.
_window = functools.partial(
    _jit(window_attention, static_argnames=("window", "block_size")), block_size=4
)
_full = _jit(full_attention)


def _draw(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def _inputs(time: int, groups: int = GROUPS, seed: int = 0) -> Arrays:
    """Queries, keys, values."""
    return (
        _draw(BATCH, time, HEADS, SIZE, seed=seed),
        _draw(BATCH, time, groups, SIZE, seed=seed + 1),
        _draw(BATCH, time, groups, SIZE, seed=seed + 2),
    )


def _empty(window: int, groups: int = GROUPS) -> WindowState:
    zeros = jnp.zeros((BATCH, window, groups, SIZE))
    return WindowState(zeros, zeros, jnp.zeros((BATCH,), jnp.int32))


def _naive(query: Any, key: Any, value: Any, reach: int) -> np.ndarray:
    """One query at a time, over the last `reach` tokens; the rotation by t - s as a phase."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    half = query.shape[3] // 2
    frequencies = ROTARY_BASE ** (-np.arange(half) / half)
    complex_query = query[..., :half] + 1j * query[..., half:]
    complex_key = key[..., :half] + 1j * key[..., half:]
    for t in range(query.shape[1]):
        seen = np.arange(max(0, t - reach + 1), t + 1)
        phase = np.exp(1j * (t - seen)[:, None] * frequencies)
        for head in range(query.shape[2]):
            group = head * key.shape[2] // query.shape[2]
            product = complex_query[:, t, None, head] * complex_key[:, seen, group].conj() * phase
            scores = product.real.sum(axis=-1) / math.sqrt(query.shape[3])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, t, head] = np.einsum("bs,bse->be", weights, value[:, seen, group])
    return out


WINDOW_CASES = [(1, 1), (5, 1), (1, 8), (5, 8), (8, 8), (16, 8), (19, 8)]


@pytest.mark.parametrize(("time", "window"), WINDOW_CASES)
def test_window_attention_is_a_masked_softmax(time: int, window: int) -> None:
    query, key, value = _inputs(time)
    mixed, after = _window(query, key, value, _empty(window), window=window)
    np.testing.assert_allclose(mixed, _naive(query, key, value, window), rtol=0, atol=3e-6)
    kept = min(time, window)
    np.testing.assert_array_equal(after.filled, np.full(BATCH, kept))
    np.testing.assert_array_equal(after.keys[:, window - kept :], key[:, time - kept :])
    np.testing.assert_array_equal(after.values[:, window - kept :], value[:, time - kept :])


@pytest.mark.parametrize(("time", "window"), WINDOW_CASES)
def test_the_start_of_a_sequence_is_an_empty_state(time: int, window: int) -> None:
    arrays = _inputs(time)
    mixed, after = _window(*arrays, None, window=window)
    expected, expected_after = _window(*arrays, _empty(window), window=window)
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, expected_after)


@pytest.mark.parametrize("pieces", [(3, 4, 13), (19, 1), (1,) * 20])
def test_window_attention_in_pieces_is_the_whole(pieces: tuple[int, ...]) -> None:
    """The last W keys and values are all that a piece needs; also one token at a time."""
    query, key, value = _inputs(20)
    state, out, start = _empty(8), [], 0
    for length in pieces:
        at = slice(start, start + length)
        mixed, state = _window(query[:, at], key[:, at], value[:, at], state, window=8)
        out.append(mixed)
        start += length
    expected = _naive(query, key, value, 8)
    np.testing.assert_allclose(np.concatenate(out, axis=1), expected, rtol=0, atol=3e-6)
    np.testing.assert_array_equal(state.filled, [8, 8])


def test_rows_of_a_batch_may_have_different_pasts() -> None:
    """One row starts, the other continues: each as if it were alone."""
    query, key, value = _inputs(12)
    fresh = _empty(8)
    _, used = _window(query[:, :7], key[:, :7], value[:, :7], fresh, window=8)
    mixed_past = WindowState(*(jnp.stack([f[0], u[1]]) for f, u in zip(fresh, used, strict=True)))
    rest = (query[:, 7:], key[:, 7:], value[:, 7:])
    mixed, after = _window(*rest, mixed_past, window=8)
    np.testing.assert_allclose(mixed[0], _naive(*rest, 8)[0], rtol=0, atol=3e-6)
    whole = _naive(query, key, value, 8)[:, 7:]
    np.testing.assert_allclose(mixed[1], whole[1], rtol=0, atol=3e-6)
    np.testing.assert_array_equal(after.filled, [5, 8])


def test_what_was_not_filled_is_not_seen() -> None:
    query, key, value = _inputs(5)
    junk = WindowState(*(1e3 + x for x in _empty(8)[:2]), jnp.zeros((BATCH,), jnp.int32))
    clean, _ = _window(query, key, value, _empty(8), window=8)
    mixed, _ = _window(query, key, value, junk, window=8)
    np.testing.assert_array_equal(mixed, clean)


@pytest.mark.parametrize("shift", [3, 8, 21])
def test_shifting_the_sequence_changes_nothing(shift: int) -> None:
    """Where a window is full of the same tokens, what lies before it and how much is all one."""
    window = 8
    own, other = _inputs(20), _inputs(shift, seed=10)
    alone, _ = _window(*own, _empty(window), window=window)
    joined = [jnp.concatenate([o, x], axis=1) for o, x in zip(other, own, strict=True)]
    later, _ = _window(*joined, _empty(window), window=window)
    later = later[:, shift + window - 1 :]
    np.testing.assert_allclose(later, alone[:, window - 1 :], rtol=0, atol=3e-6)


@pytest.mark.parametrize("groups", [1, 4])
def test_grouped_keys_are_repeated_keys(groups: int) -> None:
    query, key, value = _inputs(9, groups)
    full = [jnp.repeat(x, HEADS // groups, axis=2) for x in (key, value)]
    mixed, _ = _window(query, key, value, _empty(4, groups), window=4)
    repeated, _ = _window(query, *full, _empty(4, HEADS), window=4)
    np.testing.assert_allclose(mixed, repeated, rtol=0, atol=2e-6)
    np.testing.assert_allclose(mixed, _naive(query, key, value, 4), rtol=0, atol=3e-6)


@pytest.mark.parametrize("time", [1, 2, 17])
def test_full_attention_is_a_causal_softmax(time: int) -> None:
    query, key, value = _inputs(time)
    expected = _naive(query, key, value, reach=time)
    mixed = _full(query, key, value)
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=3e-6)


def test_a_window_of_everything_is_full_attention() -> None:
    query, key, value = _inputs(13)
    mixed, _ = _window(query, key, value, _empty(13), window=13)
    np.testing.assert_allclose(mixed, _full(query, key, value), rtol=0, atol=3e-6)


def test_the_mask_is_a_choice_and_no_bias() -> None:
    """A hidden key has no weight at all, whatever its score and its value."""
    query, key, value = _inputs(3)
    visible = jnp.asarray([[[True, False, True]]])
    loud = attend(query[:, :1], key.at[:, 1].set(1e4), value.at[:, 1].set(1e4), visible)
    quiet = attend(query[:, :1], key, value, visible)
    np.testing.assert_array_equal(loud, quiet)


def test_rotation_keeps_lengths_and_depends_on_differences() -> None:
    query, key = _draw(1, 1, 1, SIZE), _draw(1, 1, 1, SIZE, seed=1)

    def score(at_query: int, at_key: int) -> float:
        return float(jnp.sum(rotate(query, at_query) * rotate(key, at_key)))

    assert score(103, 100) == pytest.approx(score(5, 2), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-2)
    turned = rotate(_draw(1, 9, 1, SIZE), 4)
    lengths = np.linalg.norm(_draw(1, 9, 1, SIZE), axis=-1)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), lengths, rtol=1e-5)
    assert rotate(query.astype(jnp.bfloat16), 4).dtype == jnp.bfloat16


def test_bfloat16_operands_stay_near() -> None:
    """Positions, scores and softmax are float32: only the operands are short."""
    exact = _inputs(40)
    short = [x.astype(jnp.bfloat16) for x in exact]
    mixed, state = _window(*short, _short(_empty(16)), window=16)
    expected = _naive(*(x.astype(jnp.float32) for x in short), 16)
    assert mixed.dtype == state.keys.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(mixed, np.float64) - expected) / np.linalg.norm(expected)
    assert error < 1e-2


def _short(state: WindowState) -> WindowState:
    keys, values = (x.astype(jnp.bfloat16) for x in state[:2])
    return WindowState(keys, values, state.filled)


def _module(window: int | None, conv_width: int = 1) -> FullAttention | WindowAttention:
    tiny = {"hidden_dim": 24, "head_dim": SIZE, "num_kv_heads": GROUPS, "num_layers": 2}
    tiny |= {"seq_len": 64, "window": window or 1, "attention_conv_width": conv_width}
    config = resolve(from_flat(tiny))
    rngs = nnx.Rngs(params=jax.random.key(5))
    if window is None:
        return FullAttention(config.model, config.mixers.attention, rngs)
    return WindowAttention(config.model, config.mixers.window, rngs)


def _convolved(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (len(taps) - 1, 0), (0, 0)))
    shifted = [padded[:, len(taps) - 1 - k :][:, : x.shape[1]] for k in range(len(taps))]
    return np.einsum("kbtd,kd->btd", np.stack(shifted), taps)


@pytest.mark.parametrize(("window", "conv_width"), [(None, 1), (4, 1), (None, 3)])
def test_the_module_is_its_formula(window: int | None, conv_width: int) -> None:
    """Projections, the short convolution, QK-norm with its scales, grouped attention, output."""
    module = _module(window, conv_width)
    module.query_norm.scale[...] = jnp.linspace(0.5, 1.5, SIZE)
    module.key_norm.scale[...] = jnp.linspace(1.5, 0.5, SIZE)
    x = _draw(BATCH, 11, 24)
    w_query, w_key_value, w_out, query_scale, key_scale = (
        np.asarray(p[...], np.float64)
        for p in (
            module.w_query,
            module.w_key_value,
            module.w_out,
            module.query_norm.scale,
            module.key_norm.scale,
        )
    )

    def normed(heads: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return heads / np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + 1e-6) * scale

    x64 = np.asarray(x, np.float64)
    query, key, value = x64 @ w_query, x64 @ w_key_value[:, 0], x64 @ w_key_value[:, 1]
    if conv_width > 1:
        taps = np.asarray(module.key_value_taps[...], np.float64)
        query = _convolved(query, np.asarray(module.query_taps[...], np.float64))
        key, value = _convolved(key, taps[:, 0]), _convolved(value, taps[:, 1])
    query = normed(query.reshape(BATCH, 11, HEADS, SIZE), query_scale)
    key = normed(key.reshape(BATCH, 11, GROUPS, SIZE), key_scale)
    value = value.reshape(BATCH, 11, GROUPS, SIZE)
    expected = _naive(query, key, value, window or 11).reshape(BATCH, 11, 24) @ w_out
    mixed, state = _jit(lambda x: module(x, None))(x)
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-5)
    assert (state is None) == (window is None)


def test_qk_norm_ignores_the_scale_of_queries_and_keys() -> None:
    module, x = _module(4), _draw(BATCH, 11, 24)
    run = _jit(lambda module, x: module(x, None)[0])
    before = run(module, x)
    module.w_query[...] = 50.0 * module.w_query[...]
    module.w_key_value[...] = module.w_key_value[...].at[:, 0].multiply(50.0)
    after = run(module, x)
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5)


def test_only_a_window_has_a_state() -> None:
    assert _module(None).init_state(3, jnp.dtype("float32")) is None
    state = _module(4).init_state(3, jnp.dtype("bfloat16"))
    assert state is not None
    assert state.keys.shape == state.values.shape == (3, 4, GROUPS, SIZE)
    assert state.keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.filled, np.zeros(3))
