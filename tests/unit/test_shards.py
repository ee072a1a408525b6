"""Tokens over several files: the same numbers as one array, and files that change are noticed."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_dist.data import shards
from spectral_dist.data.shards import Shard, Tokens, allow_open_files

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum)


@given(SIZES, st.data())
def test_it_is_the_concatenation_of_its_files(sizes: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(sizes), dtype=np.uint16) % 5
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    tokens, wanted = Tokens(parts).part(start, stop), whole[start:stop]
    assert len(tokens) == len(wanted)
    assert tokens.dtype == np.uint16
    first, last = data.draw(st.integers(-12, 60)), data.draw(st.integers(-12, 60))
    for key in (slice(None), slice(first, last), slice(first, None), slice(None, last)):
        found = tokens[key]
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, wanted[key])
    if -len(wanted) <= first < len(wanted):
        assert tokens[first] == wanted[first]
    else:
        with pytest.raises(IndexError):
            tokens[first]
    np.testing.assert_array_equal(tokens.places_of(3), np.flatnonzero(wanted == 3))


def test_places_are_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_BLOCK", 4)
    tokens = Tokens([np.array([1, 0, 1]), np.array([0, 0, 1, 1, 0])])
    assert tokens.places_of(0).tolist() == [1, 3, 4, 7]
    assert tokens.places_of(9).tolist() == []


def test_all_of_it_is_compared_by_slices_alone() -> None:
    tokens = Tokens([np.arange(3)])
    assert tokens == tokens
    assert tokens != tokens.part(0, 3)
    with pytest.raises(TypeError, match="compare a slice"):
        _ = tokens == 0


def test_files_are_mapped_and_one_that_shrinks_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for number, path in enumerate(paths):
        path.write_bytes(np.full(5000, number, np.uint16).tobytes())
    tokens = Tokens([Shard.open(path, np.dtype(np.uint16)) for path in paths])
    assert tokens[4998:5002].tolist() == [0, 0, 1, 1]
    tokens.will_need(0, 10_000)
    os.truncate(paths[1], 20)
    tokens.will_need(0, 5000)  # not of the file that shrank
    with pytest.raises(ValueError, match=r"b\.bin: was cut short from 10,000 to 20 bytes"):
        tokens.will_need(4999, 5001)


def test_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: told.append(limits))
    allow_open_files(700)
    assert told == []
    allow_open_files(3000)
    assert told == [(3256, 4096)]
    with pytest.raises(ValueError, match=r"5,000 files are to be open .* allows 4,096"):
        allow_open_files(5000)
