"""The order of the data: which window of which dataset each training sequence is.

A pure function of (seed, index), computed for a whole batch of indices at once. Knows no tokens and
no devices. Read `MixtureOrder`, then `DatasetOrder` and `shuffled`.
"""

import bisect
import functools
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

# Weights are rounded to this many parts, that is to one in a million.
_PARTS = 1 << 20
# Below this index the products of `Shares` fit 64 bits; above it they are Python's own integers.
_EXACT = 1 << 40
# With fewer windows a dataset has a simpler order (see `DatasetOrder`).
_FEW_WINDOWS = 1 << 13
# With fewer windows the order of an epoch is kept in memory: 8 bytes each, of two epochs.
_KEPT_WINDOWS = 1 << 20


class MixtureOrder:
    """Datasets mixed by weights that change with the phase.

    Each dataset continues where the last phase stopped.
    """

    def __init__(
        self, datasets: Sequence["DatasetOrder"], phases: Sequence[tuple[int, Sequence[float]]]
    ) -> None:
        """Mix datasets.

        Args:
          datasets: the order of each.
          phases: the index of each phase's first sequence, 0 for the first, and its weights: one
            for each dataset, not negative, at least one above 0.
        """
        self._datasets = datasets
        self._firsts = [first for first, _ in phases]
        assert self._firsts[0] == 0
        assert self._firsts == sorted(set(self._firsts)), "phases begin one after the other"
        self._shares = [Shares(weights) for _, weights in phases]
        # How many sequences of each dataset the earlier phases took. `Shares.taken` computes it, so
        # that random access need not go through them.
        self._offsets = [[0] * len(phases[0][1])]
        for shares, (first, after) in zip(self._shares, pairwise(self._firsts), strict=False):
            taken = shares.taken(after - first)
            self._offsets.append([o + t for o, t in zip(self._offsets[-1], taken, strict=True)])

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset of each sequence and its index there, over all epochs; int64 [R].

        Args:
          indices: of sequences, at least 0, int64 [R].
        """
        phase = np.searchsorted(self._firsts, indices, side="right") - 1
        dataset, place = np.zeros((2, len(indices)), np.int64)
        for number in np.unique(phase):
            here = phase == number
            chosen, local = self._shares[number].places(indices[here] - self._firsts[number])
            dataset[here] = chosen
            place[here] = local + np.asarray(self._offsets[number])[chosen]
        return dataset, place

    def passes(self, count: int) -> list[float]:
        """Return how many times the first `count` sequences go through each dataset."""
        phase = bisect.bisect_right(self._firsts, max(count - 1, 0)) - 1
        taken = self._shares[phase].taken(count - self._firsts[phase])
        before = self._offsets[phase]
        each = zip(before, taken, self._datasets, strict=True)
        return [(offset + here) / dataset.count for offset, here, dataset in each]

    def windows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset of each sequence and the number of its window; int64 [R].

        Args:
          indices: of sequences, at least 0, int64 [R].
        """
        dataset, place = self.places(indices)
        window = np.empty_like(place)
        for number in np.unique(dataset):
            here = dataset == number
            window[here] = self._datasets[number].windows(place[here])
        return dataset, window


