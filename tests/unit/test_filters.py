"""The bank of exponentials: its identities, and what it can reproduce."""

import numpy as np
import pytest

from spectral_dist.model.filters import Float64, balanced_poles

BANKS = [(1, 0.5, 8.0), (2, 3.0, 3.1), (8, 1.0, 64.0), (16, 0.5, 2048.0), (64, 0.5, 2048.0)]


def _exponentials(taus_N: Float64, length: int) -> Float64:
    """Unit-norm decaying exponentials, by definition: [length, N]."""
    a_N = np.exp(-1.0 / taus_N)
    return np.sqrt(1.0 - a_N**2) * a_N ** np.arange(length)[:, None]


@pytest.mark.parametrize(("num_poles", "tau_min", "tau_max"), BANKS)
def test_the_system_is_balanced(num_poles: int, tau_min: float, tau_max: float) -> None:
    """A A^T + b b^T = I and no direction grows, whatever the number and the spread of the poles."""
    bank = balanced_poles(num_poles, tau_min, tau_max)
    transition_NN, drive_N = bank.transition_NN, bank.drive_N
    identity_NN = transition_NN @ transition_NN.T + np.outer(drive_N, drive_N)
    np.testing.assert_allclose(identity_NN, np.eye(num_poles), rtol=0, atol=1e-13)
    if num_poles > 1:  # one pole alone shrinks by itself
        assert np.linalg.norm(transition_NN, 2) == pytest.approx(1.0, abs=1e-13)
    np.testing.assert_allclose(
        np.diag(transition_NN), np.exp(-1.0 / bank.taus_N), rtol=0, atol=1e-13
    )
    assert np.max(np.abs(np.triu(transition_NN, 1))) == 0  # so these are its eigenvalues


@pytest.mark.parametrize(("num_poles", "tau_min", "tau_max"), BANKS[:4])
def test_responses_are_orthonormal_over_time(
    num_poles: int, tau_min: float, tau_max: float
) -> None:
    responses_TN = balanced_poles(num_poles, tau_min, tau_max).responses(int(20 * tau_max))
    gram_NN = responses_TN.T @ responses_TN
    np.testing.assert_allclose(gram_NN, np.eye(num_poles), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("num_poles", "tau_min", "tau_max"), BANKS)
def test_cholesky_rows_are_the_exponentials(num_poles: int, tau_min: float, tau_max: float) -> None:
    """Row n of R turns the orthonormal responses into b_n a_n^t, also where 64 poles crowd."""
    bank = balanced_poles(num_poles, tau_min, tau_max)
    assert np.all(np.triu(bank.cholesky_NN, 1) == 0)
    mixed_TN = bank.responses(1000) @ bank.cholesky_NN.T
    np.testing.assert_allclose(mixed_TN, _exponentials(bank.taus_N, 1000), rtol=0, atol=1e-13)
    norms_N = np.linalg.norm(bank.cholesky_NN, axis=1)
    np.testing.assert_allclose(norms_N, 1.0, rtol=0, atol=1e-13)


def test_time_constants_are_log_spaced_from_end_to_end() -> None:
    taus_N = balanced_poles(13, 0.5, 2048.0).taus_N
    np.testing.assert_allclose(taus_N, 0.5 * 2.0 ** np.arange(13), rtol=1e-12)


def test_powers_are_those_of_the_transition() -> None:
    bank = balanced_poles(6, 0.5, 100.0)
    for t, power_NN in enumerate(bank.powers(20), start=1):
        expected_NN = np.linalg.matrix_power(bank.transition_NN, t)
        np.testing.assert_allclose(power_NN, expected_NN, rtol=0, atol=1e-13)


def test_white_input_gives_a_state_of_unit_covariance() -> None:
    """Measured over 40,000 independent states, each driven for 20 time constants."""
    bank = balanced_poles(5, 0.5, 8.0)
    noise = np.random.default_rng(0)
    states_NS = np.zeros((5, 40_000))
    for _ in range(160):
        inputs_S = noise.standard_normal(40_000)
        states_NS = bank.transition_NN @ states_NS + np.outer(bank.drive_N, inputs_S)
    covariance_NN = states_NS @ states_NS.T / 40_000
    np.testing.assert_allclose(covariance_NN, np.eye(5), rtol=0, atol=0.03)


def test_sixteen_poles_reproduce_every_exponential() -> None:
    """The figure that the default bank stands on: at most 2.5e-3 of the norm is lost, any tau."""
    bank = balanced_poles(16, 0.5, 2048.0)
    taus_K = np.geomspace(0.5, 2048.0, 401)
    a_N, a_K = np.exp(-1.0 / bank.taus_N), np.exp(-1.0 / taus_K)
    # Inner products over all time: sum_t b_n b_k (a_n a_k)^t.
    norms_NK = np.sqrt(np.outer(1.0 - a_N**2, 1.0 - a_K**2))
    products_NK = norms_NK / (1.0 - np.outer(a_N, a_K))
    kept_NK = np.linalg.solve(bank.cholesky_NN, products_NK)
    missed_K = np.sqrt(1.0 - np.sum(kept_NK**2, axis=0).clip(max=1.0))
    assert np.max(missed_K) < 2.5e-3
    assert np.max(missed_K) > 1e-4  # and it is measured, not an empty difference


def test_sixteen_poles_reproduce_the_spectral_filters() -> None:
    """The leading Hankel filters, weighted as their users weight them (by sigma^(1/4)), to 1e-2."""
    length, count = 512, 24
    at = np.arange(1, length + 1, dtype=np.float64)
    sums = at[:, None] + at[None, :]
    sigma, vectors = np.linalg.eigh(2.0 / (sums**3 - sums))
    filters_TK = vectors[:, ::-1][:, :count] * sigma[::-1][:count] ** 0.25
    responses_TN = balanced_poles(16, 0.5, 2048.0).responses(length)
    mixture_NK = np.linalg.lstsq(responses_TN, filters_TK, rcond=None)[0]
    missed_K = np.linalg.norm(filters_TK - responses_TN @ mixture_NK, axis=0)
    assert missed_K[0] < 2e-3
    assert np.max(missed_K) < 1e-2
