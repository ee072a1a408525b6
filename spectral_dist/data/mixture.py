"""The mixture of datasets: which sequences a step sees, and batches prefetched to the devices.

Owns the order of the data. Sequence (a, b) of step s has the global index s*A*B + a*B + b. (Where a
resumed run has another A*B, it counts on from the index that was reached.) The content is a
function of (seed, index) alone, whatever the mesh and the number of processes. Knows nothing of the
model or of the training loop. Read `TrainSequences` first, then `token_batches`.

Shapes: A micro-batches, B sequences of a micro-batch (global), T seq_len, R sequences read at once.
"""

import bisect
import functools
import os
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import grain
import jax
import numpy as np
from grain.python import DatasetSelectionMap

from spectral_dist.data.tokens import TokenFile

# Weights are rounded to this many parts, that is to one in a million.
_PARTS = 1 << 20
# With fewer windows the order of a dataset is kept in memory (see `_SmallWindows`).
_FEW_WINDOWS = 1 << 13


class _Windows:
    """A Grain source: the starts of the windows of one dataset."""

    def __init__(self, dataset: int, count: int, seq_len: int) -> None:
        self._dataset, self._count, self._seq_len = dataset, count, seq_len

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[int, int]:
        # seq_len apart, T + 1 long: the last target of a window is the first input of the next.
        return self._dataset, int(index) * self._seq_len

    def __repr__(self) -> str:
        return f"_Windows(dataset={self._dataset}, count={self._count})"


class _SmallWindows(_Windows):
    """A Grain source: the windows of a small dataset, epoch after epoch, each in a new order."""

    # Grain's shuffle steps through at least 65,536 numbers to find one below the count: 2.2 ms a
    # sequence for 40 windows, 43 us for 20,000. An order kept in memory takes 17 us.

    def __init__(self, dataset: int, count: int, seq_len: int, seed: int) -> None:
        super().__init__(dataset, count, seq_len)
        # Sorts raw numbers: only those are the same in every version of numpy. Two epochs are kept,
        # since batches that are read ahead cross from one into the next.
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: np.argsort(
                np.random.Philox(key=[seed, epoch]).random_raw(count), kind="stable"
            )
        )

    def __len__(self) -> int:
        return self._count << 40  # without end, for all that a run can reach

    def __getitem__(self, index: int) -> tuple[int, int]:
        epoch, place = divmod(int(index), self._count)
        return super().__getitem__(self._order(epoch)[place])


class _Shares:
    """Which dataset the k-th sequence of a phase comes from, and its index there.

    After any number of sequences each dataset has its share, to within one for each dataset.
    """

    # `MapDataset.mix` of Grain cuts every share to a hundredth of the smallest one: 0.7 and 0.3
    # become 233 and 100 parts, and 0.3 and 0.1 may become 299 and 100.

    def __init__(self, weights: Sequence[float]) -> None:
        # A dataset of weight 0 gets no part, any other at least one.
        self._parts = [max(1, round(w * _PARTS)) if w > 0 else 0 for w in weights]

    def __getitem__(self, index: int) -> tuple[int, int]:
        # One dataset after the other: of the first k sequences that are left, floor(k * rest /
        # remaining) belong to the later datasets and the others to this one. Integers throughout: a
        # float would lose exactness after 2**53 parts.
        remaining = sum(self._parts)
        low, high = index, index + 1
        for dataset, parts in enumerate(self._parts):
            rest = remaining - parts
            next_low, next_high = low * rest // remaining, high * rest // remaining
            if next_low == next_high:
                return dataset, low - next_low
            low, high, remaining = next_low, next_high, rest
        raise AssertionError("the last dataset takes every sequence that is left")

    def taken(self, count: int) -> list[int]:
        """Return how many of the first `count` sequences come from each dataset."""
        remaining, left, taken = sum(self._parts), count, []
        for parts in self._parts:
            rest = remaining - parts
            others = left * rest // remaining if remaining else 0
            taken.append(left - others)
            left, remaining = others, rest
        return taken


class _Phases(DatasetSelectionMap):
    """Weights that change with the phase; each dataset continues where the last phase stopped."""

    def __init__(self, phases: Sequence[tuple[int, Sequence[float]]]) -> None:
        self._firsts = [first for first, _ in phases]
        assert self._firsts[0] == 0
        assert self._firsts == sorted(set(self._firsts)), "phases begin one after the other"
        self._shares = [_Shares(weights) for _, weights in phases]
        # How many sequences of each dataset the earlier phases took. `_Shares.taken` computes it,
        # so that random access need not go through them.
        self._offsets = [[0] * len(phases[0][1])]
        for shares, (first, after) in zip(self._shares, pairwise(self._firsts), strict=False):
            taken = shares.taken(after - first)
            self._offsets.append([o + t for o, t in zip(self._offsets[-1], taken, strict=True)])

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, index: int) -> tuple[int, int]:
        phase = bisect.bisect_right(self._firsts, index) - 1
        dataset, place = self._shares[phase][index - self._firsts[phase]]
        return dataset, self._offsets[phase][dataset] + place


