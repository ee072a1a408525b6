"""The order of the data: Grain's shuffle number for number, and the same however it is asked."""

import grain
import numpy as np
import pytest

from spectral_dist.data import order
from spectral_dist.data.order import DatasetOrder, MixtureOrder, shuffled


@pytest.mark.parametrize(
    ("count", "seed"),
    [
        (1, 3),
        (2, 1),
        (40, 3),
        (8192, 5),
        (65_535, 9),
        (65_536, 1),
        (65_537, 3),
        (3 * 10**9, 2**32 - 1),
    ],
)
def test_the_shuffle_is_grains(count: int, seed: int) -> None:
    indices = np.random.default_rng(count).integers(0, count, 40)
    theirs = grain.MapDataset.range(count).shuffle(seed=seed)
    assert shuffled(indices, count, seed).tolist() == [int(theirs[int(i)]) for i in indices]


@pytest.mark.parametrize("count", [100, 10_000])
def test_what_is_kept_in_memory_is_what_is_computed(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "_FEW_WINDOWS", 0)
    indices = np.arange(count - 30, count + 30)  # an epoch and the next
    kept = DatasetOrder(count, 7).windows(indices)
    monkeypatch.setattr(order, "_KEPT_WINDOWS", 0)
    np.testing.assert_array_equal(DatasetOrder(count, 7).windows(indices), kept)


def test_an_index_beyond_64_bit_products_is_exact() -> None:
    """The places around the border between both kinds of integers have no gap."""
    mixed = MixtureOrder([DatasetOrder(10, 0)] * 2, [(0, (0.7, 0.3))])
    border = order._EXACT
    around = np.arange(border - 500, border + 500)
    dataset, place = mixed.places(around)
    for number in range(2):
        places = place[dataset == number]
        assert (np.diff(places) == 1).all()
    below = mixed.places(around[:500])
    np.testing.assert_array_equal(below[1], place[:500])
