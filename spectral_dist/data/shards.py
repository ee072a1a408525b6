"""The tokens of a dataset: one array over one file or many, mapped into memory and read in parts.

Owns the mapped files: what is asked of the system ahead of a read, and what is noticed when a file
changes under a run. Knows nothing of documents, splits or batches, and imports no JAX. Read
`Tokens`.
"""

import bisect
import mmap
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

_SPARE_FILES = 256  # open files that everything else of a run may need
_BLOCK = 1 << 24
_PAGE = mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True)
class Shard:
    """One token file, mapped into memory.

    Attributes:
      path: of the file.
      tokens: [n], a view of the mapped file.
      mapped: the mapping.
    """

    path: Path
    tokens: np.ndarray
    mapped: mmap.mmap

    @classmethod
    def open(cls, path: Path, dtype: np.dtype) -> "Shard":
        """Map a file of tokens.

        Raises:
          OSError: if it cannot be opened.
        """
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(path, np.frombuffer(mapped, dtype), mapped)

    def will_need(self, start: int, stop: int) -> None:
        """Ask the system to read tokens start .. stop - 1 ahead.

        Raises:
          ValueError: if the file has been cut short.
        """
        # A microsecond. Touching a mapped page beyond the end of its file would end the process by
        # a bus error, without a word.
        if (size := self.mapped.size()) < self.tokens.nbytes:
            raise ValueError(
                f"data_paths: {self.path}: was cut short from {self.tokens.nbytes:,} to {size:,}"
                " bytes while it was read; the same command builds it again and goes on from the"
                " last checkpoint"
            )
        if hasattr(mmap, "MADV_WILLNEED"):
            first = start * self.tokens.itemsize // _PAGE * _PAGE
            self.mapped.madvise(mmap.MADV_WILLNEED, first, stop * self.tokens.itemsize - first)


class Tokens:
    """[n] tokens; a slice is read as an array, and a part of them is made without reading."""

    def __init__(
        self, shards: Sequence[Shard | np.ndarray], start: int = 0, stop: int = -1
    ) -> None:
        """Join files, or arrays in memory.

        Args:
          shards: one after the other, at least one, of one dtype.
          start: the first token that belongs to it.
          stop: the first one after them; -1 for the end of the last shard.
        """
        self._shards = shards
        self._arrays = [s.tokens if isinstance(s, Shard) else s for s in shards]
        self._ends = list(accumulate(len(array) for array in self._arrays))
        self._start, self._stop = start, self._ends[-1] if stop < 0 else stop
        self.dtype = self._arrays[0].dtype

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._stop - self._start

    def __getitem__(self, key: "int | slice") -> Any:
        """Return a token, or an array of those in a slice: a view where they lie in one file."""
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            assert step == 1, "slices have no step"
            pieces = [
                self._arrays[number][first:last]
                for number, first, last in self._places(start, stop)
            ]
            if len(pieces) == 1:
                return pieces[0]
            return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)
        index = range(len(self))[key]
        ((number, first, _),) = self._places(index, index + 1)
        return self._arrays[number][first]

    def __eq__(self, other: object) -> bool:
        """Return whether it is the same object; a number is compared with a slice, not with this.

        Raises:
          TypeError: for anything but tokens: Python would say False, where an array compares each.
        """
        if isinstance(other, Tokens):
            return self is other
        raise TypeError("compare a slice of the tokens")

    __hash__ = object.__hash__

    def part(self, start: int, stop: int) -> "Tokens":
        """Return tokens start .. stop - 1 without reading them."""
        assert 0 <= start <= stop <= len(self)
        return Tokens(self._shards, self._start + start, self._start + stop)

    def places_of(self, token: int) -> np.ndarray:
        """Return the indices at which a token stands; int64."""
        # In blocks: the mask of a whole dataset may not fit in memory.
        found = [
            np.flatnonzero(self[at : at + _BLOCK] == token) + at
            for at in range(0, len(self), _BLOCK)
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def will_need(self, start: int, stop: int) -> None:
        """Ask the system to read a slice ahead: from a cold disk it takes a fraction of the time.

        Raises:
          ValueError: if one of its files has been cut short.
        """
        for number, first, last in self._places(start, stop):
            shard = self._shards[number]
            if isinstance(shard, Shard):
                shard.will_need(first, last)

    def _places(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return (number of the shard, first, last + 1) for each piece of a slice."""
        start, stop = self._start + start, self._start + stop
        if start >= stop:
            return []
        number = bisect.bisect_right(self._ends, start)
        found = []
        while start < stop:
            before = self._ends[number] - len(self._arrays[number])
            end = min(stop, self._ends[number])
            if start < end:  # a shard may be empty
                found.append((number, start - before, end - before))
                start = end
            number += 1
        return found


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, if so many shards need that.

    Raises:
      ValueError: if the system does not allow so many.
    """
    wanted = count + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ValueError(
            f"datasets: {count:,} files are to be open at a time, and the system allows {hard:,}"
            " (ulimit -Hn); join some of them"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
