"""The ssd mixer against its definition in float64, in chunks, by tokens and in pieces."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_dist.model.mixers.ssd import SSDMixer, mix_heads, mix_tokens
from spectral_dist.settings import Config, from_flat, resolve

BATCH, GROUPS, SHARE, SIZE = 2, 2, 2, 4
HEADS = GROUPS * SHARE

_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _inputs(time: int) -> list[np.ndarray]:
    """Return queries, keys, values, log decays and a state that is not zero."""
    draw = np.random.default_rng(time).standard_normal
    shared, own = (BATCH, time, GROUPS, SIZE), (BATCH, time, HEADS, SIZE)
    decay = -np.exp(1.5 * draw((BATCH, time, HEADS)))  # from nearly none to e^-30 a token
    return [draw(shared), draw(shared), draw(own), decay, draw((BATCH, HEADS, SIZE, SIZE))]


def _naive(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, decay: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence, written out."""
    out = np.zeros_like(value)
    state = state.copy()
    for b, t, h in np.ndindex(value.shape[:3]):
        a = np.exp(decay[b, t, h])
        outer = np.outer(key[b, t, h // SHARE], value[b, t, h])
        state[b, h] = a * state[b, h] + (1 - a) * outer
        out[b, t, h] = query[b, t, h // SHARE] @ state[b, h]
    return out, state


@pytest.mark.parametrize("time", [1, 2, 7, 40])
@pytest.mark.parametrize("chunk", [0, 1, 8, 64])
def test_every_form_is_the_recurrence(time: int, chunk: int) -> None:
    x = _inputs(time)
    form = functools.partial(mix_heads, chunk_size=chunk) if chunk else mix_tokens
    y, last = _jit(form)(*(jnp.asarray(a, jnp.float32) for a in x))
    expected, expected_last = _naive(*x)
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-5)
    np.testing.assert_allclose(last, expected_last, rtol=0, atol=1e-5)


def test_gradients_of_the_chunked_form_are_those_of_the_recurrence() -> None:
    x = [jnp.asarray(a, jnp.float32) for a in _inputs(21)]
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(x[2].shape), jnp.float32)

    def loss(form: Any, *x: jax.Array) -> jax.Array:
        y, last = form(*x)
        return jnp.sum(y * weights) + jnp.sum(last**2)

    every = tuple(range(1, 6))
    exact = _jit(jax.grad(loss, every), static_argnums=0)(mix_tokens, *x)
    form = functools.partial(mix_heads, chunk_size=8)
    found = _jit(jax.grad(loss, every), static_argnums=0)(form, *x)
    for mine, other in zip(found, exact, strict=True):
        assert np.all(np.isfinite(mine))
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))


def _config(**changes: Any) -> Config:
    values = {"hidden_dim": 16, "head_dim": SIZE, "num_layers": 1, "layer_pattern": "ssd"}
    values |= {"seq_len": 64, "ssd_chunk_size": 8, "compute_dtype": "float32"}
    return resolve(from_flat(values | changes))


def _mixer(**changes: Any) -> SSDMixer:
    config = _config(**changes)
    return SSDMixer(config.model, config.mixers.ssd, nnx.Rngs(params=jax.random.key(5)))


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def _conv(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (len(taps) - 1, 0), (0, 0)))
    return sum(padded[:, len(taps) - 1 - k :][:, : x.shape[1]] * tap for k, tap in enumerate(taps))  # type: ignore[return-value]


@pytest.mark.parametrize("decay", ["data", "fixed"])
def test_the_module_is_its_formula(decay: str) -> None:
    mixer = _mixer(ssd_decay=decay)
    draw = np.random.default_rng(3).standard_normal
    x = draw((BATCH, 19, 16))
    p = {
        name: np.asarray(getattr(mixer, name)[...], np.float64)
        for name in ("w_in", "w_query_key", "value_taps", "query_key_taps", "skip", "w_out")
    }
    rate = np.asarray(mixer.log_rate[...], np.float64) + np.zeros((BATCH, 19, HEADS))
    if decay == "data":
        rate = rate + x @ np.asarray(mixer.w_decay[...], np.float64)
    wide, shared = (np.einsum("btd,dkc->kbtc", x, p[name]) for name in ("w_in", "w_query_key"))
    value = _silu(_conv(wide[0], p["value_taps"])).reshape(BATCH, 19, HEADS, SIZE)
    query, key = (
        _norm(_silu(_conv(shared[i], p["query_key_taps"][:, i])).reshape(BATCH, 19, GROUPS, SIZE))
        for i in range(2)
    )
    log_decay = -np.log1p(np.exp(rate)) - 1 / 16  # tau_max is seq_len / 4
    y, _ = _naive(query, key, value, log_decay, np.zeros((BATCH, HEADS, SIZE, SIZE)))
    y = _norm(y + p["skip"].reshape(HEADS, SIZE) * value).reshape(BATCH, 19, 16)
    expected = (y * _silu(wide[1])) @ p["w_out"]
    found, _ = _jit(lambda x: mixer(x, None))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pieces", [(3, 4, 12), (18, 1), (1,) * 19])
