"""The three computations of the mixer against its definition, summed in float64 by numpy.

The oracle shares no code with the bank: it goes by the raw exponentials and by nothing else.
"""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.model.filters import FilterBank, balanced_poles
from spectral_dist.model.mixers.spectral_forms import MixForm, mix_chunked, mix_fft, mix_recurrent

BATCH, CHANNELS, POLES = 2, 3, 4
LENGTHS = (1, 2, 3, 7, 64, 127, 200)
CHUNKS = (1, 8, 64, 256)  # the last is above every length

Arrays = dict[str, np.ndarray]

# Compiled without optimisation: the compiler's time is most of the tests', and it is no part of
# what they show.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _bank() -> FilterBank:
    return balanced_poles(POLES, 0.5, 32.0)


def _form(name: str, bank: FilterBank) -> MixForm:
    if name == "fft":
        return partial(mix_fft, bank=bank)
    if name == "recurrent":
        return partial(mix_recurrent, bank=bank)
    return partial(mix_chunked, bank=bank, chunk_size=int(name.split()[1]))


def _inputs(time: int, channels: int = CHANNELS, batch: int = BATCH) -> Arrays:
    draw = np.random.default_rng(time).standard_normal
    return {
        "u": draw((batch, time, channels)),
        "state": draw((batch, POLES, channels)),
        "coefficients": draw((POLES, channels)),
        "skip": draw(channels),
        "grad_y": draw((batch, time, channels)),
        "grad_last": draw((batch, POLES, channels)),
    }


def _naive(x: Arrays, bank: FilterBank) -> Arrays:
    """Every sum of the definition and of its transpose, written out."""
    time = x["u"].shape[1]
    a_N = np.exp(-1.0 / bank.taus_N)
    raw_NT = np.sqrt(1.0 - a_N**2)[:, None] * a_N[:, None] ** np.arange(time)
    inverse_NN = np.linalg.inv(bank.cholesky_NN)
    response_TN = (inverse_NN @ raw_NT).T
    decay_TN = a_N ** np.arange(1, time + 1)[:, None]
    power_TNN = np.einsum("nk,tk,km->tnm", inverse_NN, decay_TN, bank.cholesky_NN)
    lagged_TSN = np.zeros((time, time, POLES))
    for t in range(time):
        lagged_TSN[t, : t + 1] = response_TN[t::-1]
    kernel_TSD = lagged_TSN @ x["coefficients"]
    memory_TMD = np.einsum("nd,tnm->tmd", x["coefficients"], power_TNN)
    y = np.einsum("tsd,bsd->btd", kernel_TSD, x["u"]) + x["skip"] * x["u"]
    y += np.einsum("tmd,bmd->btd", memory_TMD, x["state"])
    last = np.einsum("tn,btd->bnd", response_TN[::-1], x["u"])
    last += np.einsum("nm,bmd->bnd", power_TNN[-1], x["state"])
    grad_u = np.einsum("tsd,btd->bsd", kernel_TSD, x["grad_y"]) + x["skip"] * x["grad_y"]
    grad_u += np.einsum("sn,bnd->bsd", response_TN[::-1], x["grad_last"])
    grad_state = np.einsum("tmd,btd->bmd", memory_TMD, x["grad_y"])
    grad_state += np.einsum("nm,bnd->bmd", power_TNN[-1], x["grad_last"])
    pairs_TSD = np.einsum("btd,bsd->tsd", x["grad_y"], x["u"])
    grad_coefficients = np.einsum("tsn,tsd->nd", lagged_TSN, pairs_TSD)
    carried_TMD = np.einsum("btd,bmd->tmd", x["grad_y"], x["state"])
    grad_coefficients += np.einsum("tnm,tmd->nd", power_TNN, carried_TMD)
    grad_skip = np.einsum("btd,btd->d", x["grad_y"], x["u"])
    return {
        "y": y,
        "last": last,
        "grad_u": grad_u,
        "grad_state": grad_state,
        "grad_coefficients": grad_coefficients,
        "grad_skip": grad_skip,
    }


def _computed(x: Arrays, form: MixForm) -> Arrays:
    """The same six arrays by one of the forms, in float32."""

    @_jit
    def run(x: dict[str, jax.Array]) -> Any:
        primals = (x["u"], x["state"], x["coefficients"], x["skip"])
        results, transpose = jax.vjp(form, *primals)
        return results, transpose((x["grad_y"], x["grad_last"]))

    results, grads = run({name: jnp.asarray(value, jnp.float32) for name, value in x.items()})
    names = ("y", "last", "grad_u", "grad_state", "grad_coefficients", "grad_skip")
    return {n: np.asarray(v) for n, v in zip(names, (*results, *grads), strict=True)}


def _cases() -> list[tuple[int, str]]:
    """Every length in every form; of the chunks above a length one is enough: it is cut to it."""
    cases = []
    for time in LENGTHS:
        chunks = [c for c in CHUNKS if c <= time] + [c for c in CHUNKS if c > time][:1]
        cases += [(time, name) for name in ("fft", "recurrent", *(f"chunk {c}" for c in chunks))]
    return cases


