"""Document masking: a document in a packed sequence is the document alone, in every mixer and form.

"Alone" is its tokens in a sequence of their own, from the token that ends the one before it.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.model.documents import (
    each_document,
    goes_through,
    numbered,
    of_last_document,
    reach_of,
    visible_to_next,
)
from spectral_dist.model.lm import describe_model
from spectral_dist.settings import Config, from_flat, resolve

# The tests of a model: chunks of 8 tokens, a window of 6 and documents that begin at the edges of
# chunks, in the middle, twice and four times in one chunk, and right after one another.
STARTS = (0, 8, 13, 14, 15, 16, 29, 47)
TIME = 56
_jit = jax.jit


def model_config(pattern: str, **changes: Any) -> Config:
    values = {
        **{"hidden_dim": 16, "head_dim": 8, "mlp_dim": 32, "num_kv_heads": 1},
        **{"num_layers": len(pattern.split(",")), "seq_len": TIME, "window": 6, "num_poles": 4},
        **{"chunk_size": 8, "ssd_chunk_size": 8},
        **{"compute_dtype": "float32", "layer_pattern": pattern, "document_mask": True},
        **{"kernels": "off", "attention_conv_width": 3},
    }
    return resolve(from_flat(values | changes))


def packed(seed: int = 0) -> np.ndarray:
    """Two sequences with documents at other places; the second one begins inside of one."""
    tokens = np.random.default_rng(seed).integers(1, 256, (2, TIME))
    tokens[0, list(STARTS)] = 0
    tokens[1, [3, 20, 50]] = 0
    return tokens


def documents_of(row: np.ndarray) -> list[slice]:
    edges = sorted({0, *np.flatnonzero(row == 0).tolist(), len(row)})
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def test_the_reach_counts_back_to_the_documents_first_token() -> None:
    tokens = jnp.array([[5, 0, 7, 8, 0, 0, 9]])
    reach = np.asarray(reach_of(tokens, end=0))[0]
    assert reach[1:].tolist() == [0, 1, 2, 0, 0, 1]
    assert reach[0] > 7  # what was before these tokens too
    assert numbered(jnp.asarray(reach)).tolist() == [0, 1, 1, 1, 2, 3, 3]


def test_runs_of_tokens() -> None:
    reach = reach_of(jnp.array([[5, 6, 0, 7], [5, 6, 7, 8], [0, 6, 7, 8]]), end=0)
    assert goes_through(reach).tolist() == [False, True, False]
    expected = [[False, False, True, True], [True] * 4, [True] * 4]
    assert of_last_document(reach).tolist() == expected
    last = jnp.ones((3, 3))
    assert visible_to_next(last, reach).tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert visible_to_next(last, None) is last


def test_rounds_are_exact_and_so_are_their_gradients() -> None:
    """Against a mask of every pair of tokens, written out."""
    keys = jax.random.split(jax.random.key(0), 4)
    u, state = jax.random.normal(keys[0], (2, 3, 8, 5)), jax.random.normal(keys[1], (2, 3, 4, 5))
    kernel = jax.random.normal(keys[2], (5, 12, 8))
    tokens = jax.random.randint(keys[3], (2, 3, 8), 0, 3).at[1, 1].set(1)
    number = numbered(jax.vmap(lambda t: reach_of(t, 0))(tokens))

    def form(u: jax.Array, state: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.einsum("bmid,dic->bmcd", jnp.concatenate([u, state], axis=2), kernel)

    def exact(u: jax.Array, state: jax.Array, kernel: jax.Array) -> jax.Array:
        same = (number[..., :, None] == number[..., None, :]).astype(u.dtype)
        y = jnp.einsum("bmid,dic,bmci->bmcd", u, kernel[:, :8], same)
        first = (number == 0).astype(u.dtype)
        return y + jnp.einsum("bmid,dic,bmc->bmcd", state, kernel[:, 8:], first)

    def total(function: Any, *args: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(function(*args)))

    mine = functools.partial(each_document, form, number)
    np.testing.assert_allclose(mine(u, state, kernel), exact(u, state, kernel), rtol=0, atol=2e-5)
    found, wanted = (
        _jit(jax.grad(functools.partial(total, f), (0, 1, 2)))(u, state, kernel)
        for f in (mine, exact)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("spectral", {}),
        ("spectral", {"spectral_form": "fft"}),
        ("spectral", {"spectral_form": "recurrent"}),
        ("window", {}),
        ("attention", {}),
        ("ssd", {}),
        ("spectral,ssd,window", {"remat": "dots", "compute_dtype": "float32"}),
    ],
)
def test_a_document_is_the_document_alone(pattern: str, changes: dict[str, Any]) -> None:
    config, tokens = model_config(pattern, **changes), packed()
    spec = describe_model(config, 256, 0)
    params = _jit(spec.init)(jax.random.key(1))
    run = _jit(lambda params, tokens: spec.bind(params)(tokens)[0])
    whole = np.asarray(run(params, jnp.asarray(tokens)))
    for row, logits in zip(tokens, whole, strict=True):
        for place in documents_of(row):
            # Filled up to one length, so that one program serves all: no token sees later ones.
            alone = np.full((2, TIME), 7)
            alone[:, : place.stop - place.start] = row[place]
            found = run(params, jnp.asarray(alone))[0, : place.stop - place.start]
            np.testing.assert_allclose(logits[place], found, rtol=0, atol=2e-5)
    # And they are not what they are without the mask.
    plain = describe_model(model_config(pattern, **changes, document_mask=False), 256).bind(params)
    assert np.abs(np.asarray(plain(jnp.asarray(tokens))[0]) - whole)[0, 8:].max() > 1e-3


@pytest.mark.parametrize("pattern", ["spectral", "ssd", "window", "attention"])
def test_the_gradient_sees_no_other_document(pattern: str) -> None:
    """Of a document's loss, by the embeddings of the tokens; also through the rounds."""
    config = model_config(pattern)
    spec = describe_model(config, 256, 0)
    params = _jit(spec.init)(jax.random.key(1))
    tokens = np.arange(1, TIME + 1)[None]  # every token once
    tokens[0, [8, 14, 29]] = 0

    def loss(params: Any) -> jax.Array:
        logits = spec.bind(params)(jnp.asarray(tokens))[0]
        return jnp.sum(jax.nn.logsumexp(logits[0, 14:29], axis=-1))

    grads = np.abs(np.asarray(_jit(jax.grad(loss))(params)["embed"])).max(axis=1)
    inside = set(tokens[0, 14:29].tolist())
    # Of ssd's sums of decays a rounding is left.
    assert {int(i) for i in np.flatnonzero(grads > 1e-6 * grads.max())} == inside


