"""N-gram embeddings: which rows a token has, in pieces, by document and on every mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.mesh import make_mesh
from spectral_dist.model.documents import reach_of
from spectral_dist.model.lm import describe_model
from spectral_dist.model.ngrams import NGramEmbedding, hashed
from spectral_dist.model.sampling import Rules, sample
from spectral_dist.params import make_spec
from spectral_dist.settings import Config, from_flat, resolve

SIZES, ROWS, DIM = (2, 3, 5), 256, 16
SPEC = make_spec(lambda rngs: NGramEmbedding(SIZES, ROWS, DIM, rngs))
TOKENS = np.random.default_rng(0).integers(0, 256, (8, 64))
_jit = jax.jit


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    """Tables of random numbers: those that training begins with are zeros."""
    keys = jax.random.split(jax.random.key(3), len(SIZES))
    return {
        name: jax.random.normal(key, shape.shape)
        for key, (name, shape) in zip(keys, sorted(SPEC.shapes.items()), strict=True)
    }


def added(tables: Any, tokens: Any, before: Any = None, reach: Any = None) -> Any:
    return SPEC.bind(tables)(jnp.asarray(tokens), before, reach, jnp.dtype("float32"))


def test_the_hash_is_the_same_for_ever() -> None:
    """Checkpoints hold rows by it."""
    tokens = jnp.asarray([[[0, 0], [0, 1], [1, 0], [97, 98], [65_535, 3]]])
    assert hashed(tokens, 16_384).tolist() == [[1798, 2244, 986, 14205, 8975]]


def test_the_hash_fills_its_rows_evenly() -> None:
    """As random numbers do: all pairs of bytes in 16,384 rows, four in each on average."""
    pairs = np.stack(np.divmod(np.arange(65_536), 256), -1)[None]
    counts = np.bincount(np.asarray(hashed(jnp.asarray(pairs), 16_384))[0], minlength=16_384)
    assert counts.sum() == 65_536
    assert counts.max() < 20
    assert counts.var() == pytest.approx(4, rel=0.1)  # Poisson's


def test_each_token_has_the_rows_of_the_ngrams_that_end_there(tables: Any) -> None:
    found, last = _jit(added)(tables, TOKENS)
    for row, place in ((0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (3, 63)):
        wanted = np.zeros(DIM, np.float32)
        for n in SIZES:
            if place >= n - 1:
                ngram = jnp.asarray(TOKENS[row, place - n + 1 : place + 1][None, None])
                wanted += np.asarray(tables[f"size_{n}"])[int(hashed(ngram, ROWS)[0, 0])]
        np.testing.assert_allclose(found[row, place], wanted, rtol=0, atol=1e-6)
    assert not np.asarray(found)[:, 0].any(), "before the second token there is no n-gram"
    np.testing.assert_array_equal(last, TOKENS[:, -4:])


@pytest.mark.parametrize("cuts", [(1, 2, 3, 9), (30,), (62, 63)])
def test_a_text_in_pieces_is_the_text(tables: Any, cuts: tuple[int, ...]) -> None:
    whole, last = _jit(added)(tables, TOKENS)
    before, pieces = None, []
    for piece in np.split(TOKENS, cuts, axis=1):
        found, before = added(tables, piece, before)
        pieces.append(found)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(before, last)


def test_a_document_sees_no_ngram_of_another(tables: Any) -> None:
    tokens = TOKENS.copy()
    tokens[tokens == 0] = 1
    tokens[:, 20] = 0
    reach = reach_of(jnp.asarray(tokens), 0)
    found, _ = _jit(added)(tables, tokens, None, reach)
    alone, _ = _jit(added)(tables, tokens[:, 20:])
    np.testing.assert_allclose(found[:, 20:], alone, rtol=0, atol=1e-6)
    before, _ = _jit(added)(tables, tokens[:, :20])
    np.testing.assert_allclose(found[:, :20], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "third"),
    [((2, 2, 2), "tensor"), ((1, 4, 2), "tensor"), ((1, 8, 1), "tensor"), ((2, 2, 2), "sequence")],
)
def test_every_mesh_gives_the_same_sum_and_gradient(
    tables: Any, shape: tuple[int, int, int], third: str
) -> None:
    def objective(tables: Any, tokens: Any) -> Any:
        found, last = added(tables, tokens)
        return jnp.sum(jnp.sin(found)), (found, last)

    run = jax.value_and_grad(objective, has_aux=True)
    (_, (wanted, last)), gradient = _jit(run)(tables, TOKENS)
    mesh = make_mesh(shape, axes=("data", "fsdp", third))
    with jax.set_mesh(mesh):
        placed = jax.device_put(tables, SPEC.shardings(mesh))
        compiled = _jit(run).lower(placed, TOKENS).compile()
        (_, (found, last_there)), divided = compiled(placed, TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(last_there, last)
    for name, exact in gradient.items():
        np.testing.assert_allclose(divided[name], exact, rtol=0, atol=1e-5)
        assert divided[name].sharding.is_equivalent_to(placed[name].sharding, 2)
    # A table is larger than all that moves: no device may ever hold a whole one.
    assert f"f32[{ROWS},{DIM}]" not in compiled.as_text()


def model_config(**changes: Any) -> Config:
    values: dict[str, Any] = {"hidden_dim": 16, "head_dim": 8, "num_layers": 2, "mlp_dim": 16}
    values |= {"layer_pattern": "spectral,window", "window": 4, "num_poles": 4, "chunk_size": 8}
    values |= {"compute_dtype": "float32", "ngrams": SIZES, "ngram_rows": 200}
    return resolve(from_flat(values | changes))


def test_a_model_reads_and_writes_with_them() -> None:
    """The recurrent form says what the forward pass says, prompt and text."""
    spec = describe_model(model_config(), 256)
    assert spec.shapes["ngrams"]["size_3"].shape == (256, 16), "rows are whole multiples of 128"
    params = _jit(spec.init)(jax.random.key(0))
    assert not np.asarray(params["ngrams"]["size_3"]).any()
    plain = describe_model(model_config(ngrams=()), 256)
    assert spec.matrix_size == plain.matrix_size, "rows are looked up: no FLOPs, no weight decay"
    without = {name: value for name, value in params.items() if name != "ngrams"}
    tokens = jnp.asarray(TOKENS)
    logits = _jit(lambda p: spec.bind(p)(tokens)[0])(params)
    np.testing.assert_array_equal(_jit(lambda p: plain.bind(p)(tokens)[0])(without), logits)

    key = jax.random.key(5)
    params["ngrams"] = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params["ngrams"])
    how: dict[str, Any] = {"end": 0, "max_new_tokens": 12, "rules": Rules(0.0), "seed": 0}
    prompt = "Dağlar".encode()
    text = list(sample(spec, params, prompt, **how))
    read = np.asarray([[0, *prompt, *text]])
    logits = np.asarray(_jit(lambda p: spec.bind(p)(jnp.asarray(read))[0])(params))[0]
    assert np.argmax(logits[len(prompt) :], axis=-1)[: len(text)].tolist() == text
    assert len(set(text)) > 2


def test_they_learn() -> None:
    """A gradient reaches each row that was seen, and no other."""
    spec = describe_model(model_config(), 256)
    params = _jit(spec.init)(jax.random.key(0))
    tokens = jnp.asarray(TOKENS[:1, :8])

    def loss(params: Any) -> Any:
        return jnp.sum(jax.nn.log_softmax(spec.bind(params)(tokens)[0])[..., 0])

    gradient = _jit(jax.grad(loss))(params)["ngrams"]
    for n in SIZES:
        seen = {int(hashed(tokens[:, i - n + 1 : i + 1][None], 256)[0, 0]) for i in range(n - 1, 8)}
        rows = np.flatnonzero(np.asarray(gradient[f"size_{n}"]).any(axis=1))
        assert set(rows.tolist()) == seen


@pytest.mark.parametrize("wrong", ["1,2", "3,2", "2,2", "2,17"])
def test_lengths_that_are_none_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"^ngrams=.*: must be rising numbers from 2 to 16$"):
        model_config(ngrams=wrong)
