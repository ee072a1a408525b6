"""Full causal attention (grouped queries, RoPE, QK-norm), and what window attention shares with it.

The state of full attention would grow with the sequence: it is the baseline to compare with, and
cannot generate. Read `attend`, then `GroupedQueryAttention`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectral_dist.array_typing import Array, Float, Int32
from spectral_dist.mesh import local
from spectral_dist.model.layers import (
    RMSNorm,
    convolve_from_start,
    fan_in,
    identity_taps,
    parameter,
)
from spectral_dist.settings import AttentionConfig, ModelConfig

ROTARY_BASE = 10_000.0

# The logical axes of queries [B, T, H, E] and of keys and values [B, T, G, E].
AT_QUERY = ("batch", "time", "heads", "head")
AT_KEY = ("batch", "time", "kv_heads", "head")
AT_REACH = ("batch", "time")


def _rotations(start: int, length: int, half: int) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine of the rotary angles at `length` positions, float32 [length, half]."""
    # Exact at any position: the angles of coarse and fine steps are computed in float64, and added
    # as rotations. A product of position and frequency in float32 would lose a digit every tenfold.
    frequencies = ROTARY_BASE ** (-np.arange(half) / half)
    step = 256
    coarse = np.outer(start + step * np.arange(-(-length // step)), frequencies)
    fine = np.outer(np.arange(min(step, length)), frequencies)

    def table(angles: np.ndarray, function: np.ufunc) -> jax.Array:
        return jnp.asarray(function(angles), jnp.float32)

    cos_a, sin_a = table(coarse, np.cos)[:, None], table(coarse, np.sin)[:, None]
    cos_b, sin_b = table(fine, np.cos)[None], table(fine, np.sin)[None]
    cos, sin = cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b
    return cos.reshape(-1, half)[:length], sin.reshape(-1, half)[:length]


def rotate(x: Float[Array, "B S H E"], start: int) -> Float[Array, "B S H E"]:
    """Rotary position embedding (RoPE): rotate (x[e], x[e + E/2]) by position * base^(-2 e / E).

    Args:
      x: queries or keys at positions start, start + 1, ...
      start: position of the first one, in tokens.

    Source: Su et al. 2021, arXiv:2104.09864.
    """
    half = x.shape[-1] // 2
    cos, sin = (table[None, :, None, :] for table in _rotations(start, x.shape[1], half))
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def attend(
    query: Float[Array, "B Q H E"],
    key: Float[Array, "B S G E"],
    value: Float[Array, "B S G E"],
    visible: jax.Array,
) -> Float[Array, "B Q H E"]:
    """Softmax attention with grouped keys; scores and softmax in float32.

    Args:
      query: queries, rotated.
      key: keys, rotated; H / G heads of queries share one.
      value: values.
      visible: bool, [B or 1, Q, S]; the keys that each query may see, at least one.
    """
    batch, queries, heads, size = query.shape
    groups = key.shape[2]
    # The H / G query heads of a group get a dimension of their own: no key is copied for them.
    grouped = query.reshape(batch, queries, groups, heads // groups, size)
    scores = jnp.einsum("bqgre,bsge->bgrqs", grouped, key, preferred_element_type=jnp.float32)
    # -inf and not a large number: a row without a visible key would give NaN, and be noticed.
    scores = jnp.where(visible[:, None, None], scores / math.sqrt(size), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bgrqs,bsge->bqgre", weights, value).reshape(query.shape)


def full_attention(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T G E"],
    value: Float[Array, "B T G E"],
    reach_BT: Int32[Array, "B T"] | None = None,
) -> Float[Array, "B T H E"]:
    """Causal attention: every query attends to all tokens up to its own, of its own document."""
    time = query.shape[1]
    back = np.arange(time)[:, None] - np.arange(time)
    visible = jnp.asarray(back >= 0)[None]
    if reach_BT is not None:
        visible &= jnp.asarray(back)[None] <= reach_BT[:, :, None]
    return attend(rotate(query, 0), rotate(key, 0), value, visible)


class GroupedQueryAttention(nnx.Module):
    """Parameters and projections of grouped-query attention (GQA) with QK-norm.

    Sharding: heads over tensor; the one all-reduce comes after w_out.
    """

    def __init__(self, model: ModelConfig, rngs: nnx.Rngs, conv_width: int = 1) -> None:
        """Declare w_query [D, H E], w_key_value [D, 2, G E], two norms [E] and w_out [H E, D].

        A short convolution of K > 1 taps has query_taps [K, H E] and key_value_taps [K, 2, G E].
        """
        dim, size, kv_heads = model.hidden_dim, model.head_dim, model.num_kv_heads
        assert kv_heads is not None
        self.shape = (dim // size, kv_heads, size)
        kv_axes = ("embed", "branches", "kv_heads")
        self.w_query = parameter(rngs, (dim, dim), ("embed", "heads"), fan_in(dim))
        self.w_key_value = parameter(rngs, (dim, 2, kv_heads * size), kv_axes, fan_in(dim))
        # QK-norm bounds the scores, so that a high learning rate cannot saturate the softmax.
        self.query_norm = RMSNorm(size, "head", rngs)
        self.key_norm = RMSNorm(size, "head", rngs)
        self.w_out = parameter(rngs, (dim, dim), ("heads", "embed"), fan_in(dim, model.num_layers))
        self.conv_width = conv_width
        if conv_width > 1:
            taps, wide = (conv_width, dim), (conv_width, 2, kv_heads * size)
            self.query_taps = parameter(rngs, taps, ("taps", "heads"), identity_taps)
            self.key_value_taps = parameter(
                rngs, wide, ("taps", "branches", "kv_heads"), identity_taps
            )

    def project(
        self, x_BTD: Float[Array, "B T D"], reach_BT: Int32[Array, "B T"] | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return queries [B, T, H, E], keys and values [B, T, G, E], in x's dtype."""
        dtype = x_BTD.dtype
        batch, time, _ = x_BTD.shape
        heads, kv_heads, size = self.shape
        query = x_BTD @ self.w_query[...].astype(dtype)
        both = jnp.einsum("btd,dkg->btkg", x_BTD, self.w_key_value[...].astype(dtype))
        key, value = (both[:, :, i] for i in range(2))
        if self.conv_width > 1:  # of a whole sequence, which begins here
            taps = self.key_value_taps[...]
            query = convolve_from_start(query, self.query_taps[...], reach_BT)
            key, value = (
                convolve_from_start(x, taps[:, i], reach_BT) for i, x in enumerate((key, value))
            )
        query = query.reshape(batch, time, heads, size)
        key, value = (x.reshape(batch, time, kv_heads, size) for x in (key, value))
        return self.query_norm(query), self.key_norm(key), value

    def project_out(self, mixed: Float[Array, "B T H E"]) -> Float[Array, "B T D"]:
        """Project the heads back to the residual stream: [B, T, D]."""
        batch, time, _, _ = mixed.shape
        return mixed.reshape(batch, time, -1) @ self.w_out[...].astype(mixed.dtype)

    def attention_flops(self, keys: int | float) -> float:
        """Return FLOPs of one query that sees `keys` keys."""
        # 2 for each element of the scores' products, 2 for each of the weighted sum of values.
        heads, _, size = self.shape
        return 4.0 * keys * heads * size


class FullAttention(GroupedQueryAttention):
    """Full causal attention, the baseline."""

    def __init__(self, model: ModelConfig, settings: AttentionConfig, rngs: nnx.Rngs) -> None:
        """Declare the parameters of attention."""
        super().__init__(model, rngs, settings.conv_width)

    def flops(self, seq_len: int) -> float:
        """Return forward FLOPs for a token of a sequence of T tokens."""
        # The t-th query sees t keys: on average (T + 1) / 2.
        return self.attention_flops((seq_len + 1) / 2)

    def init_state(self, batch: int, dtype: jnp.dtype) -> None:
        """Return None: the state would be all keys and values (a KV cache), and grow."""
        del batch, dtype

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        state: None,
        reach_BT: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], None]:
        """Mix along time; operands in x's dtype, softmax in float32.

        Args:
          x_BTD: normalised input, from the start of a sequence.
          state: None.
          reach_BT: how many tokens before its own each sees; all, if it is None.
        """
        assert state is None, "full attention takes a whole sequence at once"
        axes = (AT_QUERY, AT_KEY, AT_KEY, None if reach_BT is None else AT_REACH)
        mixed = local(full_attention, axes, AT_QUERY)(*self.project(x_BTD, reach_BT), reach_BT)
        return self.project_out(mixed), None
