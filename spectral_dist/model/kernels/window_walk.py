"""What one program of the window attention's GPU kernels does.

A program owns one block of queries (or keys) of one head and walks over the blocks that it can see:
no array of scores exists in memory, and blocks outside the window are never touched, in either
direction. window.py calls these. Read `forward_kernel` first.

Source: Dao 2023, arXiv:2307.08691 (FlashAttention-2), restricted to a window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

_LOW = -1e30  # in place of -inf: the difference of two is 0 and not NaN


@dataclass(frozen=True)
class Sizes:
    """The static sizes of a call: T queries after `before` keys, in blocks.

    Attributes:
      window: W; a query at position p among the keys sees (p - W, p].
      before: keys in front of the first query's own.
      queries, keys: block sizes.
      group: H / G, heads of queries that share a head of keys.
      empty: whether some of the keys in front hold no token.
      scale: of the scores, times log2(e): the softmax is in powers of two.
    """

    window: int
    before: int
    queries: int
    keys: int
    group: int
    empty: bool
    scale: float


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=exact)


def _walk(
    body: Callable[..., Any], at: Sizes, start: Any, bounds: tuple[Any, Any, Any, Any]
) -> Any:
    """Run body over blocks [low, high); only those in [inner_low, inner_high) need no mask."""
    low, inner_low, inner_high, high = bounds
    masked, plain = partial(body, masked=True), partial(body, masked=False)
    if at.empty:
        return jax.lax.fori_loop(low, high, masked, start)
    inner_low = jnp.clip(inner_low, low, high)
    inner_high = jnp.clip(inner_high, inner_low, high)
    start = jax.lax.fori_loop(low, inner_low, masked, start)
    start = jax.lax.fori_loop(inner_low, inner_high, plain, start)
    return jax.lax.fori_loop(inner_high, high, masked, start)


def _scores(
    query: jax.Array,
    key: jax.Array,
    at_query: Any,
    at_key: Any,
    first: Any,
    at: Sizes,
    masked: Any,
) -> jax.Array:
    """Return scores [queries, keys] in powers of two; those of unseen keys are very low."""
    scores = _dot(query, key.T) * at.scale
    if not masked:
        return scores
    i = at_query + jnp.arange(at.queries)[:, None]
    j = at_key + jnp.arange(at.keys)[None, :]
    visible = (j <= i) & (j > i - at.window)
    if at.empty:
        visible &= j >= first
    return jnp.where(visible, scores, _LOW)


def _seen_keys(at_query: Any, at: Sizes) -> tuple[Any, Any, Any, Any]:
    """Return the blocks of keys that a block of queries sees, for `_walk`."""
    last = at_query + at.queries - 1
    low = jnp.maximum(at_query - at.window + 1, 0) // at.keys
    inner_low = jnp.maximum(last - at.window + at.keys, 0) // at.keys
    return low, inner_low, (at_query + 1) // at.keys, last // at.keys + 1


def forward_kernel(
    first_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, lse_ref: Any, *, at: Sizes
) -> None:
    """Write what a block of queries attends to, and the logarithm of its softmax's sums."""
    at_query = pl.program_id(2) * at.queries + at.before
    query, first = q_ref[:, :], first_ref[0]

    def body(n: Any, held: Any, masked: bool) -> Any:
        highest, total, mixed = held
        here = pl.ds(n * at.keys, at.keys)
        scores = _scores(query, k_ref[here, :], at_query, n * at.keys, first, at, masked)
        higher = jnp.maximum(highest, jnp.max(scores, axis=1))
        weights, faded = jnp.exp2(scores - higher[:, None]), jnp.exp2(highest - higher)
        values = v_ref[here, :]
        mixed = mixed * faded[:, None] + _dot(weights.astype(values.dtype), values)
        return higher, total * faded + jnp.sum(weights, axis=1), mixed

    rows, size = query.shape
    start = (
        jnp.full((rows,), _LOW, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, size), jnp.float32),
    )
    highest, total, mixed = _walk(body, at, start, _seen_keys(at_query, at))
    out_ref[:, :] = (mixed / total[:, None]).astype(out_ref.dtype)
    lse_ref[:] = highest + jnp.log2(total)


def queries_kernel(
    first_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    dout_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    dq_ref: Any,
    *,
    at: Sizes,
) -> None:
    """Write the gradient of a block of queries."""
    at_query = pl.program_id(2) * at.queries + at.before
    query, dout, lse, delta = q_ref[:, :], dout_ref[:, :], lse_ref[:], delta_ref[:]
    first = first_ref[0]

    def body(n: Any, dq: Any, masked: bool) -> Any:
        here = pl.ds(n * at.keys, at.keys)
        key = k_ref[here, :]
        scores = _scores(query, key, at_query, n * at.keys, first, at, masked)
        weights = jnp.exp2(scores - lse[:, None])
        dscores = weights * (_dot(dout, v_ref[here, :].T) - delta[:, None])
        return dq + _dot(dscores.astype(key.dtype), key)

    dq = _walk(body, at, jnp.zeros(query.shape, jnp.float32), _seen_keys(at_query, at))
    dq_ref[:, :] = (dq * (at.scale * math.log(2))).astype(dq_ref.dtype)


def keys_kernel(
    first_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    dout_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    at: Sizes,
    time: int,
) -> None:
    """Write the gradients of a block of keys and of its values, over all queries that see it."""
    at_key = pl.program_id(2) * at.keys
    key, value, first = k_ref[:, :], v_ref[:, :], first_ref[0]
    # Queries counted from the first one; the keys in front have no query of their own.
    start = at_key - at.before
    stop = start + at.keys - 1 + at.window
    blocks = time // at.queries
    low = jnp.maximum(start, 0) // at.queries
    high = jnp.clip((stop - 1) // at.queries + 1, low, blocks)
    inner_low = (jnp.maximum(start + at.keys - 1, 0) + at.queries - 1) // at.queries
    inner_high = jnp.maximum(start + at.window, 0) // at.queries

    held = jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32)
    for head in range(at.group):

        def body(n: Any, held: Any, masked: bool, head: int = head) -> Any:
            dk, dv = held
            here = pl.ds(n * at.queries, at.queries)
            query, dout = q_ref[here, head, :], dout_ref[here, head, :]
            at_query = n * at.queries + at.before
            scores = _scores(query, key, at_query, at_key, first, at, masked)
            weights = jnp.exp2(scores - lse_ref[head, here][:, None])
            dv = dv + _dot(weights.astype(dout.dtype).T, dout)
            dscores = weights * (_dot(dout, value.T) - delta_ref[head, here][:, None])
            return dk + _dot(dscores.astype(query.dtype).T, query), dv

        held = _walk(body, at, held, (low, inner_low, inner_high, high))
    dk, dv = held
    dk_ref[:, :] = (dk * (at.scale * math.log(2))).astype(dk_ref.dtype)
    dv_ref[:, :] = dv.astype(dv_ref.dtype)
