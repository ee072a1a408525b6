"""Generation: sample token by token with the recurrent form, in constant memory and time.

Read `choose`, then `read`, `sample` and `sample_batch`.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectral_dist.array_typing import Array, Float32
from spectral_dist.mesh import whole
from spectral_dist.model.lm import SpectralLM, State
from spectral_dist.params import ModelSpec, Params

# A prompt is read in pieces of these lengths, so that no other length is ever compiled.
_PIECES = (256, 16, 1)
# Tokens that are written by one call: the device goes from one to the next without the host, which
# would wait for each. What a text ends short of is computed in vain.
WRITTEN = 8


def _pieces(tokens_BT: np.ndarray) -> list[np.ndarray]:
    """Cut tokens [B, T] along time into pieces of the lengths above, the longest ones first."""
    ends = [0]
    for length in _PIECES:
        ends += range(ends[-1] + length, tokens_BT.shape[1] + 1, length)
    return [tokens_BT[:, a:b] for a, b in itertools.pairwise(ends)]


class Rules(NamedTuple):
    """How the next token is drawn; all of it at once in the order of the fields, from the last.

    Attributes:
      temperature: of the softmax; 0 takes the likeliest token.
      top_p: drawn is from the likeliest tokens that have this probability together (nucleus
        sampling, Holtzman et al. 2020, arXiv:1904.09751); 1 for all.
      min_p: and from those that have this share of the likeliest one's probability (Nguyen et al.
        2024, arXiv:2407.01082); 0 for all.
      repetition_penalty: what the logits of tokens that came before are divided by, or multiplied
        where they are negative (Keskar et al. 2019, arXiv:1909.05858); 1 for none.
    """

    temperature: float | jax.Array
    top_p: float | jax.Array = 1.0
    min_p: float | jax.Array = 0.0
    repetition_penalty: float | jax.Array = 1.0


def choose(
    logits_V: Float32[Array, " V"], seen_V: jax.Array, key: jax.Array, rules: Rules
) -> jax.Array:
    """Return the next token, int32.

    Args:
      logits_V: of each token.
      seen_V: which tokens came before, bool [V].
      key: of the draw.
      rules: how it is drawn.
    """
    factor_V = jnp.where(logits_V > 0, 1 / rules.repetition_penalty, rules.repetition_penalty)
    logits_V = jnp.where(seen_V, logits_V * factor_V, logits_V)
    # Of a temperature of 0 the quotient is not used.
    scaled_V = logits_V / jnp.where(rules.temperature > 0, rules.temperature, 1)
    probability_V = jax.nn.softmax(scaled_V)
    order_V = jnp.argsort(-probability_V)
    sorted_V = probability_V[order_V]
    # The likeliest one is always kept: before it there is nothing.
    kept_V = (jnp.cumsum(sorted_V) - sorted_V < rules.top_p) & (
        sorted_V >= rules.min_p * sorted_V[0]
    )
    allowed_V = jnp.zeros_like(kept_V).at[order_V].set(kept_V.at[0].set(True))
    drawn = jax.random.categorical(key, jnp.where(allowed_V, scaled_V, -jnp.inf))
    return jnp.where(rules.temperature > 0, drawn, jnp.argmax(logits_V)).astype(jnp.int32)


@functools.cache
def _advance(spec: ModelSpec[SpectralLM]) -> Any:
    """Return the compiled step of a model, which every later call shares.

    (params, tokens_BT, state, seen_BV, keys_B, index, rules) -> the next tokens [B, 1] int32, the
    state, and which tokens came before.
    """
    return jax.jit(_step(spec))


@functools.cache
def _write(spec: ModelSpec[SpectralLM]) -> Any:
    """Return the compiled writing of several tokens; arguments as of `_advance`, T = 1.

    -> the tokens [8, B] int32, the last of them [B, 1], the state, and which tokens came before.
    """
    advance = _step(spec)

    @jax.jit
    def write(
        params: Params,
        tokens_B1: jax.Array,
        state: State,
        seen_BV: jax.Array,
        keys_B: jax.Array,
        index: jax.Array,
        rules: Rules,
    ) -> tuple[jax.Array, jax.Array, State, jax.Array]:
        def one(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
            carry = advance(params, *carry, keys_B, index + i, rules)
            return carry, carry[0][:, 0]

        places = jnp.arange(WRITTEN, dtype=jnp.int32)
        carry, written = jax.lax.scan(one, (tokens_B1, state, seen_BV), places)
        return written, *carry

    return write


def _step(spec: ModelSpec[SpectralLM]) -> Any:
    """Return the step of `_advance`, not compiled."""

    def advance(
        params: Params,
        tokens_BT: jax.Array,
        state: State,
        seen_BV: jax.Array,
        keys_B: jax.Array,
        index: jax.Array,
        rules: Rules,
    ) -> tuple[jax.Array, State, jax.Array]:
        # A single token has no time to divide.
        def last(params: Params, *inputs: Any) -> tuple[jax.Array, State]:
            model = spec.bind(params)
            hidden_BTD, state = model.hidden(*inputs)
            return model.logits(hidden_BTD[:, -1:]), state

        logits_B1V, state = whole(last, "time")(params, tokens_BT, state)
        seen_BV = jax.vmap(lambda seen_V, tokens_T: seen_V.at[tokens_T].set(True))(
            seen_BV, tokens_BT
        )

        def drawn(logits_V: jax.Array, seen_V: jax.Array, key: jax.Array) -> jax.Array:
            # Without fold_in every draw would use the same noise.
            return choose(logits_V, seen_V, jax.random.fold_in(key, index), rules)

        return jax.vmap(drawn)(logits_B1V[:, -1], seen_BV, keys_B)[:, None], state, seen_BV

    return advance


class Context(NamedTuple):
    """What a model has read: a state of constant size, and the last few tokens.

    Attributes:
      state: after all tokens but the pending ones.
      pending: the last tokens, which the state does not hold yet, int32 [n], n from 1 to 256: the
        logits of the next token need them.
      seen_V: which tokens came before the pending ones, bool [V].
      length: tokens in all, the first end token among them.
    """

    state: State
    pending: np.ndarray
    seen_V: jax.Array
    length: int


def read(
    spec: ModelSpec[SpectralLM],
    params: Params,
    tokens: Iterable[int],
    *,
    end: int,
    copies: int = 1,
    after: Context | None = None,
) -> Context:
    """Return the context of tokens, read in pieces and in constant memory.

    Args:
      spec: the model.
      params: its parameters.
      tokens: what to read.
      end: the token that ends a document, the first one of every context: in training, too, a
        document begins after the end of another.
      copies: as for `sample`.
      after: the context that the tokens continue; None at the start of a document.

    Raises:
      ValueError: if the model has full attention, whose state would grow.
    """
    if after is None:
        # Compiled whole: by itself each of its arrays would be a program of its own.
        state = jax.jit(lambda params: spec.bind(params).init_state(copies))(params)
        seen_V = jnp.zeros(spec.shapes["embed"].shape[0], bool)
        after = Context(state, np.asarray([end], np.int32), seen_V, 1)
    new = np.asarray(list(tokens), np.int32)
    joined = np.concatenate([after.pending, new])
    *pieces, last = _pieces(np.tile(joined[None], (copies, 1)))
    context = Context(after.state, last[0], after.seen_V, after.length + len(new))
    return _read_pieces(spec, params, pieces, context, copies)


def _read_pieces(
    spec: ModelSpec[SpectralLM],
    params: Params,
    pieces: Iterable[np.ndarray],
    context: Context,
    copies: int,
) -> Context:
    """Return the context with pieces [B, T] read into its state, before the pending tokens."""
    advance, greedy = _advance(spec), Rules(*map(jnp.float32, Rules(0.0)))
    state, seen_BV, keys_B = context.state, _rows(context.seen_V, copies), _keys([0], copies)
    for piece_BT in pieces:
        _, state, seen_BV = advance(params, piece_BT, state, seen_BV, keys_B, jnp.int32(0), greedy)
    return context._replace(state=state, seen_V=seen_BV[0])


def _rows(x: jax.Array, copies: int) -> jax.Array:
    return jnp.broadcast_to(x[None], (copies, *x.shape))


def _keys(seeds: Sequence[int], copies: int) -> jax.Array:
    """Return a key for each row: of each seed, as many times as its sequence is computed."""
    return jax.vmap(jax.random.key)(jnp.repeat(jnp.asarray(seeds, jnp.uint32), copies))


def sample(
    spec: ModelSpec[SpectralLM],
    params: Params,
    prompt: Iterable[int],
    *,
    end: int,
    max_new_tokens: int,
    rules: Rules,
    seed: int,
    copies: int = 1,
    after: Context | None = None,
) -> Iterator[int]:
    """Yield sampled tokens after a prompt, until the end of the document or the limit.

    Args:
      spec: the model.
      params: its parameters.
      prompt: tokens.
      end: the token that ends a document.
      max_new_tokens: limit.
      rules: how each token is drawn.
      seed: of the draws; the same seed, prompt and parameters give the same text.
      copies: how many times the same sequence is computed; the first is returned. A mesh with
        several shards of the batch needs one for each.
      after: the context that the prompt continues; None at the start of a document.

    Raises:
      ValueError: if the model has full attention, whose state would grow.
    """
    state, pending, seen_V, _ = read(spec, params, prompt, end=end, copies=copies, after=after)
    advance, drawing = _advance(spec), Rules(*map(jnp.float32, rules))
    tokens_BT: Any = np.tile(pending[None], (copies, 1))
    seen_BV, keys_B = _rows(seen_V, copies), _keys([seed], copies)
    left = max_new_tokens
    while left > 0:
        place = jnp.int32(max_new_tokens - left)
        if tokens_BT.shape[1] > 1:  # the end of the prompt
            tokens_BT, state, seen_BV = advance(
                params, tokens_BT, state, seen_BV, keys_B, place, drawing
            )
            written = tokens_BT.T
        else:
            written, tokens_BT, state, seen_BV = _write(spec)(
                params, jnp.asarray(tokens_BT), state, seen_BV, keys_B, place, drawing
            )
        for token in np.asarray(written)[:left, 0].tolist():  # waits for the device
            if token == end:
                return
            yield token
        left -= len(written)


def sample_batch(
    spec: ModelSpec[SpectralLM],
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    max_new_tokens: int,
    rules: Rules,
    seed: int,
    copies: int = 1,
) -> list[list[int]]:
    """Return the tokens sampled after each of several prompts, which are written together.

    Prompts are read one after the other, since their lengths differ; their states are of one size,
    and go on side by side. The text of prompt i is what `sample` gives with seed + i.

    Args:
      spec: the model.
      params: its parameters.
      prompts: tokens of each, at least one prompt.
      end: the token that ends a document.
      max_new_tokens: limit for each.
      rules: how each token is drawn.
      seed: of the draws.
      copies: as for `sample`.

    Raises:
      ValueError: if the model has full attention, whose state would grow.
    """
    contexts = []
    for prompt in prompts:
        context = read(spec, params, prompt, end=end, copies=copies)
        pieces = _pieces(np.tile(context.pending[None, :-1], (copies, 1)))
        context = _read_pieces(spec, params, pieces, context, copies)
        contexts.append(context._replace(pending=context.pending[-1:]))
    state = _side_by_side([context.state for context in contexts])
    tokens_B1: Any = jnp.asarray(np.repeat([c.pending for c in contexts], copies, axis=0))
    seen_BV = jnp.repeat(jnp.stack([c.seen_V for c in contexts]), copies, axis=0)
    keys_B = _keys([seed + i for i in range(len(prompts))], copies)
    texts: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for place in range(0, max_new_tokens, WRITTEN):
        written, tokens_B1, state, seen_BV = _write(spec)(
            *(params, tokens_B1, state, seen_BV, keys_B, jnp.int32(place)),
            Rules(*map(jnp.float32, rules)),
        )
        rows = np.asarray(written)[: max_new_tokens - place, ::copies].T.tolist()
        for i, row in enumerate(rows):
            new = row[: row.index(end)] if end in row else row
            texts[i] += [] if ended[i] else new
            ended[i] |= end in row
        if all(ended):
            break
    return texts


def _side_by_side(states: Sequence[State]) -> State:
    """Return the states of several sequences as that of one batch."""

    def join(path: Any, *parts: jax.Array) -> jax.Array:
        # Stacked blocks have their number in front of the batch.
        stacked = jax.tree_util.keystr(path[:1], simple=True) == "groups"
        return jnp.concatenate(parts, axis=1 if stacked else 0)

    return jax.tree_util.tree_map_with_path(join, *states)
