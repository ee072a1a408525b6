"""Tokens to batches: which row a step sees, and reading it ahead of the device.

Owns the order of the data: the row (a, b) of step s has the global index s*A*B + a*B + b (counted
on from the row reached, where a resumed run has another A*B), and its content is a function of
(seed, index) alone, whatever the mesh and the number of processes. Knows nothing of the model or of
the training loop. Read `TrainRows` first, then `token_batches`.

Shapes: A accumulation steps, B sequences of a micro-batch (global), T seq_len, R rows.
"""

import functools
import os
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grain
import jax
import numpy as np
from grain.python import DatasetSelectionMap
from jax.sharding import NamedSharding, PartitionSpec

from spectral_dist.data.tokens import TokenFile

# Shares are whole numbers of this many parts: exact to one in a million.
_PARTS = 1 << 20
# Below this many windows a text's order is kept in memory (see `_SmallWindows`).
_FEW_WINDOWS = 1 << 13


class _Windows:
    """A Grain source: the starts of the windows of one training text."""

    def __init__(self, source: int, count: int, seq_len: int) -> None:
        self._source, self._count, self._seq_len = source, count, seq_len

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._source, int(index) * self._seq_len

    def __repr__(self) -> str:
        return f"_Windows(source={self._source}, count={self._count})"


class _SmallWindows(_Windows):
    """A Grain source: the windows of a short text, epoch after epoch, each in a new order.

    Grain's shuffle steps through at least 65,536 numbers to find one below the count: 2.2 ms a row
    for 40 windows, 43 microseconds for 20,000. A short text's order is small enough to be kept.
    """

    def __init__(self, source: int, count: int, seq_len: int, seed: int) -> None:
        super().__init__(source, count, seq_len)
        # Sorting raw numbers, because they are promised to be the same in every version of numpy.
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: np.argsort(
                np.random.Philox(key=[seed, epoch]).random_raw(count), kind="stable"
            )
        )

    def __len__(self) -> int:
        return self._count << 40

    def __getitem__(self, index: int) -> tuple[int, int]:
        epoch, place = divmod(int(index), self._count)
        return super().__getitem__(self._order(epoch)[place])


class _Shares(DatasetSelectionMap):
    """Which source the k-th row comes from, and its index there.

    `MapDataset.mix` cuts every share to a hundredth of the smallest one (0.7 and 0.3 become 233 and
    100 parts, and 0.3 and 0.1 may become 299 and 100); this map is the same idea with finer parts.
    After any number of rows each source has its share of them, to within one row for each source.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._parts = [max(1, round(weight * _PARTS)) for weight in weights]

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, index: int) -> tuple[int, int]:
        # Peel one source off after the other: of the first k rows that are left, those beyond
        # floor(k * rest) are this source's.
        remaining = sum(self._parts)
        low, high = index, index + 1
        for source, parts in enumerate(self._parts):
            rest = remaining - parts
            next_low, next_high = low * rest // remaining, high * rest // remaining
            if next_low == next_high:
                return source, low - next_low
            low, high, remaining = next_low, next_high, rest
        raise AssertionError("the last source takes every row that is left")


class TrainRows:
    """Random access to the rows of training: windows of each source, shuffled, mixed by weight.

    Every epoch of a source is a new order of all its windows. A source of weight 0 has no rows.
    """

    def __init__(
        self, files: Sequence[TokenFile], weights: Sequence[float], seq_len: int, seed: int
    ) -> None:
        """Build the index; reads no tokens.

        Args:
          files: the sources.
          weights: one share for each source, not negative, at least one above 0.
          seq_len: T, in tokens; each file's training part holds at least T + 1.
          seed: of the order, at least 0.
        """
        self._seq_len = seq_len
        self._tokens = [file.train for file in files]
        self._descriptors = [self._descriptor(file) for file in files]
        datasets, shares = [], []
        for source, (file, weight) in enumerate(zip(files, weights, strict=True)):
            if weight == 0:
                continue
            count = (len(file.train) - 1) // seq_len
            if not 1 <= count < 2**32:
                raise ValueError(
                    f"{file.path}: {count:,} windows of seq_len={seq_len} tokens; must be at least"
                    " 1 and below 2**32"
                )
            # One seed for each source: Grain adds the epoch to it, so neighbours would repeat.
            order = int(np.random.SeedSequence([seed, source]).generate_state(1)[0])
            if count < _FEW_WINDOWS:
                few = _SmallWindows(source, count, seq_len, order)
                datasets.append(grain.MapDataset.source(few))
            else:
                windows = grain.MapDataset.source(_Windows(source, count, seq_len))
                datasets.append(windows.shuffle(seed=order).repeat())
            shares.append(weight)
        self._starts = grain.MapDataset.select_from_datasets(datasets, _Shares(shares))

    def _descriptor(self, file: TokenFile) -> int | None:
        """Open a .bin for advice to the system; None where the system takes none."""
        if not hasattr(os, "posix_fadvise"):
            return None
        try:
            descriptor = os.open(file.path, os.O_RDONLY)
        except OSError:  # the tokens are mapped already: only the advice is lost
            return None
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def rows(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read rows by their global index.

        Args:
          indices: R indices, each at least 0.

        Returns:
          tokens, uint8 [R, T + 1]: the inputs are all but the last, the targets all but the first;
          sources, int32 [R]: the index of each row's file.
        """
        size = self._seq_len + 1
        tokens = np.empty((len(indices), size), np.uint8)
        sources = np.empty(len(indices), np.int32)
        starts = [cast(tuple[int, int], self._starts[int(index)]) for index in indices]
        # Ask for all rows before touching the first: from a cold disk one after the other cost
        # 527 microseconds a row (T = 2048), and 20 so.
        for source, start in starts:
            descriptor = self._descriptors[source]
            if descriptor is not None:
                os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
        for row, (source, start) in enumerate(starts):
            tokens[row] = self._tokens[source][start : start + size]
            sources[row] = source
        return tokens, sources


