"""The ssd mixer: linear attention in heads whose state decays, state space duality.

    S[t] = a[t] S[t-1] + (1 - a[t]) k[t] v[t]^T,    y[t] = q[t] S[t]

Each head has one decay a[t] between 0 and 1: a constant, or a function of the token ("data"). The
gain 1 - a[t] makes the state a weighted mean, which no length drives away. A memory is never longer
than tau_max tokens.

It is computed in chunks by matrix products (training) or token by token (generation), which agree.
Source: Dao and Gu 2024, arXiv:2405.21060, section 6; the gain is that of a leaky integrator. Read
`mix_heads` first, then `SSDMixer`.

Shapes: H heads of E channels each with a value; G groups of H / G heads that share queries and
keys of N = E channels; C tokens of a chunk; K taps.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectral_dist.array_typing import Array, Float, Float32, Int32
from spectral_dist.mesh import local, platform
from spectral_dist.model.documents import (
    goes_through,
    masked,
    of_last_document,
    visible_to_next,
)
from spectral_dist.model.layers import (
    causal_convolution,
    fan_in,
    identity_taps,
    parameter,
    rms_norm,
)
from spectral_dist.model.sequence import TimeShards, time_shards
from spectral_dist.settings import ModelConfig, SSDConfig

_CHUNK = 128  # tokens, where a chunk's products are fast
# The lowest log a[t], e^-20: of sums of lower ones in a chunk, float32 would lose what slow heads
# differ by.
_LOWEST = -20.0


class SSDState(NamedTuple):
    """The state after a sequence; its size does not depend on the length.

    Attributes:
      value_conv: the last K - 1 inputs of the values' short convolution, [B, K-1, D].
      query_key_conv: those of the queries and keys, [B, K-1, 2, G N]; both of the compute dtype.
      heads: S of each head, [B, H, N, E], float32.
    """

    value_conv: jax.Array
    query_key_conv: jax.Array
    heads: jax.Array


def mix_heads(
    query: Float[Array, "B T G N"],
    key: Float[Array, "B T G N"],
    value: Float[Array, "B T H E"],
    log_decay: Float32[Array, "B T H"],
    state: Float32[Array, "B H N E"],
    reach_BT: Int32[Array, "B T"] | None = None,
    *,
    chunk_size: int,
) -> tuple[Float[Array, "B T H E"], Float32[Array, "B H N E"]]:
    """Mix in chunks of C tokens, all by matrix products: the form for training.

    Inside a chunk y = (Q K^T * decay from the key's token to the query's) V; what came before a
    chunk reaches it through S alone. About 2 C (G N + H E) + 4 H N E FLOPs a token.

    Args:
      query: its dtype is that of the operands of large products; their sums are float32.
      key: of the same dtype.
      value: of the same dtype.
      log_decay: log a[t], below 0.
      state: S before the first token.
      reach_BT: how many tokens before its own each sees (documents.py); all, if it is None.
      chunk_size: C.

    Returns:
      y in the dtype of `value`, and S after the last token.
    """
    time = value.shape[1]
    length = min(chunk_size, time)
    whole = time - time % length
    over_time = query, key, value, log_decay, reach_BT
    early = jax.tree.map(lambda x: x[:, :whole], over_time)
    y, state = _mix_chunks(*early, state=state, length=length)
    if whole == time:
        return y, state
    # One shorter chunk.
    late = jax.tree.map(lambda x: x[:, whole:], over_time)
    rest, state = _mix_chunks(*late, state=state, length=time - whole)
    return jnp.concatenate([y, rest], axis=1), state


def _mix_chunks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    reach_BT: jax.Array | None,
    state: jax.Array,
    length: int,
) -> tuple[jax.Array, jax.Array]:
    """Mix as `mix_heads` does, where chunks of `length` tokens divide the time."""
    batch, time, groups, _ = query.shape
    heads, size = value.shape[2:]
    chunks, share, dtype = time // length, heads // groups, value.dtype

    def cut(x: jax.Array, *rest: int) -> jax.Array:
        return x.reshape(batch, chunks, length, *rest)

    query, key = cut(query, groups, size), cut(key, groups, size)
    value = cut(value, groups, share, size)
    # Time last, as in the products: [B, M, G, H/G, C].
    log_decay = jnp.moveaxis(cut(log_decay, groups, share), 2, -1)
    gain = -jnp.expm1(log_decay)
    # Sums from the start of the chunk: the decay from j to i is exp(total[i] - total[j]).
    total = jnp.cumsum(log_decay, axis=-1)
    # Never above 0 but by rounding, which a sum in another order may bring.
    between = jnp.minimum(total[..., :, None] - total[..., None, :], 0.0)
    reach_BMC = None if reach_BT is None else cut(reach_BT)
    visible = _visible(reach_BMC, length)
    weights = jnp.exp(jnp.where(visible, between, -jnp.inf)) * gain[..., None, :]
    scores = jnp.einsum("bmign,bmjgn->bmgij", query, key, preferred_element_type=jnp.float32)
    scores = (scores[:, :, :, None] * weights).astype(dtype)
    inside = jnp.einsum("bmgrij,bmjgre->bmigre", scores, value)
    to_end = jnp.exp(total[..., -1:] - total) * gain
    to_query, through = jnp.exp(total), jnp.exp(total[..., -1])
    if reach_BMC is not None:  # what crosses the edges of a chunk is of one document
        from_before = reach_BMC > jnp.arange(length)[None, None]
        to_query, to_end = (
            masked(factor.swapaxes(2, -1), keep).swapaxes(2, -1)
            for factor, keep in ((to_query, from_before), (to_end, of_last_document(reach_BMC)))
        )
        through = masked(through, goes_through(reach_BMC))
    inflow = jnp.einsum(
        "bmjgn,bmjgre->mbgrne",
        key,
        value * jnp.moveaxis(to_end, -1, 2)[..., None].astype(dtype),
        preferred_element_type=jnp.float32,
    )
    across = through.swapaxes(0, 1)[..., None, None]

    def carry(state: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return chunk[0] * state + chunk[1], state

    # T / C short steps in sequence: the only loop over time, and the state stays in float32.
    start = state.reshape(batch, groups, share, *state.shape[2:])
    last, before = jax.lax.scan(carry, start, (across, inflow))
    crossing = jnp.einsum("bmign,mbgrne->bmigre", query, before.astype(dtype))
    y = inside + crossing * jnp.moveaxis(to_query, -1, 2)[..., None].astype(dtype)
    return y.reshape(batch, time, heads, size), last.reshape(state.shape)


def _visible(reach_BMC: jax.Array | None, length: int) -> jax.Array:
    """Return which keys of a chunk each of its queries sees: bool [B or 1, M or 1, 1, 1, C, C]."""
    back = np.arange(length)[:, None] - np.arange(length)
    visible = jnp.asarray(back >= 0)[None, None]
    if reach_BMC is not None:
        visible = visible & (jnp.asarray(back)[None, None] <= reach_BMC[..., None])
    return visible[:, :, None, None]


def mix_tokens(
    query: Float[Array, "B T G N"],
    key: Float[Array, "B T G N"],
    value: Float[Array, "B T H E"],
    log_decay: Float32[Array, "B T H"],
    state: Float32[Array, "B H N E"],
    reach_BT: Int32[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T H E"], Float32[Array, "B H N E"]]:
    """Mix token by token, in float32: the form for generation, and the reference of the tests."""
    share = value.shape[2] // query.shape[2]

    def token(state: jax.Array, now: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        q, k, v, log_a = (x.astype(jnp.float32) for x in now[0])
        state = masked(state, now[1])
        q, k = jnp.repeat(q, share, axis=1), jnp.repeat(k, share, axis=1)
        inflow = jnp.einsum("bhn,bhe->bhne", k, v) * -jnp.expm1(log_a)[..., None, None]
        state = jnp.exp(log_a)[..., None, None] * state + inflow
        return state, jnp.einsum("bhn,bhne->bhe", q, state)

    over_time = tuple(x.swapaxes(0, 1) for x in (query, key, value, log_decay))
    goes_on_TB = None if reach_BT is None else (reach_BT > 0).T
    last, y = jax.lax.scan(token, state, (over_time, goes_on_TB))
    return y.swapaxes(0, 1).astype(value.dtype), last


class SSDMixer(nnx.Module):
    """The mixer: silu(gate) * rms_norm(heads of k, v, read by q), between two dense projections.

    Sharding: heads and their groups over tensor, or time over sequence; everything between the
    projections runs on local shards. Between shards of time only states and the short
    convolution's inputs cross.
    """

    def __init__(self, model: ModelConfig, settings: SSDConfig, rngs: nnx.Rngs) -> None:
        """Declare the parameters.

        w_in [D, 2, D] (value, gate), w_query_key [D, 2, G N], w_decay [D, H] (of "data" alone),
        log_rate [H], two sets of taps [K, D] and [K, 2, G N], skip [D] and w_out [D, D].
        """
        dim, size, width = model.hidden_dim, model.head_dim, settings.conv_width
        heads = dim // size
        groups = settings.groups(model)
        assert settings.tau_max is not None
        self.settings = settings
        self.shape = (width, heads, groups, size)
        self.slowest = 1.0 / settings.tau_max
        thin = "thin_channels"

        def spread(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            # Time constants of the heads, log-uniform from 1 token to tau_max; the inverse of
            # softplus, of what comes on top of 1 / tau_max.
            del key
            taus = np.geomspace(1.0, settings.tau_max or 1.0, heads + 1)[:heads]
            rate = 1.0 / taus - self.slowest
            return jnp.asarray(np.log(np.expm1(rate)), jnp.float32).reshape(shape)

        self.w_in = parameter(rngs, (dim, 2, dim), ("embed", "branches", "channels"), fan_in(dim))
        self.w_query_key = parameter(
            rngs, (dim, 2, groups * size), ("embed", "branches", "kv_heads"), fan_in(dim)
        )
        if settings.decay == "data":
            self.w_decay = parameter(rngs, (dim, heads), ("embed", "heads"), fan_in(dim))
        self.log_rate = parameter(rngs, (heads,), ("heads",), spread)
        self.value_taps = parameter(rngs, (width, dim), ("taps", thin), identity_taps)
        self.query_key_taps = parameter(
            rngs, (width, 2, groups * size), ("taps", "branches", "kv_heads"), identity_taps
        )
        self.skip = parameter(rngs, (dim,), (thin,), lambda key, shape: jnp.ones(shape))
        self.w_out = parameter(
            rngs, (dim, dim), ("channels", "embed"), fan_in(dim, model.num_layers)
        )

    def flops(self, seq_len: int) -> float:
        """Return forward FLOPs for a token in the chunked form, the same for any T."""
        del seq_len
        _, heads, groups, size = self.shape
        chunk = self.settings.chunk_size or _CHUNK
        return float(2 * chunk * (groups + heads) * size + 4 * heads * size * size)

    def init_state(self, batch: int, dtype: jnp.dtype) -> SSDState:
        """Return the state before the first token."""
        _, heads, groups, size = self.shape
        return self._start(batch, heads * size, groups * size, dtype)

    def _start(self, batch: int, channels: int, shared: int, dtype: jnp.dtype) -> SSDState:
        """Return the state at the start, of one device's shard of channels."""
        width, _, _, size = self.shape
        return SSDState(
            jnp.zeros((batch, width - 1, channels), dtype),
            jnp.zeros((batch, width - 1, 2, shared), dtype),
            jnp.zeros((batch, channels // size, size, size), jnp.float32),
        )

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        state: SSDState | None,
        reach_BT: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], SSDState]:
        """Mix along time; operands in x's dtype, decays and state in float32.

        Args:
          x_BTD: normalised input.
          state: what came before, or None at the start of a sequence.
          reach_BT: how many tokens before its own each sees; all, if it is None.
        """
        dtype = x_BTD.dtype
        both = jnp.einsum("btd,dkc->btkc", x_BTD, self.w_in[...].astype(dtype))
        shared = jnp.einsum("btd,dkc->btkc", x_BTD, self.w_query_key[...].astype(dtype))
        rate = self.log_rate[...][None, None]
        if self.settings.decay == "data":
            rate = rate + (x_BTD @ self.w_decay[...].astype(dtype)).astype(jnp.float32)
        else:
            rate = jnp.broadcast_to(rate, (*x_BTD.shape[:2], rate.shape[-1]))
        wide, narrow = ("batch", "time", "branches", "channels"), "kv_heads"
        at_state = SSDState._make(
            (
                ("batch", "tokens", "channels"),
                ("batch", "tokens", "branches", narrow),
                ("batch", "heads", "poles", "head"),
            )
        )
        mixed_BTD, state = local(
            partial(self._mix, time_shards()),
            (
                wide,
                ("batch", "time", "branches", narrow),
                ("batch", "time", "heads"),
                None if state is None else at_state,
                ("taps", "channels"),
                ("taps", "branches", narrow),
                ("channels",),
                None if reach_BT is None else ("batch", "time"),
            ),
            (("batch", "time", "channels"), at_state),
        )(
            both,
            shared,
            rate,
            state,
            self.value_taps[...],
            self.query_key_taps[...],
            self.skip[...],
            reach_BT,
        )
        return jnp.einsum("btc,cd->btd", mixed_BTD, self.w_out[...].astype(dtype)), state

    def _mix(
        self,
        across: TimeShards,
        both: Float[Array, "B T 2 D"],
        shared: Float[Array, "B T 2 GN"],
        rate: Float32[Array, "B T H"],
        state: SSDState | None,
        value_taps: Float32[Array, "K D"],
        query_key_taps: Float32[Array, "K 2 GN"],
        skip: Float32[Array, " D"],
        reach_BT: Int32[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], SSDState]:
        """Mix between the projections, on one device's shard of sequences, heads and time."""
        batch, time, _, channels = both.shape
        size = self.shape[3]
        if state is None:
            state = self._start(batch, channels, shared.shape[3], both.dtype)
        before = across.before(both[:, :, 0], state.value_conv)
        before_shared = across.before(shared, state.query_key_conv)
        value = jax.nn.silu(causal_convolution(both[:, :, 0], before, value_taps, reach_BT))
        query, key = (
            jax.nn.silu(
                causal_convolution(
                    shared[:, :, i], before_shared[:, :, i], query_key_taps[:, i], reach_BT
                )
            ).reshape(batch, time, -1, size)
            for i in range(2)
        )
        # Unit norm, up to sqrt(N): no token's key outweighs the others by its length.
        query, key = rms_norm(query), rms_norm(key)
        heads = value.reshape(batch, time, -1, size)
        log_decay = jnp.maximum(-jax.nn.softplus(rate) - self.slowest, _LOWEST)
        y, last = self._in_shards(across, query, key, heads, log_decay, state.heads, reach_BT)
        y = y + skip.astype(y.dtype).reshape(1, 1, -1, size) * heads
        gated = jax.nn.silu(both[:, :, 1]) * rms_norm(y).reshape(batch, time, channels)
        value_conv, shared_conv = (
            across.of_last(visible_to_next(jnp.concatenate(pair, axis=1)[:, time:], reach_BT))
            for pair in ((before, both[:, :, 0]), (before_shared, shared))
        )
        return gated, SSDState(value_conv, shared_conv, last)

    def _in_shards(
        self,
        across: TimeShards,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        log_decay: jax.Array,
        start: jax.Array,
        reach_BT: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Mix one shard of time; the state comes from the shards before."""
        if query.shape[1] == 1 and not across.axes:
            return mix_tokens(query, key, value, log_decay, start, reach_BT)
        # On a CPU small chunks cost less: what is inside of a chunk grows with its square.
        chunk = self.settings.chunk_size or {"cpu": 32}.get(platform(), _CHUNK)
        form = partial(mix_heads, chunk_size=chunk)
        if not across.axes:
            return form(query, key, value, log_decay, start, reach_BT)
        # Of the first call only the sums into the state are used.
        _, sums = form(query, key, value, log_decay, jnp.zeros_like(start), reach_BT)
        left = jnp.exp(jnp.sum(log_decay, axis=1))
        left = left if reach_BT is None else masked(left, goes_through(reach_BT))
        before, last = across.decayed(sums, start, left)
        return form(query, key, value, log_decay, before, reach_BT)[0], last
