"""The mixture of datasets: which sequences a step sees, and batches prefetched to the devices.

Sequence (a, b) of step s has the global index s*A*B + a*B + b. (Where a
resumed run has another A*B, it counts on from the index that was reached.) The content is a
function of (seed, index) alone, whatever the mesh and the number of processes. Knows nothing of the
model or of the training loop. Read `TrainSequences` first, then `token_batches`.

Shapes: A micro-batches, B sequences of a micro-batch (global), T seq_len, R sequences read at once.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grain
import jax
import numpy as np

from spectral_dist.data.order import DatasetOrder, MixtureOrder
from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokens import TokenFile


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
        self._tokens, self._names = [file.train for file in files], [file.name for file in files]
        # A dataset of weight 0 in all phases may be too short for a window: it is left out.
        used = [any(weights[i] > 0 for _, weights in phases) for i in range(len(files))]
        orders = [
            self._dataset_order(number, file, seq_len, seed)
            for number, file in enumerate(files)
            if used[number]
        ]
        self._numbers = np.flatnonzero(used)  # of the datasets that are left, among all
        shares = [
            (first, [w for w, use in zip(weights, used, strict=True) if use])
            for first, weights in phases
        ]
        self._order = MixtureOrder(orders, shares)

    @staticmethod
    def _dataset_order(number: int, file: TokenFile, seq_len: int, seed: int) -> DatasetOrder:
        """Return one dataset's own order of its windows."""
        count = (len(file.train) - 1) // seq_len
        if not 1 <= count < 2**32:
            raise ValueError(
                f"{file.path}: {count:,} windows of seq_len={seq_len} tokens; must be at least"
                " 1 and below 2**32"
            )
        # A hash, not seed + number: the epoch is added to the seed, so that one dataset would
        # repeat the orders of the next, an epoch later.
        order = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        return DatasetOrder(count, order)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read sequences by their global index.

        Args:
          indices: R indices, each at least 0.

        Returns:
          tokens [R, T + 1] of the tokenizer's dtype: the inputs are all but the last, the targets
          all but the first.

        Raises:
          ValueError: if a .bin has been cut short since it was opened.
        """
        size = self._seq_len + 1
        tokens = np.empty((len(indices), size), self._dtype)
        datasets, starts = self.starts(indices)
        places = list(zip(datasets.tolist(), starts.tolist(), strict=True))
        # Ask the system for all before touching the first: from a cold disk (T = 2048) 20 us a
        # sequence, and 527 us one after the other.
        for dataset, start in places:
            self._tokens[dataset].will_need(start, start + size)
        for row, (dataset, start) in zip(tokens, places, strict=True):
            row[:] = self._tokens[dataset][start : start + size]
        return tokens

    def passes(self, count: int) -> dict[str, float]:
        """Return how many times the first `count` sequences go through each dataset, by name."""
        found = dict.fromkeys(self._names, 0.0)
        trained = self._order.passes(count)
        return found | {self._names[n]: p for n, p in zip(self._numbers, trained, strict=True)}

    def starts(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset of each sequence and where it begins in the training part; int64 [R].

        Args:
          indices: R indices, each at least 0.
        """
        dataset, window = self._order.windows(np.asarray(indices, np.int64))
        # seq_len apart, T + 1 long: the last target of a window is the first input of the next.
        return self._numbers[dataset], window * self._seq_len


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
    size = accum_steps * batch_size
    batches = grain.MapDataset.range(start_step, steps).map(
        lambda step: place.batch(step, start_sequence + (step - start_step) * size)
    )
    ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
    free = threading.Semaphore(prefetch_steps)
    stop = threading.Event()

    def produce() -> None:
        try:
            for index in range(steps - start_step):
                free.acquire()
                if stop.is_set():
                    return
                ready.put(batches[index])
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
        read = self._sequences.read(first + self._numbers)

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
    edges = np.concatenate([[-1], held_out.places_of(end), [len(held_out)]])
    firsts, sizes = edges[:-1] + 1, np.diff(edges) - 1
    room = np.maximum(sizes - 1, 0) // length  # windows in each document
    before = np.cumsum(room) - room
    total = int(room.sum())
    n = min(count, total)
    slots = np.arange(n) * total // max(n, 1)
    document = np.searchsorted(before, slots, side="right") - 1
    starts = firsts[document] + (slots - before[document]) * length
    return _cut(held_out, starts.tolist(), length)


def _cut(tokens: Tokens, starts: Sequence[int], length: int) -> np.ndarray:
    windows = np.empty((len(starts), length + 1), tokens.dtype)
    for place, start in enumerate(starts):
        windows[place] = tokens[start : start + length + 1]
    return windows
