"""Contamination: how much of the held-out text stands in the training text, word for word.

Held-out documents are cut into windows of 50 bytes, and the training text is searched for each of
them at every place: what both share is found where it is 99 bytes long or longer. One pass over
the training text, in constant memory. Imports no JAX. Read `find_contamination`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spectral_dist.data.shards import Tokens
from spectral_dist.data.statistics import documents
from spectral_dist.data.tokens import TokenFile

WINDOW = 50  # bytes, about eight words
_FEWEST_BYTES = 8  # different ones in a window; rulers and blanks stand in every text
_BLOCK = 1 << 22  # tokens hashed at a time
_BASE = 0x9E3779B97F4A7C15  # odd: a factor that keeps all bits


@dataclass(frozen=True)
class Contamination:
    """What of one dataset's held-out text is trained on.

    Attributes:
      name: of the dataset.
      documents: held-out documents with at least one window.
      touched: those of which a window is in the training text.
      mostly: those of which at least half of the windows are.
      windows: in all.
      found: windows that are in the training text.
      trained: name of the dataset with most of them, or "".
      example: the first window that was found, or b"".
    """

    name: str
    documents: int
    touched: int
    mostly: int
    windows: int
    found: int
    trained: str
    example: bytes


def find_contamination(
    held_out: Sequence[TokenFile], trained: Sequence[TokenFile]
) -> list[Contamination]:
    """Return what of each dataset's held-out part stands in any training part.

    Args:
      held_out: datasets, of whose `validation` it is asked.
      trained: datasets, whose `train` is searched.
    """
    cut = [_windows(file.validation, file) for file in held_out]
    wanted = _Wanted(np.concatenate([np.empty(0, np.uint64), *(_hashes(w) for w, _ in cut)]))
    # Of each wanted hash, in which of the training texts it was seen.
    seen = np.zeros((len(trained), len(wanted.hashes)), bool)
    for number, file in enumerate(trained):
        for hashes in _rolling(file):
            seen[number, wanted.among(hashes)] = True
    return [
        _counted(file, *own, wanted.hashes, seen, trained)
        for file, own in zip(held_out, cut, strict=True)
    ]


def _counted(
    file: TokenFile,
    windows: np.ndarray,
    document_of: np.ndarray,
    wanted: np.ndarray,
    seen: np.ndarray,
    trained: Sequence[TokenFile],
) -> Contamination:
    """Return the counts of one dataset.

    Args:
      file: the dataset.
      windows: [n, WINDOW], uint8.
      document_of: [n], the number of the document of each, ascending.
      wanted: [m], the sorted hashes of all windows.
      seen: [texts, m], whether a training text has it.
      trained: these texts.
    """
    places = np.searchsorted(wanted, _hashes(windows))
    found = np.any(seen[:, places], axis=0)
    numbers, counts = np.unique(document_of, return_counts=True)
    hits = np.bincount(np.searchsorted(numbers, document_of), found, len(numbers))
    by_text = seen[:, places].sum(axis=1)
    return Contamination(
        name=file.name,
        documents=len(numbers),
        touched=int(np.count_nonzero(hits)),
        mostly=int(np.count_nonzero(2 * hits >= counts)),
        windows=len(windows),
        found=int(found.sum()),
        trained=trained[int(by_text.argmax())].name if found.any() else "",
        example=windows[found.argmax()].tobytes() if found.any() else b"",
    )


def _windows(tokens: Tokens, file: TokenFile) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of documents one after the other, [n, WINDOW], and their documents."""
    found, numbers = [np.empty((0, WINDOW), np.uint8)], [np.empty(0, np.int64)]
    for number, document in enumerate(documents(tokens, file.tokenizer)):
        count = len(document) // WINDOW
        rows = np.frombuffer(document, np.uint8, count * WINDOW).reshape(count, WINDOW)
        different = 1 + np.count_nonzero(np.diff(np.sort(rows, axis=1), axis=1), axis=1)
        rows = rows[different >= _FEWEST_BYTES]
        found.append(rows)
        numbers.append(np.full(len(rows), number))
    return np.concatenate(found), np.concatenate(numbers)


def _hashes(windows: np.ndarray) -> np.ndarray:
    """Return the hash of each window, [n] of uint64; windows are [n, WINDOW]."""
    powers = np.array([pow(_BASE, WINDOW - 1 - i, 1 << 64) for i in range(WINDOW)], np.uint64)
    total = np.zeros(len(windows), np.uint64)
    for i, power in enumerate(powers):  # a matrix product of integers would copy 8 times as much
        total += windows[:, i].astype(np.uint64) * power
    return _mixed(total)


def _rolling(file: TokenFile) -> Iterator[np.ndarray]:
    """Yield the hashes of every window of a training text, in blocks."""
    rest, tokens = b"", file.train
    for at in range(0, len(tokens), _BLOCK):
        # Joined by byte 0, which no held-out window has: none crosses from one to the next.
        rest += b"\0".join(file.tokenizer.decode_documents(tokens[at : at + _BLOCK]))
        if len(rest) >= WINDOW:
            yield _every_hash(np.frombuffer(rest, np.uint8))
            rest = rest[len(rest) - WINDOW + 1 :]


def _every_hash(text: np.ndarray) -> np.ndarray:
    """Return the hash of the window at each place, [n - WINDOW + 1] of uint64."""
    # By doubling: of windows of 1, 2, 4, ... bytes, and then of those that add up to WINDOW.
    sums, size, covered = text.astype(np.uint64), 1, 0
    total = np.zeros(len(text) - WINDOW + 1, np.uint64)
    while True:
        if WINDOW & size:
            after = WINDOW - covered - size
            total += sums[covered : covered + len(total)] * np.uint64(pow(_BASE, after, 1 << 64))
            covered += size
        if covered == WINDOW:
            return _mixed(total)
        sums = sums[:-size] * np.uint64(pow(_BASE, size, 1 << 64)) + sums[size:]
        size *= 2


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Spread the low bits, in which similar windows are alike, over all."""
    return (hashes ^ (hashes >> np.uint64(31))) * np.uint64(_BASE)


class _Wanted:
    """Hashes that are looked for.

    Attributes:
      hashes: [m], sorted, each once.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = np.unique(hashes)
        # A table of bits first: a search among millions takes a microsecond, and most find nothing.
        bits = min(max(len(self.hashes) * 16, 1 << 10), 1 << 28).bit_length()
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self.hashes >> self._shift] = True

    def among(self, hashes: np.ndarray) -> np.ndarray:
        """Return the places, in the sorted ones, of those that are among others."""
        hashes = hashes[self._table[hashes >> self._shift]]
        if not len(hashes) or not len(self.hashes):
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return places[self.hashes[places] == hashes]
