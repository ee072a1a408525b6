"""Unicode normalization: letters written in two parts, composed (NFC) or counted.

A letter such as ş may be one character, or an s and a cedilla: the same to a reader, other bytes to
a model. Knows nothing of files or tokens and imports no JAX. Read `composed`, then
`count_decomposed`.
"""

import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO

from spectral_dist.data.readers import Blocks, Reader

# The marks of Latin, Greek and Cyrillic letters, U+0300 to U+033F, begin with this byte in UTF-8,
# and nothing else does.
_MARK = b"\xcc"
_NOT_ASCII = bytes(range(0x80, 0x100))


def composed(reader: Reader) -> Reader:
    """Return a reader of the same documents in NFC (Unicode Standard Annex 15)."""

    def read(source: BinaryIO, block_bytes: int) -> Blocks:
        blocks, held = reader(source, block_bytes), b""
        while True:
            try:
                first, *others = next(blocks)
            except StopIteration as end:
                assert not held, "every document ends"
                return end.value
            *ended, last = [held + first, *others]
            # What follows an ASCII character does not change what is before it: that far the
            # document is decided.
            cut = max(len(last.rstrip(_NOT_ASCII)) - 1, 0)
            held = last[cut:]
            yield [*map(_nfc, ended), _nfc(last[:cut])]

    return read


def _nfc(piece: bytes) -> bytes:
    return piece if piece.isascii() else unicodedata.normalize("NFC", piece.decode()).encode()


def count_decomposed(pieces: Sequence[bytes]) -> int:
    """Return how many letters of valid UTF-8 are written in two parts and have one of their own.

    Of Latin, Greek and Cyrillic letters; one that is cut between two pieces is not counted.
    """
    # A search for one byte costs nothing beside tokenizing, and most text has none.
    split = [piece.split(_MARK) for piece in pieces if _MARK in piece]
    pairs = Counter(
        (before[-3:], after[:1]) for parts in split for before, after in itertools.pairwise(parts)
    )
    return sum(count for pair, count in pairs.items() if _is_decomposed(*pair))


@functools.lru_cache(maxsize=1 << 12)
def _is_decomposed(before: bytes, after: bytes) -> bool:
    """Return whether the last letter of `before` has a character of its own with this mark."""
    # The first bytes may be the end of another character; of a second mark on one letter they are
    # all that is there.
    letter, mark = before.decode(errors="ignore")[-1:], (_MARK + after).decode()
    return len(unicodedata.normalize("NFC", letter + mark)) < len(letter + mark)