class TrainSequences:
    """Random access to the training sequences: windows of each dataset, shuffled and mixed.

    Every epoch of a dataset is a new order of all its windows.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        phases: Sequence[tuple[int, Sequence[float]]],
        seq_len: int,
        seed: int,
    ) -> None:
        """Build the index; reads no tokens.

        Args:
          files: the datasets, all of one tokenizer.
          phases: the index of each phase's first sequence, 0 for the first, and its weights: one
            for each dataset, not negative, at least one above 0.
          seq_len: T, in tokens; each file's training part holds at least T + 1.
          seed: of the order, at least 0.

        Raises:
          ValueError: if a dataset is too short or too long.
        """
        self._seq_len, self._dtype = seq_len, files[0].tokenizer.dtype
        self._tokens = [file.train for file in files]
        self._descriptors = [self._descriptor(file) for file in files]
        # A dataset of weight 0 in all phases may be too short for a window: it is left out.
        used = [any(weights[i] > 0 for _, weights in phases) for i in range(len(files))]
        datasets = [
            self._windows(number, file, seq_len, seed)
            for number, file in enumerate(files)
            if used[number]
        ]
        shares = [
            (first, [w for w, use in zip(weights, used, strict=True) if use])
            for first, weights in phases
        ]
        self._starts = grain.MapDataset.select_from_datasets(datasets, _Phases(shares))

    @staticmethod
    def _windows(number: int, file: TokenFile, seq_len: int, seed: int) -> Any:
        """Return the starts of one dataset's windows, epoch after epoch, in its own order."""
        count = (len(file.train) - 1) // seq_len
        if not 1 <= count < 2**32:
            raise ValueError(
                f"{file.path}: {count:,} windows of seq_len={seq_len} tokens; must be at least"
                " 1 and below 2**32"
            )
        # A hash, not seed + number: Grain adds the epoch to the seed, so that one dataset would
        # repeat the orders of the next, an epoch later.
        order = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        if count < _FEW_WINDOWS:
            return grain.MapDataset.source(_SmallWindows(number, count, seq_len, order))
        windows = grain.MapDataset.source(_Windows(number, count, seq_len))
        return windows.shuffle(seed=order).repeat()

    def _descriptor(self, file: TokenFile) -> int | None:
        """Open a .bin for read-ahead advice to the system; None if the system takes none."""
        if not hasattr(os, "posix_fadvise"):
            return None
        try:
            descriptor = os.open(file.path, os.O_RDONLY)
        except OSError:  # the tokens are mapped already: only the advice is lost
            return None
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Read sequences by their global index.

        Args:
          indices: R indices, each at least 0.

        Returns:
          tokens [R, T + 1] of the tokenizer's dtype: the inputs are all but the last, the targets
          all but the first.
        """
        size = self._seq_len + 1
        item = self._dtype.itemsize
        tokens = np.empty((len(indices), size), self._dtype)
        starts = [self.start(index) for index in indices]
        # Ask the system for all before touching the first: from a cold disk (T = 2048) 20 us a
        # sequence, and 527 us one after the other.
        for dataset, start in starts:
            descriptor = self._descriptors[dataset]
            if descriptor is not None:
                advice = os.POSIX_FADV_WILLNEED
                os.posix_fadvise(descriptor, start * item, size * item, advice)
        for place, (dataset, start) in enumerate(starts):
            tokens[place] = self._tokens[dataset][start : start + size]
        return tokens

    def start(self, index: int) -> tuple[int, int]:
        """Return the dataset of a sequence, and where it begins in the training part."""
        return cast(tuple[int, int], self._starts[int(index)])


@dataclass(frozen=True)
class Batch:
    """The tokens of one optimizer step.

    Attributes:
      step: the step that consumes it, from 0.
      tokens: [A, B, T + 1] of the tokenizer's dtype.
    """

    step: int
    tokens: jax.Array


def token_batches(
    sequences: TrainSequences,
    *,
    accum_steps: int,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    start_step: int,
    start_sequence: int,
    steps: int,
    prefetch_steps: int,
) -> Iterator[Batch]:
    """Yield the batches of the steps start_step .. steps - 1, prefetched to the devices.

    A thread reads the sequences that this process's devices hold, each once, and keeps at most
    `prefetch_steps` batches ready. Its errors are raised here; closing the iterator ends it.

    Args:
      sequences: by their global index.
      accum_steps: A.
      batch_size: B, over all devices.
      sharding: of the tokens [A, B, T + 1]; the last dimension is not split.
      start_step: the first step, at least 0.
      start_sequence: global index of its first sequence; start_step * A * B if A * B never changed.
      steps: the step to stop before.
      prefetch_steps: batches ready ahead, at least 1.
    """
    assert prefetch_steps >= 1
    place = _Placement(sequences, (accum_steps, batch_size), sharding)
    ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
    free = threading.Semaphore(prefetch_steps)
    stop = threading.Event()

    def produce() -> None:
        try:
            for step in range(start_step, steps):
                free.acquire()
                if stop.is_set():
                    return
                done = (step - start_step) * accum_steps * batch_size
                ready.put(place.batch(step, start_sequence + done))
            ready.put(None)
        except BaseException as error:  # else the consumer would wait for ever
            ready.put(error)

    thread = threading.Thread(target=produce, name="token-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            free.release()
            yield item
    finally:
        stop.set()
        free.release()  # wakes the thread, which may wait for room
        thread.join()


class _Placement:
    """Which sequences of a batch this process reads, and to which devices they go."""

    def __init__(
        self, sequences: TrainSequences, shape: tuple[int, int], sharding: jax.sharding.Sharding
    ) -> None:
        self._sequences, self._shape, self._sharding = sequences, shape, sharding
        mine = np.zeros(shape, bool)
        whole = (*shape, 1)  # a sequence is never split: any length shows who holds it
        for index in sharding.addressable_devices_indices_map(whole).values():
            mine[cast(Any, index)[:2]] = True
        self._numbers = np.flatnonzero(mine)
        # The place of sequence (a, b) among those that are read here; -1 where it is not.
        self._place = np.where(mine, np.cumsum(mine).reshape(shape) - 1, -1)

    def batch(self, step: int, first: int) -> Batch:
        read = self._sequences.read([first + int(number) for number in self._numbers])

        def pick(index: Any) -> np.ndarray:
            return read[self._place[index[:2]]][..., index[2]]

        shape = (*self._shape, read.shape[1])
        tokens = jax.make_array_from_callback(shape, self._sharding, pick)
        # Ready means on the device: the training loop must not wait for the copy.
        return Batch(step, jax.block_until_ready(tokens))


def validation_windows(file: TokenFile, seq_len: int, count: int) -> np.ndarray:
    """Return windows of a dataset's held-out tokens, evenly spread, no target in two of them.

    Args:
      file: the dataset.
      seq_len: T, in tokens.
      count: windows wanted, at least 1.

    Returns:
      [n, T + 1] of the tokenizer's dtype, n <= count; the same windows in every run.
    """
    held_out = file.validation
    n = min(count, (len(held_out) - 1) // seq_len)
    room = len(held_out) - 1 - seq_len
    starts = [i * room // (n - 1) if n > 1 else 0 for i in range(n)]
    return _cut(held_out, starts, seq_len)


def long_windows(file: TokenFile, length: int, count: int) -> np.ndarray:
    """Return windows that lie inside one held-out document each, evenly spread.

    Args:
      file: the dataset.
      length: in tokens.
      count: windows wanted, at least 1.

    Returns:
      [n, length + 1], 0 <= n <= count, without an end of document and with no target in two of
      them; a long document gives several. The same windows in every run.
    """
    held_out, end = file.validation, file.tokenizer.end
    block = 1 << 24  # compared in blocks: the mask of a whole dataset may not fit in memory
    ends = [
        np.flatnonzero(held_out[at : at + block] == end) + at
        for at in range(0, len(held_out), block)
    ]
    edges = np.concatenate([[-1], *ends, [len(held_out)]])
    firsts, sizes = edges[:-1] + 1, np.diff(edges) - 1
    room = np.maximum(sizes - 1, 0) // length  # windows in each document
    before = np.cumsum(room) - room
    total = int(room.sum())
    n = min(count, total)
    slots = np.arange(n) * total // max(n, 1)
    document = np.searchsorted(before, slots, side="right") - 1
    starts = firsts[document] + (slots - before[document]) * length
    return _cut(held_out, starts.tolist(), length)


def _cut(tokens: np.ndarray, starts: Sequence[int], length: int) -> np.ndarray:
    windows = np.empty((len(starts), length + 1), tokens.dtype)
    for place, start in enumerate(starts):
        windows[place] = tokens[start : start + length + 1]
    return windows
