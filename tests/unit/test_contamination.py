"""Held-out text that stands in the training text, against a search by Python itself."""

from pathlib import Path

import numpy as np
import pytest

from spectral_dist.data import contamination
from spectral_dist.data.contamination import WINDOW, Contamination, find_contamination
from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokens import TokenFile


def dataset(name: str, train: list[bytes], held_out: list[bytes]) -> TokenFile:
    first, last = (b"".join(d + b"\0" for d in documents) for documents in (train, held_out))
    tokens = Tokens([np.frombuffer(first + last, np.uint8)])
    return TokenFile(name, Path("d.bin"), tokens, len(train + held_out), "", len(first))


def text(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(97, 123, size).astype(np.uint8).tobytes()


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 22])
def test_what_is_shared_is_found_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(contamination, "_BLOCK", block)
    whole, part, new = text(1, 220), text(2, 300), text(3, 500)
    trained = [
        dataset("a", [text(4, 333), text(5, 3) + whole, text(6, 10)], [whole, new, b"", b"short"]),
        dataset("b", [text(7, 77) + part[111:210] + text(8, 99)], [part]),
    ]
    a, b = find_contamination(trained, trained)
    assert a == Contamination("a", 2, 1, 1, 4 + 10, 4, "a", whole[:WINDOW])
    # Of 99 bytes at any place one window of 50 is whole.
    assert b == Contamination("b", 1, 1, 0, 6, 1, "b", part[150:200])


def test_every_hash_is_that_of_its_window() -> None:
    data = np.random.default_rng(0).integers(0, 256, 300).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(data, WINDOW)
    np.testing.assert_array_equal(contamination._every_hash(data), contamination._hashes(windows))
    assert len(np.unique(contamination._hashes(windows))) == len(windows)


def test_what_says_nothing_is_not_looked_for_and_no_window_crosses_documents() -> None:
    ruler, left, right = b"-=" * 100, text(1, 30), text(2, 30)
    trained = dataset("a", [ruler, left, right], [ruler, left + right])
    (found,) = find_contamination([trained], [trained])
    assert (found.documents, found.windows, found.found, found.trained) == (1, 1, 0, "")
    assert find_contamination([dataset("e", [b"x"], [b"y"])], [trained])[0].windows == 0
    assert find_contamination([], [trained]) == []
