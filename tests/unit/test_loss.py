"""The loss, against a slow and obvious one in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.training import loss
from spectral_dist.training.loss import _parts


class Given:
    """A model whose hidden values are its logits."""

    def __init__(self, logits: jax.Array) -> None:
        self.given, self.vocab_size = logits, logits.shape[-1]

    def hidden(self, tokens: jax.Array) -> tuple[jax.Array, None]:
        return self.given, None

    def logits(self, hidden: jax.Array) -> jax.Array:
        return hidden


def token_cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    return loss.token_cross_entropy(Given(logits), logits, targets)  # type: ignore[arg-type]


def loss_sums(logits: jax.Array, targets: jax.Array, z_loss: float) -> tuple[jax.Array, jax.Array]:
    tokens = jnp.concatenate([targets[:, :1], targets], axis=1)
    return loss.loss_sums(Given(logits), tokens, z_loss)  # type: ignore[arg-type]


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


def test_a_large_vocabulary_in_parts_is_the_same_loss_and_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = jnp.float32(RNG.normal(size=(3, 12, 2048)) * 4)
    targets = jnp.asarray(RNG.integers(0, 2048, (3, 12)))

    def run(kept: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        monkeypatch.setattr(loss, "_KEPT", kept)
        nats, log_sums = token_cross_entropy(logits, targets)
        return nats, log_sums, jax.grad(lambda x: loss_sums(x, targets, 0.1)[0])(logits)

    for whole, parts in zip(run(4096), run(512), strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-6)
    expected, _ = naive(np.asarray(logits, np.float64), np.asarray(targets))
    np.testing.assert_allclose(token_cross_entropy(logits, targets)[0], expected, rtol=1e-5)


def test_the_parts_are_equal_and_their_logits_small() -> None:
    assert [_parts(2048, v) for v in (256, 1024, 1025, 8192, 32768)] == [1, 1, 2, 8, 32]
    assert _parts(7, 4096) == 7
    assert _parts(1, 1 << 20) == 1