@pytest.mark.parametrize(("time", "name"), _cases())
def test_every_form_is_the_definition_with_its_gradients(time: int, name: str) -> None:
    """Values, last states and all four gradients, from a state that is not zero."""
    x, bank = _inputs(time), _bank()
    expected, computed = _naive(x, bank), _computed(x, _form(name, bank))
    for what, value in expected.items():
        error = np.max(np.abs(computed[what] - value)) / np.max(np.abs(value))
        assert error < 5e-6, f"{what}: relative error {error:.1e}"


def test_the_comparison_sees_a_wrong_form() -> None:
    """A kernel without its state, and one that is a token late, are not taken for the mixer."""
    x, bank = _inputs(7), _bank()
    expected = _naive(x, bank)

    def forgets(u: Any, state: Any, coefficients: Any, skip: Any) -> Any:
        return mix_chunked(u, 0 * state, coefficients, skip, bank=bank, chunk_size=4)

    def late(u: Any, state: Any, coefficients: Any, skip: Any) -> Any:
        u = jnp.pad(u, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return mix_chunked(u, state, coefficients, skip, bank=bank, chunk_size=4)

    for wrong in (forgets, late):
        computed = _computed(x, wrong)
        for what in ("y", "last", "grad_coefficients"):
            assert np.max(np.abs(computed[what] - expected[what])) > 1e-2


@pytest.mark.parametrize("name", ["fft", "recurrent", "chunk 16"])
def test_uneven_pieces_give_the_whole(name: str) -> None:
    """The state is all that a piece needs of what came before."""
    x = {n: jnp.asarray(v, jnp.float32) for n, v in _inputs(120).items()}
    form = _jit(_form(name, _bank()))
    whole, last = form(x["u"], x["state"], x["coefficients"], x["skip"])
    pieces, state, start = [], x["state"], 0
    for length in (5, 5, 1, 37, 37, 35):
        piece = x["u"][:, start : start + length]
        y, state = form(piece, state, x["coefficients"], x["skip"])
        pieces.append(y)
        start += length
    assert start == 120
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=5e-5)
    np.testing.assert_allclose(state, last, rtol=0, atol=2e-5)


def _recurrence(x: Arrays, bank: FilterBank) -> tuple[np.ndarray, np.ndarray]:
    """Token by token in float64."""
    state, out = x["state"], np.empty_like(x["u"])
    for t in range(x["u"].shape[1]):
        u_BD = x["u"][:, t]
        state = np.einsum("nm,bmd->bnd", bank.transition_NN, state)
        state = state + bank.drive_N[:, None] * u_BD[:, None, :]
        out[:, t] = np.einsum("nd,bnd->bd", x["coefficients"], state) + x["skip"] * u_BD
    return out, state


def test_far_beyond_the_training_length_nothing_drifts() -> None:
    """64 times the length that the time constants were made for, chunks against float64."""
    length = 64
    bank = balanced_poles(POLES, 0.5, length / 4)
    x = _inputs(64 * length)
    expected, last = _recurrence(x, bank)
    form = _jit(partial(mix_chunked, bank=bank, chunk_size=16))
    names = ("u", "state", "coefficients", "skip")
    y, state = form(*(jnp.asarray(x[name], jnp.float32) for name in names))
    scale = np.max(np.abs(expected))
    assert np.max(np.abs(y[:, -length:] - expected[:, -length:])) / scale < 1e-5
    assert np.max(np.abs(y - expected)) / scale < 1e-5
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-4 * float(np.max(np.abs(last))))


def test_state_norms_are_flat_from_the_training_length_on() -> None:
    """White input: the norm of the state at L and at 64 L differs by less than 1%."""
    length, rows, channels = 64, 16, 512
    bank = balanced_poles(POLES, 0.5, length / 4)
    form = partial(mix_chunked, bank=bank, chunk_size=16)
    zero, one = jnp.zeros((POLES, channels)), jnp.zeros(channels)

    def advance(state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = jax.random.normal(key, (rows, length, channels))
        state = form(u, state, zero, one)[1]
        return state, jnp.sqrt(jnp.mean(state * state))

    start = jnp.zeros((rows, POLES, channels))
    _, norms = jax.lax.scan(advance, start, jax.random.split(jax.random.key(0), 64))
    assert abs(float(norms[-1] / norms[0]) - 1) < 0.01
    assert np.max(np.abs(np.asarray(norms) - 1)) < 0.01


def test_short_operands_cost_little_and_do_not_add_up() -> None:
    """bf16 operands: an error of less than 1e-2, as small at 4,096 tokens as at 64."""
    bank = balanced_poles(POLES, 0.5, 64.0)
    x = {n: jnp.asarray(v, jnp.float32) for n, v in _inputs(4096, channels=16).items()}
    short_u = x["u"].astype(jnp.bfloat16)
    form = _jit(partial(mix_chunked, bank=bank, chunk_size=32))
    rest = (x["state"], x["coefficients"], x["skip"])
    exact, exact_last = form(short_u.astype(jnp.float32), *rest)
    short, last = form(short_u, *rest)
    assert short.dtype == jnp.bfloat16
    assert last.dtype == jnp.float32
    error = np.asarray(short, np.float32) - np.asarray(exact)
    early = np.linalg.norm(error[:, :64]) / np.linalg.norm(exact[:, :64])
    late = np.linalg.norm(error[:, -64:]) / np.linalg.norm(exact[:, -64:])
    assert early < 1e-2
    assert late < 1e-2
    assert late < 1.2 * early
    assert np.linalg.norm(last - exact_last) / np.linalg.norm(exact_last) < 1e-2
