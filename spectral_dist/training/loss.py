"""The loss: cross-entropy of the next token, in nats, and the z-loss.

Knows nothing of gradients or devices. Read `loss_sums`.
"""

import jax
import jax.numpy as jnp

from spectral_dist.array_typing import Array, Float32, Int


def token_cross_entropy(
    logits_BTV: Float32[Array, "B T V"], targets_BT: Int[Array, "B T"]
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Return the cross-entropy of each target in nats, and the log of the softmax's denominator."""
    # One log-sum-exp serves the loss and the z-loss; no [B, T, V] of log probabilities is made.
    log_sum_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return log_sum_BT - target_BT, log_sum_BT


def loss_sums(
    logits_BTV: Float32[Array, "B T V"], targets_BT: Int[Array, "B T"], z_loss: float
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Return the loss to differentiate (with z-loss) and the plain cross-entropy, summed, in nats.

    Args:
      logits_BTV: unnormalised log probabilities.
      targets_BT: the next token at each position.
      z_loss: weight of the squared log of the softmax's denominator; it keeps the logits from
        drifting (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
    """
    loss_BT, log_sum_BT = token_cross_entropy(logits_BTV, targets_BT)
    # Sums, not means: those of micro-batches and of devices add up exactly, whatever their sizes.
    total = jnp.sum(loss_BT)
    return total + z_loss * jnp.sum(log_sum_BT * log_sum_BT), total