@dataclass(frozen=True)
class Batch:
    """The tokens of one optimizer step.

    Attributes:
      step: the step that consumes it, from 0.
      tokens: uint8 [A, B, T + 1].
      sources: int32 [A, B], the index of each row's file.
    """

    step: int
    tokens: jax.Array
    sources: jax.Array


def token_batches(
    rows: TrainRows,
    *,
    accum_steps: int,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    start_step: int,
    start_row: int,
    steps: int,
    prefetch_steps: int,
) -> Iterator[Batch]:
    """Yield the batches of the steps start_step .. steps - 1, made ready on the device ahead.

    A thread reads the rows that this process's devices hold, each once, and keeps at most
    `prefetch_steps` batches ready. Its errors are raised here; closing the iterator ends it.

    Args:
      rows: the rows by global index.
      accum_steps: A.
      batch_size: B, over all devices.
      sharding: of the tokens [A, B, T + 1]; the last dimension is not split.
      start_step: the first step, at least 0.
      start_row: global index of its first row; start_step * A * B if A * B never changed.
      steps: the step to stop before.
      prefetch_steps: batches ready ahead, at least 1.
    """
    assert prefetch_steps >= 1
    place = _Placement(rows, (accum_steps, batch_size), sharding)
    ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
    free = threading.Semaphore(prefetch_steps)
    stop = threading.Event()

    def produce() -> None:
        try:
            for step in range(start_step, steps):
                free.acquire()
                if stop.is_set():
                    return
                ready.put(
                    place.batch(step, start_row + (step - start_step) * accum_steps * batch_size)
                )
            ready.put(None)
        except BaseException as error:  # whatever it is, the consumer must hear of it
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
        free.release()
        thread.join()


class _Placement:
    """Where the rows of a batch go: which ones this process reads, and to which devices."""

    def __init__(
        self, rows: TrainRows, shape: tuple[int, int], sharding: jax.sharding.Sharding
    ) -> None:
        self._rows, self._shape, self._sharding = rows, shape, sharding
        self._sources_sharding = _without_last_dimension(sharding)
        mine = np.zeros(shape, bool)
        for index in self._sources_sharding.addressable_devices_indices_map(shape).values():
            mine[index] = True
        self._numbers = np.flatnonzero(mine)
        # The place of row (a, b) among the rows that are read here; -1 where it is not.
        self._place = np.where(mine, np.cumsum(mine).reshape(shape) - 1, -1)

    def batch(self, step: int, first: int) -> Batch:
        read, sources = self._rows.rows([first + int(number) for number in self._numbers])

        def pick_tokens(index: Any) -> np.ndarray:
            return read[self._place[index[:2]]][..., index[2]]

        def pick_sources(index: Any) -> np.ndarray:
            return sources[self._place[index]]

        make = jax.make_array_from_callback
        batch = Batch(
            step,
            make((*self._shape, read.shape[1]), self._sharding, pick_tokens),
            make(self._shape, self._sources_sharding, pick_sources),
        )
        # Ready means on the device: the consumer must not wait for the copy.
        jax.block_until_ready((batch.tokens, batch.sources))
        return batch


def _without_last_dimension(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Return the sharding of [A, B] that goes with one of [A, B, T + 1]."""
    if isinstance(sharding, NamedSharding):
        assert len(sharding.spec) < 3 or sharding.spec[2] is None, "a row is never split"
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:2]))
    return sharding


def validation_windows(file: TokenFile, seq_len: int, count: int) -> np.ndarray:
    """Return windows of a file's held-out text, evenly spread, no target in two of them.

    Args:
      file: the source.
      seq_len: T, in tokens.
      count: windows wanted, at least 1.

    Returns:
      uint8 [n, T + 1], n <= count; the same for the same file.
    """
    held_out = file.validation
    n = min(count, (len(held_out) - 1) // seq_len)
    room = len(held_out) - 1 - seq_len
    starts = [i * room // (n - 1) if n > 1 else 0 for i in range(n)]
    return _cut(held_out, starts, seq_len)


def long_windows(file: TokenFile, length: int, count: int) -> np.ndarray:
    """Return windows that lie inside one held-out document each, evenly spread.

    Args:
      file: the source.
      length: in tokens.
      count: windows wanted, at least 1.

    Returns:
      uint8 [n, length + 1], 0 <= n <= count, without a byte 0 and with no target in two of them; a
      long document gives several. The same for the same file.
    """
    held_out = file.validation
    block = 1 << 24
    ends = [
        np.flatnonzero(held_out[at : at + block] == 0) + at for at in range(0, len(held_out), block)
    ]
    edges = np.concatenate([[-1], *ends, [len(held_out)]])
    firsts, sizes = edges[:-1] + 1, np.diff(edges) - 1
    room = np.maximum(sizes - 1, 0) // length  # windows that each document holds
    before = np.cumsum(room) - room
    total = int(room.sum())
    n = min(count, total)
    slots = np.arange(n) * total // max(n, 1)
    document = np.searchsorted(before, slots, side="right") - 1
    starts = firsts[document] + (slots - before[document]) * length
    return _cut(held_out, starts.tolist(), length)


def _cut(tokens: np.ndarray, starts: Sequence[int], length: int) -> np.ndarray:
    windows = np.empty((len(starts), length + 1), np.uint8)
    for row, start in enumerate(starts):
        windows[row] = tokens[start : start + length + 1]
    return windows
