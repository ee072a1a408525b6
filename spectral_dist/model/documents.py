"""Document masking: each document of a packed sequence begins anew, as if it stood alone.

A document begins at the token that ends the one before it: that token is the first one a new
document sees, as in generation and evaluation. Everything follows from one array, the reach of each
token: how many tokens before it are of its own document. Read `reach_of`, then `each_document`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from spectral_dist.array_typing import Array, Bool, Float, Int32, Integer

# The reach of tokens whose document began before this piece of the sequence: all that came before.
_ALL = 2**30

Form = Callable[..., jax.Array]


def reach_of(tokens_BT: Integer[Array, "B T"], end: int) -> Int32[Array, "B T"]:
    """Return how many tokens before each one belong to its document.

    0 at a document's first token, which is `end`, the token between two documents. More than T
    where the document began earlier than these tokens.
    """
    position = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    began_BT = jnp.where(tokens_BT == end, position, -_ALL)
    return position - jax.lax.cummax(began_BT, axis=1)


def visible_to_next(
    last_BJ: Float[Array, "B J ..."], reach_BT: Int32[Array, "B T"] | None
) -> Float[Array, "B J ..."]:
    """Return the last J inputs with zeros for those that the next token must not see."""
    if reach_BT is None:
        return last_BJ
    back = jnp.arange(last_BJ.shape[1], 0, -1, dtype=jnp.int32)[None]
    seen_BJ = back <= reach_BT[:, -1:] + 1
    return masked(last_BJ, seen_BJ)


def masked(x: Float[Array, "..."], keep: Bool[Array, "..."] | None) -> Float[Array, "..."]:
    """Return x with zeros where `keep`, of its first dimensions, does not hold; None keeps all."""
    if keep is None:
        return x
    keep = keep.reshape(*keep.shape, *(1,) * (x.ndim - keep.ndim))
    return jnp.where(keep, x, jnp.zeros((), x.dtype))


def of_last_document(reach: Int32[Array, "*L C"]) -> Bool[Array, "*L C"]:
    """Return which tokens of each run of C tokens are of the document that its last token is of."""
    size = reach.shape[-1]
    back = jnp.arange(size - 1, -1, -1, dtype=jnp.int32).reshape(*(1,) * (reach.ndim - 1), size)
    return back <= reach[..., -1:]


def goes_through(reach: Int32[Array, "*L C"]) -> Bool[Array, "*L"]:
    """Return whether no document begins in a run of C tokens: a state goes through it."""
    return reach[..., -1] >= reach.shape[-1]


def numbered(reach: Int32[Array, "*L C"]) -> Int32[Array, "*L C"]:
    """Number the documents within each run of C tokens; 0 is what began before it."""
    return jnp.cumsum((reach == 0).astype(jnp.int32), axis=-1)


def each_document(form: Form, number: Int32[Array, "*L C"], *args: jax.Array) -> jax.Array:
    """Return a linear form of each document apart, put together again.

    As many rounds as there are documents in the fullest run, and so usually two: each sees one
    document of every run, and zeros for the rest. Exact for any number of them.

    Args:
      form: (u [*L, C, D], state [*L, N, D], *weights) -> y [*L, C, D], linear in u and state
        together; closes over no array.
      number: `numbered`, int32 [*L, C].
      args: what the form takes.
    """
    return _each_document(form, number, *args)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _each_document(form: Form, number: jax.Array, *args: jax.Array) -> Any:
    (y,) = _rounds(number, lambda n: (_round(form, n, number, *args),), (args[0],))
    return y


def _round(
    form: Form,
    n: jax.Array,
    number: jax.Array,
    u: jax.Array,
    state: jax.Array,
    *weights: jax.Array,
) -> jax.Array:
    mine = number == n
    before = jnp.where(n == 0, state, jnp.zeros_like(state))
    return masked(form(masked(u, mine), before, *weights), mine)


def _rounds(
    number: jax.Array, one: Callable[[jax.Array], tuple[Any, ...]], like: tuple[Any, ...]
) -> tuple[jax.Array, ...]:
    """Return the sum over all rounds, in float32 and given back in the dtypes of `like`."""
    last = jnp.max(number)

    def body(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        n, total = carry
        return n + 1, jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, one(n))

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in like)
    _, total = jax.lax.while_loop(lambda c: c[0] <= last, body, (jnp.min(number), zeros))
    return tuple(t.astype(x.dtype) for t, x in zip(total, like, strict=True))


def _forward(form: Form, number: jax.Array, *args: jax.Array) -> Any:
    return _each_document(form, number, *args), (number, args)


def _backward(form: Form, kept: Any, grad: jax.Array) -> Any:
    # JAX has no reverse mode for a loop of unknown length. This sum's rounds do not depend on each
    # other, so that its gradient is the sum of theirs.
    number, args = kept
    return None, *_rounds(
        number,
        lambda n: jax.vjp(lambda *a: _round(form, n, number, *a), *args)[1](grad),
        args,
    )


_each_document.defvjp(_forward, _backward)
