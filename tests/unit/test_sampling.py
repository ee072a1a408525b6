"""Generation: the recurrent form says what the forward pass says, in constant memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.model import sampling
from spectral_dist.model.lm import SpectralLM, describe_model
from spectral_dist.model.sampling import Rules, choose, sample, sample_batch
from spectral_dist.settings import Config, from_flat, resolve

PROMPT = "Dağ".encode()
LIMIT = 12


def _config(pattern: str = "spectral,window") -> Config:
    values = {"hidden_dim": 16, "head_dim": 8, "num_layers": 2, "layer_pattern": pattern}
    values |= {"mlp_dim": 16, "window": 4, "num_poles": 4, "chunk_size": 8, "seq_len": 32}
    return resolve(from_flat(values | {"compute_dtype": "float32"}))


SPEC = describe_model(_config(), 256)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(SPEC.init)(jax.random.key(0))


def _text(params: Any, **changes: Any) -> list[int]:
    settings: dict[str, Any] = {"max_new_tokens": LIMIT, "end": 0, "seed": 1}
    rules = Rules(
        **{"temperature": 0.0} | {n: changes.pop(n) for n in Rules._fields if n in changes}
    )
    return list(sample(SPEC, params, PROMPT, rules=rules, **settings | changes))


@pytest.fixture(scope="module")
def greedy(params: Any) -> list[int]:
    return _text(params)


def test_greedy_takes_the_argmax_of_the_full_forward(params: Any, greedy: list[int]) -> None:
    """At every step, the prompt being read after a document's end."""
    assert len(greedy) == LIMIT
    assert len(set(greedy)) > 2
    model = SPEC.bind(params)
    tokens = np.asarray([[0, *PROMPT, *greedy]], np.int32)
    logits = np.asarray(jax.jit(lambda tokens: model(tokens)[0])(tokens))[0]
    assert np.argmax(logits[len(PROMPT) : -1], axis=-1).tolist() == greedy


def test_text_ends_at_byte_zero(params: Any, greedy: list[int]) -> None:
    """With the columns of byte 0 and of the first byte that is new exchanged, it stops there."""
    place = next(i for i in range(1, LIMIT) if greedy[i] not in greedy[:i])
    order = np.arange(256)
    order[[0, greedy[place]]] = order[[greedy[place], 0]]
    swapped = {**params, "head": params["head"][:, order]}
    assert 0 not in greedy
    assert _text(swapped) == greedy[:place]


def test_the_key_decides_the_text(params: Any, greedy: list[int]) -> None:
    """The same key gives the same text, another key or temperature another one."""
    warm = _text(params, temperature=1.0)
    assert warm == _text(params, temperature=1.0)
    assert warm != _text(params, temperature=1.0, seed=2)
    assert warm != greedy
    assert _text(params, temperature=1e-6) == greedy


def test_the_draws_of_a_text_differ(params: Any) -> None:
    """One key for every step would give the same noise each time."""
    assert len(set(_text(params, temperature=1e4))) > LIMIT // 2


def test_copies_side_by_side_change_nothing(params: Any, greedy: list[int]) -> None:
    assert _text(params, copies=2) == greedy


def test_nothing_is_yielded_beyond_the_limit(params: Any, greedy: list[int]) -> None:
    assert _text(params, max_new_tokens=3) == greedy[:3]


