"""What a run was trained on is known again where the text has changed."""

import json

import numpy as np
import pytest

from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokenizers import BYTES
from spectral_dist.data.trained import SAMPLED, Overlap, recognise, sketch

RNG = np.random.default_rng(0)


def text(documents: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = [rng.integers(1, 256, rng.integers(20, 900), np.uint8) for _ in range(documents)]
    return np.concatenate([np.append(one, np.uint8(0)) for one in made])


def known(tokens: np.ndarray, split: int) -> list[dict[str, object]]:
    stored = json.loads(json.dumps(sketch(Tokens([tokens]), split, BYTES)))
    return [{"split": split, "sketch": stored}]


TOKENS = text(1000)
SPLIT = int(np.flatnonzero(TOKENS == 0)[900]) + 1
RUN = known(TOKENS, SPLIT)


def test_a_text_that_grew_is_new_from_where_it_was_trained_on() -> None:
    grown = np.concatenate([TOKENS, text(3, seed=1)])
    found = recognise(Tokens([grown]), RUN, BYTES)
    assert (found.split, found.documents) == (SPLIT, found.sampled)
    assert SAMPLED - 5 <= found.sampled <= SAMPLED


def test_new_text_holds_nothing() -> None:
    found = recognise(Tokens([text(1000, seed=2)]), RUN, BYTES)
    assert (found.split, found.documents) == (0, 0)
    assert found.sampled > 0


def test_trained_documents_are_found_anywhere() -> None:
    documents = np.split(TOKENS, np.flatnonzero(TOKENS == 0) + 1)[:-1]
    RNG.shuffle(documents)
    half = documents[:500] + np.split(text(500, seed=3), 1)
    found = recognise(Tokens(half), RUN, BYTES)
    assert found.split == 0
    assert 0.3 < found.documents / found.sampled < 0.65


def test_the_held_out_part_is_no_training_text() -> None:
    found = recognise(Tokens([TOKENS[SPLIT:]]), RUN, BYTES)
    assert (found.split, found.documents) == (0, 0)


@pytest.mark.parametrize("place", [0, 100_000])
def test_another_byte_in_the_trained_part_is_another_text(place: int) -> None:
    changed = np.concatenate([[np.uint8(7)], TOKENS]) if place else TOKENS.copy()
    changed[place] = changed[place] % 255 + 1
    assert recognise(Tokens([changed]), RUN, BYTES).split == 0


def test_a_text_without_ends_and_a_checkpoint_without_a_sketch() -> None:
    line = np.full(5000, 65, np.uint8)
    assert sketch(Tokens([line]), 4000, BYTES)["documents"] == []
    assert recognise(Tokens([line]), known(line, 4000), BYTES) == Overlap(4000, 0, 0)
    assert recognise(Tokens([line]), [{"split": 4000}], BYTES) == Overlap(0, 0, 0)
    assert recognise(Tokens([line[:100]]), RUN, BYTES).split == 0
