"""The loss: cross-entropy of the next token, in nats, and the z-loss.

Knows nothing of gradients or devices. Read `loss_sums`, then `token_cross_entropy`.
"""

import jax
import jax.numpy as jnp

from spectral_dist.array_typing import Array, Float, Float32, Int
from spectral_dist.mesh import constrain, shards
from spectral_dist.model.lm import SpectralLM

# Logits of so many tokens of the vocabulary are kept for every position; of a larger vocabulary
# those of a part of the positions, one part after the other. 1,024 float32 are 4 kB a position,
# a few times the residual stream.
_KEPT = 1024


def loss_sums(
    model: SpectralLM, tokens_BT1: Int[Array, "B T1"], z_loss: float
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Return the loss to differentiate (with z-loss) and the plain cross-entropy, summed, in nats.

    Args:
      model: with its parameters.
      tokens_BT1: [B, T + 1]: the inputs are all but the last, the targets all but the first.
      z_loss: weight of the squared log of the softmax's denominator; it keeps the logits from
        drifting (Chowdhery et al. 2022, arXiv:2204.02311, section 5).
    """
    hidden_BTD, _ = model.hidden(tokens_BT1[:, :-1])
    loss_BT, log_sum_BT = token_cross_entropy(model, hidden_BTD, tokens_BT1[:, 1:])
    # Sums, not means: those of micro-batches and of devices add up exactly, whatever their sizes.
    total = jnp.sum(loss_BT)
    return total + z_loss * jnp.sum(log_sum_BT * log_sum_BT), total


def token_cross_entropy(
    model: SpectralLM, hidden_BTD: Float[Array, "B T D"], targets_BT: Int[Array, "B T"]
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Return the cross-entropy of each target in nats, and the log of the softmax's denominator.

    With a large vocabulary no [B, T, V] of logits exists: those of a part of the positions are
    made at a time, and made again in the backward pass.
    """
    batch, time = targets_BT.shape
    parts = _parts(time // shards("time"), model.vocab_size)
    if parts == 1:
        return _cross_entropy(model, hidden_BTD, targets_BT)

    @jax.checkpoint
    def part(
        hidden_BCD: jax.Array, targets_BC: jax.Array
    ) -> tuple[Float32[Array, "B C"], Float32[Array, "B C"]]:
        return _cross_entropy(model, constrain(hidden_BCD, "batch", "time", "width"), targets_BC)

    # Each shard of time gives an equal piece to every part: nothing moves between devices.
    def split(x: jax.Array) -> jax.Array:
        divided = x.reshape(batch, shards("time"), parts, -1, *x.shape[2:])
        return jnp.moveaxis(divided, 2, 0).reshape(parts, batch, -1, *x.shape[2:])

    def join(x_nBC: jax.Array) -> jax.Array:
        divided = x_nBC.reshape(parts, batch, shards("time"), -1)
        return jnp.moveaxis(divided, 0, 2).reshape(batch, time)

    loss, log_sum = jax.lax.map(lambda xs: part(*xs), (split(hidden_BTD), split(targets_BT)))
    return join(loss), join(log_sum)


def _parts(positions: int, vocab_size: int) -> int:
    """Return into how many equal parts some positions are divided."""
    wanted = min(-(-vocab_size // _KEPT), positions)
    return next(n for n in range(wanted, positions + 1) if positions % n == 0)


def _cross_entropy(
    model: SpectralLM, hidden_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits_BTV = model.logits(hidden_BTD)
    # One log-sum-exp serves the loss and the z-loss; no [B, T, V] of log probabilities is made.
    log_sum_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # A sum with one term and not a gather: it stays on the shard that holds the target's logit.
    places_V = jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)[None, None]
    is_target = places_V == targets_BT[..., None]
    target_BT = jnp.sum(jnp.where(is_target, logits_BTV, 0), axis=-1)
    return log_sum_BT - target_BT, log_sum_BT