def test_pieces_with_the_state_between_are_the_whole(pieces: tuple[int, ...]) -> None:
    mixer = _mixer()
    x = jnp.asarray(np.random.default_rng(3).standard_normal((BATCH, 19, 16)), jnp.float32)
    run = _jit(lambda x, state: mixer(x, state))
    whole, last = run(x, None)
    state, start, found = mixer.init_state(BATCH, jnp.dtype(jnp.float32)), 0, []
    for length in pieces:
        y, state = run(x[:, start : start + length], state)
        found.append(y)
        start += length
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), state, last)


def test_no_memory_is_longer_than_tau_max_and_the_state_does_not_drift() -> None:
    """Whatever the input: a bias that asks for no decay at all, and a long text."""
    mixer = _mixer()
    mixer.log_rate[...] = jnp.full(HEADS, -50.0)
    run = _jit(lambda x, state: mixer(x, state))
    draw = np.random.default_rng(3).standard_normal
    state, sizes = mixer.init_state(1, jnp.dtype(jnp.float32)), []
    for _ in range(40):
        _, state = run(jnp.asarray(draw((1, 64, 16)), jnp.float32), state)
        sizes.append(float(jnp.linalg.norm(state.heads)))
    assert max(sizes[10:]) < 2 * np.mean(sizes[5:10])
    # Of an impulse e^-k is left after k tau_max tokens; 1/16 is the slowest rate.
    before = mixer.init_state(1, jnp.dtype(jnp.float32))
    before = before._replace(heads=jnp.ones_like(before.heads))
    after = run(jnp.zeros((1, 64, 16)), before)[1].heads
    assert float(after.max()) == pytest.approx(np.exp(-64 / 16), rel=1e-3)


def test_a_token_that_forgets_all_leaves_the_rest_exact() -> None:
    """As in the public kernels of this kind, where sums of steep decays overflowed."""
    mixer = _mixer(ssd_chunk_size=64, seq_len=2048)
    mixer.w_decay[...] = jnp.zeros_like(mixer.w_decay[...]).at[0].set(1e6)
    x = np.random.default_rng(3).standard_normal((1, 64, 16))
    x[..., 0] = 0.0
    x[:, [5, 6, 20], 0] = 1.0  # log decays of -1e6, if they were not bounded
    run = _jit(lambda x, state: mixer(x, state))
    whole, _ = run(jnp.asarray(x, jnp.float32), None)
    state, tokens = mixer.init_state(1, jnp.dtype(jnp.float32)), []
    for t in range(64):
        y, state = run(jnp.asarray(x[:, t : t + 1], jnp.float32), state)
        tokens.append(y)
    np.testing.assert_allclose(whole, np.concatenate(tokens, axis=1), rtol=0, atol=2e-4)
    grads = _jit(jax.grad(lambda x: jnp.sum(mixer(x, None)[0] ** 2)))(jnp.asarray(x, jnp.float32))
    assert np.all(np.isfinite(grads))


def test_time_constants_are_spread_over_the_heads() -> None:
    mixer = _mixer(ssd_decay="fixed")
    rates = np.log1p(np.exp(np.asarray(mixer.log_rate[...], np.float64))) + 1 / 16
    np.testing.assert_allclose(1 / rates, np.geomspace(1, 16, HEADS + 1)[:HEADS], rtol=1e-5)
    assert not hasattr(mixer, "w_decay")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mesh": "1x1x4"}, "tensor=4 must divide the 2 groups of ssd heads"),
        ({"mesh": "1x1x3", "hidden_dim": 12}, "tensor=3 must divide the 1 groups of ssd heads"),
        ({"ssd_tau_max": 0.5}, "ssd_tau_max=0.5: must be above 1"),
        ({"ssd_decay": "none"}, "ssd_decay='none': must be"),
    ],
)
def test_its_rules(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _config(**changes)