class Shares:
    """Which dataset the k-th sequence of a phase comes from, and its index there.

    After any number of sequences each dataset has its share, to within one for each dataset.
    """

    # `MapDataset.mix` of Grain cuts every share to a hundredth of the smallest one: 0.7 and 0.3
    # become 233 and 100 parts, and 0.3 and 0.1 may become 299 and 100.

    def __init__(self, weights: Sequence[float]) -> None:
        """Round the weights to parts."""
        # A dataset of weight 0 gets no part, any other at least one.
        self._parts = [max(1, round(w * _PARTS)) if w > 0 else 0 for w in weights]

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset of each sequence of the phase and its index there; int64 [R].

        Args:
          indices: within the phase, at least 0, int64 [R].
        """
        # One dataset after the other: of the first k sequences that are left, floor(k * rest /
        # remaining) belong to the later datasets and the others to this one. Integers throughout: a
        # float would lose exactness after 2**53 parts.
        low = indices if indices.max(initial=0) < _EXACT else indices.astype(object)
        high, remaining = low + 1, sum(self._parts)
        dataset = np.full(len(indices), -1)
        place = np.zeros(len(indices), np.int64)
        for number, parts in enumerate(self._parts):
            if parts == 0:
                continue
            rest = remaining - parts
            next_low, next_high = low * rest // remaining, high * rest // remaining
            mine = (next_low == next_high) & (dataset < 0)
            dataset[mine], place[mine] = number, (low - next_low)[mine]
            if rest == 0:
                break
            low, high, remaining = next_low, next_high, rest
        assert (dataset >= 0).all(), "the last dataset takes every sequence that is left"
        return dataset, place

    def taken(self, count: int) -> list[int]:
        """Return how many of the first `count` sequences come from each dataset."""
        remaining, left, taken = sum(self._parts), count, []
        for parts in self._parts:
            rest = remaining - parts
            others = left * rest // remaining if remaining else 0
            taken.append(left - others)
            left, remaining = others, rest
        return taken


class DatasetOrder:
    """The windows of one dataset, epoch after epoch, each in a new order of all of them."""

    def __init__(self, count: int, seed: int) -> None:
        """Order windows.

        Args:
          count: of the windows, at least 1, below 2**32.
          seed: at least 0, below 2**32.
        """
        self.count, self._seed = count, seed
        # Two epochs are kept, since batches that are read ahead cross from one into the next.
        self._kept = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return the windows of an epoch in their order, int64 [count]."""
        if self.count < _FEW_WINDOWS:
            # Sorts raw numbers: only those are the same in every version of numpy.
            raw = np.random.Philox(key=[self._seed, epoch]).random_raw(self.count)
            return np.argsort(raw, kind="stable")
        return self._shuffled(np.arange(self.count), epoch)

    def _shuffled(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        return shuffled(indices, self.count, (self._seed + epoch) % 2**32)

    def windows(self, indices: np.ndarray) -> np.ndarray:
        """Return the window of each index over all epochs; int64 [R].

        Args:
          indices: at least 0, int64 [R].
        """
        epochs, places = np.divmod(indices, self.count)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            if self.count < _KEPT_WINDOWS:
                windows[here] = self._kept(epoch)[places[here]]
            else:
                windows[here] = self._shuffled(places[here], epoch)
        return windows


def shuffled(indices: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return where a shuffle of `count` things puts some of them; int64, of indices' shape.

    Grain's shuffle (`grain.MapDataset.shuffle`), number for number, for many indices at once: a
    block cipher of four rounds (Simon: Beaulieu et al. 2013, IACR eprint 2013/404) on the smallest
    even number of bits, at least 16, applied again until the result is below `count` (Black and
    Rogaway 2002, "Ciphers with Arbitrary Finite Domains": cycle walking).

    Args:
      indices: at least 0 and below count, int64.
      count: at least 1, at most 2**32.
      seed: of the order, at least 0 and below 2**32.
    """
    if count == 1:
        return np.zeros_like(indices)
    bits = math.ceil(math.log2(count - 1))
    half = max(bits + bits % 2, 16) // 2
    keys = [key & ((1 << half) - 1) for key in _seed_sequence(seed)]
    values = indices.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        values[walking] = _simon(values[walking], half, keys)
        walking = walking[values[walking] >= count]
    return values.astype(np.int64)


def _simon(values: np.ndarray, half: int, keys: Sequence[int]) -> np.ndarray:
    """Encrypt numbers of 2 `half` bits, uint64, with one key a round."""
    width, mask = np.uint64(half), np.uint64((1 << half) - 1)

    def mixed(x: np.ndarray) -> np.ndarray:
        def rotated(by: int) -> np.ndarray:
            return (x << np.uint64(by)) | (x >> (width - np.uint64(by)))

        return ((rotated(1) & rotated(8)) ^ rotated(2)) & mask

    left, right = (values >> width) & mask, values & mask
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left ^= mixed(right) ^ np.uint64(first)
        right ^= mixed(left) ^ np.uint64(second)
    return (left << width) | right


@functools.lru_cache(maxsize=64)
def _seed_sequence(seed: int) -> tuple[int, ...]:
    """Return four numbers of 32 bits from a seed, as C++'s std::seed_seq generates them."""
    n, p, q, full = 4, 1, 2, 2**32 - 1
    state = [0x8B8B8B8B] * n

    def scrambled(x: int, factor: int) -> int:
        return factor * (x ^ (x >> 27)) & full

    for k in range(n):
        mixed = state[k % n] ^ state[(k + p) % n] ^ state[(k - 1) % n]
        a = scrambled(mixed, 1664525)
        b = (a + (1 if k == 0 else k % n + (seed if k == 1 else 0))) & full
        state[(k + p) % n] = (state[(k + p) % n] + a) & full
        state[(k + q) % n] = (state[(k + q) % n] + b) & full
        state[k % n] = b
    for k in range(n, 2 * n):
        mixed = (state[k % n] + state[(k + p) % n] + state[(k - 1) % n]) & full
        a = scrambled(mixed, 1566083941)
        b = (a - k % n) & full
        state[(k + p) % n] ^= a
        state[(k + q) % n] ^= b
        state[k % n] = b
    return tuple(state)
