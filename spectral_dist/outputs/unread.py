"""The records that a notebook has not read yet, as an output."""

from collections import deque
from collections.abc import Iterator

from spectral_dist.training.metrics import Record


class UnreadRecords:
    """Keeps every record until it is taken; an `Output`."""

    def __init__(self) -> None:
        """Begin with none."""
        self._records: deque[Record] = deque()

    def write(self, record: Record) -> None:
        """Keep a record."""
        self._records.append(record)

    def close(self) -> None:
        """Keep the records: the caller may still read them."""

    def take(self) -> Iterator[Record]:
        """Yield each record once."""
        while self._records:
            yield self._records.popleft()
