"""The loss, against a slow and obvious one in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.training.loss import loss_sums, token_cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 7, 256)) * 4
TARGETS = RNG.integers(0, 256, (3, 7))


def naive(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return surprise and log of the softmax's sum, token by token, in float64."""
    nats, log_sums = np.empty(targets.shape), np.empty(targets.shape)
    for place in np.ndindex(*targets.shape):
        weights = np.exp(logits[place])
        nats[place] = -np.log(weights[targets[place]] / weights.sum())
        log_sums[place] = np.log(weights.sum())
    return nats, log_sums


def test_surprise_of_each_token() -> None:
    nats, log_sums = token_cross_entropy(jnp.float32(LOGITS), jnp.asarray(TARGETS))
    expected_nats, expected_log_sums = naive(LOGITS, TARGETS)
    np.testing.assert_allclose(nats, expected_nats, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_sums, expected_log_sums, rtol=1e-6)


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.5])
def test_sums_with_and_without_z_loss(z_loss: float) -> None:
    objective, plain = loss_sums(jnp.float32(LOGITS), jnp.asarray(TARGETS), z_loss)
    nats, log_sums = naive(LOGITS, TARGETS)
    np.testing.assert_allclose(plain, nats.sum(), rtol=1e-6)
    np.testing.assert_allclose(objective, nats.sum() + z_loss * (log_sums**2).sum(), rtol=1e-6)


def test_z_loss_pulls_the_logits_towards_a_sum_of_one() -> None:
    """The objective's gradient along a shift of all logits is that of z log^2 alone."""
    logits, targets = jnp.float32(LOGITS), jnp.asarray(TARGETS)
    grad = jax.grad(lambda shift: loss_sums(logits + shift, targets, 0.1)[0])(jnp.float32(0))
    _, log_sums = naive(LOGITS, TARGETS)
    np.testing.assert_allclose(grad, 0.1 * 2 * log_sums.sum(), rtol=1e-4)


def test_even_odds_cost_ln_256_and_huge_logits_stay_finite() -> None:
    even, _ = token_cross_entropy(jnp.zeros((1, 2, 256)), jnp.zeros((1, 2), jnp.int32))
    np.testing.assert_allclose(even, np.log(256), rtol=1e-6)
    huge, _ = token_cross_entropy(jnp.full((1, 1, 256), 1e30), jnp.zeros((1, 1), jnp.int32))
    assert np.isfinite(huge).all()