def test_each_byte_costs_the_same(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four programs whatever the lengths of prompt and text; a state that does not grow."""
    advances, sizes = [], []
    call = SpectralLM.hidden

    def spied(self: SpectralLM, tokens: Any, state: Any = None) -> Any:
        hidden, after = call(self, tokens, state)
        advances.append(tokens.shape)
        sizes.extend([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (state, after))
        return hidden, after

    monkeypatch.setattr(SpectralLM, "hidden", spied)
    sampling._advance.cache_clear()  # other tests have compiled these programs already
    sampling._write.cache_clear()
    settings: dict[str, Any] = {"end": 0, "rules": Rules(0.0), "seed": 1}
    for length in (300, 290, 4):
        prompt = bytes(range(32, 92)) * 5
        assert (
            len(list(sample(SPEC, params, list(prompt[:length]), max_new_tokens=9, **settings)))
            == 9
        )
    # The last one writes several tokens, one after the other.
    assert advances == [(1, 256), (1, 16), (1, 1), (1, 1)]
    assert sizes[0]
    assert all(size == sizes[0] for size in sizes)


def test_a_long_prompt_is_read_in_pieces(params: Any) -> None:
    """The first byte after it is that of one forward pass over the whole."""
    prompt: list[int] = np.random.default_rng(0).integers(1, 256, 310).tolist()
    settings: dict[str, Any] = {"end": 0, "rules": Rules(0.0), "seed": 1}
    first = next(sample(SPEC, params, prompt, max_new_tokens=1, **settings))
    tokens = np.asarray([[0, *prompt]], np.int32)
    logits = jax.jit(lambda tokens: SPEC.bind(params)(tokens)[0])(tokens)
    assert first == int(np.argmax(np.asarray(logits)[0, -1]))


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_side_by_side_are_each_what_they_are_alone(
    params: Any, copies: int, temperature: float
) -> None:
    """Of lengths that end in pieces of every kind; some texts end before the others."""
    draw = np.random.default_rng(1)
    prompts = [draw.integers(1, 256, n).tolist() for n in (0, 1, 15, 16, 17, 255, 256, 300)]
    settings: dict[str, Any] = {"end": 0, "max_new_tokens": 19, "rules": Rules(temperature)}
    alone = [
        list(sample(SPEC, params, prompt, seed=7 + i, **settings))
        for i, prompt in enumerate(prompts)
    ]
    settings["end"] = alone[3][4]  # the fifth token of a text, and of others at other places
    with_end = [
        list(sample(SPEC, params, prompt, seed=7 + i, **settings))
        for i, prompt in enumerate(prompts)
    ]
    found = sample_batch(SPEC, params, prompts, seed=7, copies=copies, **settings)
    assert found == with_end
    assert len(found[3]) <= 4
    assert len({len(text) for text in found}) > 1
    assert all(len(text) <= 19 for text in found)


def test_full_attention_is_refused() -> None:
    spec = describe_model(_config("spectral,attention"), 256)
    params = jax.jit(spec.init)(jax.random.key(0))
    settings: dict[str, Any] = {"end": 0, "rules": Rules(0.0), "seed": 0}
    with pytest.raises(ValueError, match="the state of attention grows"):
        next(sample(spec, params, b"a", max_new_tokens=1, **settings))


def _share_of_draws(logits: list[float], seen: tuple[int, ...] = (), **rules: float) -> np.ndarray:
    """Return how often each token is chosen in 4,000 draws."""
    keys = jax.random.split(jax.random.key(0), 4000)
    marked = np.isin(np.arange(len(logits)), seen)
    how = Rules(**{"temperature": 1.0} | rules)
    given = jnp.float32(logits), jnp.asarray(marked)
    draw = jax.jit(jax.vmap(lambda key: choose(*given, key, how)))
    return np.bincount(np.asarray(draw(keys)), minlength=len(logits)) / 4000


LOGITS = np.log([0.05, 0.5, 0.3, 0.15]).tolist()


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, [0.05, 0.5, 0.3, 0.15]),
        ({"top_p": 0.79}, [0, 0.625, 0.375, 0]),  # 0.5 and 0.3 are 0.8 together
        ({"top_p": 0.81}, [0, 0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95]),
        ({"top_p": 1e-6}, [0, 1, 0, 0]),
        ({"min_p": 0.5}, [0, 0.625, 0.375, 0]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, np.square([0.05, 0.5, 0.3, 0.15]) / 0.365),
        ({"temperature": 0.0, "top_p": 0.9}, [0, 1, 0, 0]),
        ({"repetition_penalty": 2.0}, np.array([0.05, 0.25, 0.3, 0.15]) / 0.75),
    ],
)
def test_tokens_are_drawn_by_the_rules(rules: dict[str, float], expected: Any) -> None:
    found = _share_of_draws(LOGITS, seen=(1,), **rules)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.03)
    assert np.all(found[np.asarray(expected) == 0] == 0)


def test_the_penalty_lowers_logits_of_either_sign() -> None:
    found = _share_of_draws([2.0, 2.0, -1.0, -1.0], seen=(0, 2), repetition_penalty=2.0)
    expected = np.exp([1.0, 2.0, -2.0, -1.0])
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=0, atol=0.03)


def test_what_came_before_is_known_from_prompt_and_text(params: Any) -> None:
    """A great penalty leaves what the prompt has not, each once."""
    left = range(100, 140)
    prompt = [token for token in range(256) if token not in left]
    settings: dict[str, Any] = {"end": 0, "max_new_tokens": 8, "seed": 1}
    rules = Rules(0.0, repetition_penalty=1e9)
    found = list(sample(SPEC, params, prompt, rules=rules, **settings))
    assert set(found) <= set(left)
    assert len(set(found)) == len(found) == 8
    assert not set(sample(SPEC, params, prompt, rules=Rules(0.0), **settings)) <= set(left)
