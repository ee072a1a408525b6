"""Rows and batches: every window once an epoch, shares exact, the same on any mesh."""

import dataclasses
import hashlib
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from spectral_dist.data import mixture, order
from spectral_dist.data.mixture import (
    Batch,
    TrainSequences,
    long_windows,
    token_batches,
    validation_windows,
)
from spectral_dist.data.shards import Shard, Tokens
from spectral_dist.data.tokens import TokenFile

T = 8


def source(name: str, windows: int, held_out: bytes = b"held out\0") -> TokenFile:
    """Return a source of `windows` training windows, each token a function of its place."""
    split = windows * T + 1 + T // 2  # an incomplete window at the end is dropped
    train = (np.arange(split) * 7 % 251 + 1).astype(np.uint8)
    tokens = Tokens([np.concatenate([train, np.frombuffer(held_out, np.uint8)])])
    return TokenFile(name, Path(f"{name}.bin"), tokens, 1, "0" * 64, split)


FILES = [source("a", 40), source("b", 7), source("c", 1)]


def datasets_of(rows: TrainSequences, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the dataset of each sequence, int32."""
    return rows.starts(indices)[0].astype(np.int32)


def starts(rows: TrainSequences, indices: Sequence[int]) -> list[tuple[int, int]]:
    """Return (source, start) of rows, found by their content."""
    found = []
    for row, source_index in zip(rows.read(indices), datasets_of(rows, indices), strict=True):
        train = FILES[source_index].train
        windows = np.lib.stride_tricks.sliding_window_view(train, T + 1)[::T]
        (match,) = np.flatnonzero((windows == row).all(1))
        found.append((int(source_index), int(match)))
    return found


@pytest.mark.parametrize("few_windows", [0, 1 << 13])  # Grain's shuffle, and the kept order
def test_every_window_comes_once_an_epoch_in_a_new_order(
    few_windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "_FEW_WINDOWS", few_windows)
    rows = TrainSequences(FILES, [(0, (1, 0, 0))], T, seed=3)
    epochs = [[w for _, w in starts(rows, range(40 * e, 40 * e + 40))] for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(40))
    for one, other in itertools.combinations(epochs, 2):
        assert one != other
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


def test_rows_do_not_depend_on_how_they_are_asked_for() -> None:
    weights = (0.5, 0.3, 0.2)
    rows = TrainSequences(FILES, [(0, weights)], T, seed=3)
    tokens = rows.read(range(200))
    assert tokens.dtype == np.uint8
    assert tokens.shape == (200, T + 1)
    backwards = TrainSequences(FILES, [(0, weights)], T, seed=3).read(range(199, -1, -1))
    np.testing.assert_array_equal(backwards[::-1], tokens)
    one = rows.read([137])
    np.testing.assert_array_equal(one[0], tokens[137])
    other = TrainSequences(FILES, [(0, weights)], T, seed=4).read(range(200))
    assert (other != tokens).any()


def test_the_order_of_the_data_is_the_one_of_earlier_versions() -> None:
    """A run that is resumed with a new version must see the batches it would have seen."""
    files = [source("a", 10_000), *FILES[1:]]
    rows = TrainSequences(files, [(0, (0.5, 0.3, 0.2))], T, seed=3)
    tokens, sources = rows.read(range(500)), datasets_of(rows, range(500))
    digest = hashlib.sha256(tokens.tobytes() + sources.astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "a5c9b0791410ecee"


@pytest.mark.parametrize(
    "weights", [(0.8, 0.2, 0), (0.7, 0.3, 0), (1 / 3, 1 / 3, 1 / 3), (0.6, 0.3, 0.1), (1, 0, 1e-3)]
)
def test_shares_are_exact_after_any_number_of_rows(weights: tuple[float, ...]) -> None:
    sources = datasets_of(TrainSequences(FILES, [(0, weights)], T, seed=0), range(3000))
    counts = (sources[:, None] == np.arange(3)).cumsum(0)
    wanted = np.arange(1, 3001)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - wanted).max() < 2


def test_every_source_counts_its_own_rows_without_a_gap() -> None:
    shares = order.Shares((0.5, 0.3, 0.2))
    for first in (0, 10**9, 10**15):
        seen: dict[int, list[int]] = {}
        places = shares.places(np.arange(first, first + 1000))
        for chosen, key in zip(*(x.tolist() for x in places), strict=True):
            seen.setdefault(chosen, []).append(key)
        for keys in seen.values():
            assert keys == list(range(keys[0], keys[0] + len(keys)))
        if first == 0:
            assert all(keys[0] == 0 for keys in seen.values())


@pytest.mark.parametrize("few_windows", [8, 1 << 13])
@pytest.mark.parametrize("index", [10**6, 10**9, 2**33, 10**12])
def test_any_index_can_be_read(
    index: int, few_windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "_FEW_WINDOWS", few_windows)
    rows = TrainSequences(FILES[:2], [(0, (0.5, 0.5))], T, seed=3)
    found = starts(rows, range(index, index + 80))
    assert {s for s, _ in found} == {0, 1}
    # 80 rows hold 40 of the first source: an epoch and the next meet, nothing comes three times.
    assert max(found.count(row) for row in found if row[0] == 0) <= 2


def test_two_sources_of_one_size_have_orders_of_their_own() -> None:
    twins = [source("a", 40), source("b", 40)]
    rows = TrainSequences(twins, [(0, (0.5, 0.5))], T, seed=0)
    tokens, sources = rows.read(range(80)), datasets_of(rows, range(80))
    assert (tokens[sources == 0] != tokens[sources == 1]).any()


def test_too_short_for_one_window() -> None:
    with pytest.raises(ValueError, match=r"a\.bin: 0 windows of seq_len=1000"):
        TrainSequences(FILES, [(0, (1, 0, 0))], 1000, seed=0)


# ---- phases


PHASES = [(0, (0.5, 0.5, 0)), (37, (0.0, 0.3, 0.7)), (41, (0.9, 0.1, 0)), (1000, (0.2, 0, 0.8))]


def test_every_phase_has_its_shares_and_each_dataset_goes_on_where_it_was() -> None:
    """No window twice in an epoch, whatever the phases: the places of a dataset have no gap."""
    mixed = order.MixtureOrder([order.DatasetOrder(10, 0)] * 3, PHASES)
    found = list(zip(*(x.tolist() for x in mixed.places(np.arange(3000))), strict=True))
    for number in range(3):
        places = [place for dataset, place in found if dataset == number]
        assert places == list(range(len(places)))
    for (first, weights), after in zip(PHASES, (37, 41, 1000, 3000), strict=True):
        counts = np.bincount([dataset for dataset, _ in found[first:after]], minlength=3)
        wanted = (after - first) * np.array(weights) / sum(weights)
        assert np.abs(counts - wanted).max() < 2
        assert (counts[np.array(weights) == 0] == 0).all()


def test_phases_can_be_entered_anywhere() -> None:
    sequences = TrainSequences(FILES, PHASES, T, seed=3)
    whole = sequences.read(range(1100))
    again = TrainSequences(FILES, PHASES, T, seed=3)
    for index in (1099, 36, 37, 1000, 40, 999, 0):
        np.testing.assert_array_equal(again.read([index])[0], whole[index])
    np.testing.assert_array_equal(
        whole[:37], TrainSequences(FILES, PHASES[:1], T, 3).read(range(37))
    )


def test_phases_of_one_mixture_are_no_phases() -> None:
    """A boundary between two equal mixtures moves nothing but the places of single shares."""
    shares = order.Shares((0.5, 0.3, 0.2))
    for count in (0, 1, 7, 1000, 12_345):
        seen = np.bincount(shares.places(np.arange(count))[0], minlength=3)
        assert shares.taken(count) == seen.tolist()
    assert sum(shares.taken(10**15 + 1)) == 10**15 + 1


# ---- batches


def sharding(
    shape: tuple[int, int, int], axes: tuple[str, ...] = ("data", "fsdp")
) -> NamedSharding:
    count = int(np.prod(shape))
    devices = np.array(jax.devices()[:count]).reshape(shape)
    return NamedSharding(Mesh(devices, ("data", "fsdp", "tensor")), PartitionSpec(None, axes))


def batches(
    place: jax.sharding.Sharding, start: int = 0, steps: int = 4, rows: TrainSequences | None = None
) -> list[Batch]:
    rows = rows or TrainSequences(FILES, [(0, (0.5, 0.3, 0.2))], T, seed=3)
    return list(
        token_batches(
            rows,
            accum_steps=3,
            batch_size=8,
            sharding=place,
            start_step=start,
            start_sequence=start * 24,
            steps=steps,
            prefetch_steps=2,
        )
    )


def test_a_batch_is_the_rows_of_its_step() -> None:
    rows = TrainSequences(FILES, [(0, (0.5, 0.3, 0.2))], T, seed=3)
    got = batches(sharding((1, 1, 1)), start=2)
    assert [batch.step for batch in got] == [2, 3]
    for batch in got:
        tokens = rows.read(range(batch.step * 24, batch.step * 24 + 24))
        assert batch.tokens.dtype == np.uint8
        np.testing.assert_array_equal(batch.tokens, tokens.reshape(3, 8, T + 1))


def test_another_batch_size_goes_on_with_the_next_unseen_row() -> None:
    rows = Recorder()
    before = token_batches(
        rows,
        accum_steps=3,
        batch_size=8,
        sharding=sharding((1, 1, 1)),
        start_step=0,
        start_sequence=0,
        steps=2,
        prefetch_steps=1,
    )
    assert [batch.step for batch in before] == [0, 1]
    after = token_batches(
        rows,
        accum_steps=1,
        batch_size=4,
        sharding=sharding((1, 1, 1)),
        start_step=2,
        start_sequence=48,
        steps=5,
        prefetch_steps=1,
    )
    assert [(batch.step, batch.tokens.shape[:2]) for batch in after] == [
        (step, (1, 4)) for step in (2, 3, 4)
    ]
    assert rows.seen == list(range(48 + 12))


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_batches_are_equal_on_every_mesh(shape: tuple[int, int, int]) -> None:
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    place = sharding(shape)
    for one, other in zip(batches(sharding((1, 1, 1))), batches(place), strict=True):
        assert other.tokens.sharding.is_equivalent_to(place, 3)
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_a_single_device_needs_no_mesh() -> None:
    alone = batches(SingleDeviceSharding(jax.devices()[0]))
    for one, other in zip(batches(sharding((1, 1, 1))), alone, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


class Recorder(TrainSequences):
    """Rows that remember what was read."""

    def __init__(self) -> None:
        super().__init__(FILES, [(0, (0.5, 0.3, 0.2))], T, seed=3)
        self.seen: list[int] = []

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        self.seen += np.asarray(indices).tolist()
        return super().read(indices)


def test_replicas_do_not_read_a_row_twice() -> None:
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    rows = Recorder()
    batches(sharding((2, 1, 4)), rows=rows)
    assert sorted(rows.seen) == list(range(4 * 24))


def test_a_process_reads_the_rows_of_its_own_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of two halves of the devices, as two processes would see them."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    place = sharding((4, 2, 1))
    everything = place.addressable_devices_indices_map((3, 8))
    halves = [dict(list(everything.items())[:4]), dict(list(everything.items())[4:])]
    read = []
    for half in halves:
        monkeypatch.setattr(
            NamedSharding, "addressable_devices_indices_map", lambda self, shape, half=half: half
        )
        placement = mixture._Placement(Recorder(), (3, 8), place)
        read.append({int(number) for number in placement._numbers})
    assert len(read[0]) == len(read[1]) == 12
    assert read[0] | read[1] == set(range(24))


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "token-batches"]


def test_batches_are_made_ahead_and_no_further() -> None:
    rows = Recorder()
    made = threading.Event()
    original = rows.read

    def counted(indices: Sequence[int] | np.ndarray) -> np.ndarray:
        result = original(indices)
        if len(rows.seen) == 3 * 24:
            made.set()
        return result

    rows.read = counted  # type: ignore[method-assign]
    iterator = token_batches(
        rows,
        accum_steps=3,
        batch_size=8,
        sharding=sharding((1, 1, 1)),
        start_step=0,
        start_sequence=0,
        steps=1000,
        prefetch_steps=2,
    )
    assert next(iterator).step == 0
    assert made.wait(300)  # steps 1 and 2 are made while step 0 is in use
    assert not threading.Event().wait(0.2)
    assert len(rows.seen) == 3 * 24
    assert len(loader_threads()) == 1
    iterator.close()  # type: ignore[attr-defined]
    assert loader_threads() == []


def test_an_error_while_reading_reaches_the_consumer() -> None:
    class Broken(Recorder):
        def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
            if min(indices) >= 48:
                raise OSError("the disk is gone")
            return super().read(indices)

    seen = []
    iterator = token_batches(
        Broken(),
        accum_steps=3,
        batch_size=8,
        sharding=sharding((1, 1, 1)),
        start_step=0,
        start_sequence=0,
        steps=1000,
        prefetch_steps=3,
    )
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batch.step for batch in iterator)
    assert seen == [0, 1]
    assert loader_threads() == []


# ---- held-out windows


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 1000])
@pytest.mark.parametrize("size", [T + 1, T + 2, 2 * T, 2 * T + 1, 100, 101])
def test_validation_windows_spread_over_the_held_out_part(size: int, count: int) -> None:
    held_out = np.arange(1, size + 1, dtype=np.uint8)
    windows = validation_windows(source("a", 3, held_out.tobytes()), T, count)
    assert windows.shape == (min(count, (size - 1) // T), T + 1)
    assert windows.dtype == np.uint8
    targets = windows[:, 1:].ravel().tolist()
    assert len(set(targets)) == len(targets)
    assert (np.diff(windows.astype(int), axis=1) == 1).all()
    assert windows[0, 0] == 1
    if len(windows) > 1:
        assert windows[-1, -1] == size


def test_long_windows_stay_inside_one_document() -> None:
    sizes = [3, 9, 8, 40, 0, 17, 30]
    documents = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    file = source("a", 3, b"\0".join(documents) + b"\0")
    windows = long_windows(file, 8, 1000)
    # A document of n tokens holds (n - 1) // 8 windows of 8 targets.
    assert windows[:, 0].tolist() == [2, 4, 4, 4, 4, 6, 6, 7, 7, 7]
    assert (windows == windows[:, :1]).all()
    assert windows.shape[1] == 9
    np.testing.assert_array_equal(long_windows(file, 8, 5), windows[::2])
    assert long_windows(file, 40, 5).shape == (0, 41)


def test_long_windows_do_not_share_targets() -> None:
    held_out = np.arange(1, 101, dtype=np.uint8).tobytes()  # a document without an end
    windows = long_windows(source("a", 3, held_out), 8, 1000)
    targets = windows[:, 1:].ravel().tolist()
    assert len(set(targets)) == len(targets) == 96


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(FILES[0].tokens[:].tobytes())
    tokens = Tokens([Shard.open(path, np.dtype(np.uint8))])
    file = dataclasses.replace(FILES[0], tokens=tokens)
    rows = TrainSequences([file], [(0, (1,))], T, seed=0)
    rows.read([0])
    os.truncate(path, 100)
    with pytest.raises(ValueError, match=r"a\.bin: was cut short from 334 to 100 bytes while"):
        rows.read([1])


@pytest.mark.parametrize("parts", [2, 5, 40])
def test_the_order_is_the_same_when_a_dataset_is_cut_into_files(tmp_path: Path, parts: int) -> None:
    """cut_into_files: the sequences of one file and of many, some of them empty, are the same."""
    whole = FILES[0].tokens[:]
    cuts = np.sort(np.random.default_rng(parts).integers(0, len(whole), parts - 1))
    pieces: list[Shard | np.ndarray] = []
    for number, piece in enumerate(np.split(whole, cuts)):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(piece.tobytes())
        pieces.append(Shard.open(path, whole.dtype) if len(piece) else piece)
    cut = dataclasses.replace(FILES[0], tokens=Tokens(pieces))
    phases = [(0, (2.0, 1.0))]
    indices = np.arange(300)
    expected = TrainSequences([FILES[0], FILES[1]], phases, T, seed=3).read(indices)
    found = TrainSequences([cut, FILES[1]], phases, T, seed=3).read(indices)
    np.testing.assert_array_equal(found, expected)
    for function in (validation_windows, long_windows):
        np.testing.assert_array_equal(function(cut, 2, 5), function(FILES[0], 2, 5))


@pytest.mark.parametrize("count", [0, 1, 7, 100, 101, 250])
def test_passes_say_how_often_a_window_is_read(count: int) -> None:
    """how_often: by dataset, over phases; a dataset that is never used has none."""
    phases = [(0, (3.0, 1.0, 0.0)), (100, (1.0, 1.0, 0.0))]
    rows = TrainSequences(FILES, phases, T, seed=0)
    found = rows.passes(count)
    taken = np.bincount(datasets_of(rows, np.arange(count)), minlength=3)
    assert found == {"a": taken[0] / 40, "b": taken[1] / 7, "c": 0.0}