@pytest.mark.parametrize("pattern", ["spectral", "ssd", "window", "spectral,ssd,window"])
def test_pieces_give_the_whole(pattern: str) -> None:
    """Cut inside documents, before one and after its first token; single tokens as well."""
    config, tokens = model_config(pattern), packed(3)
    tokens[[0, 1, 1], [23, 24, 32]] = 0
    tokens = jnp.asarray(tokens)
    spec = describe_model(config, 256, 0)
    params = _jit(spec.init)(jax.random.key(2))
    model = spec.bind(params)
    run = _jit(lambda tokens, state: model(tokens, state))
    whole, last = run(tokens, None)
    state, pieces, start = model.init_state(2), [], 0
    for length in (23, 1, 8, 1, 23):
        logits, state = run(tokens[:, start : start + length], state)
        pieces.append(logits)
        start += length
    assert start == TIME
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=0, atol=2e-5)
    # What follows does not tell them apart either.
    after = jnp.asarray(np.random.default_rng(5).integers(1, 256, (2, 8)))
    np.testing.assert_allclose(run(after, state)[0], run(after, last)[0], rtol=0, atol=2e-5)


def test_without_documents_the_mask_changes_nothing() -> None:
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 256, (2, TIME)))
    masks, plain = (model_config("spectral,ssd,window", document_mask=m) for m in (True, False))
    params = _jit(describe_model(plain, 256).init)(jax.random.key(1))
    with_mask = describe_model(masks, 256, 0).bind(params)(tokens)[0]
    without = describe_model(plain, 256).bind(params)(tokens)[0]
    np.testing.assert_allclose(with_mask, without, rtol=0, atol=1e-5)
