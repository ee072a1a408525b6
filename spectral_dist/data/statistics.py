"""Statistics of a dataset's tokens, and samples of what a model will see of it.

One pass over the text; some two hundred bytes of memory for each document. Imports no JAX. Read
`describe` and `samples`.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spectral_dist.data.readers import SEPARATOR
from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokenizers import Tokenizer
from spectral_dist.data.tokens import TokenFile

# Letters of Turkish that English does not have, as they are written in UTF-8.
_TURKISH = [letter.encode() for letter in "çğıöşüÇĞİÖŞÜ"]
_BLOCK = 1 << 24  # tokens decoded at a time
# Lines of so many bytes are compared, one of so many, chosen by what they say: short ones come
# again by themselves, and all lines of a large text would not fit in memory.
_LINE_BYTES, _LINES = 32, 16


@dataclass(frozen=True)
class Statistics:
    """Statistics of one dataset.

    Attributes:
      name: of the dataset.
      bytes: of text, without what ends the documents.
      documents: number of documents, empty ones included.
      empty: documents without a byte.
      median, longest: length of a document, in bytes.
      duplicates: documents that are byte for byte like an earlier one.
      duplicate_bytes: of text in these.
      repeated_lines: of the lines of 32 bytes and more, the share that is like an earlier one, by a
        sample of one in 16.
      turkish_letters: of 1,000 characters, those that are letters of Turkish and not of English.
      replacements: of 1,000,000 characters, those that are U+FFFD.
    """

    name: str
    bytes: int
    documents: int
    empty: int
    median: int
    longest: int
    duplicates: int
    duplicate_bytes: int
    repeated_lines: float
    turkish_letters: float
    replacements: float


def describe(file: TokenFile) -> Statistics:
    """Return the statistics of a dataset: one pass over its tokens."""
    lengths: list[int] = []
    seen: set[bytes] = set()
    lines = _Lines()
    characters = turkish = replaced = duplicates = duplicate_bytes = 0
    for document in documents(file.tokens, file.tokenizer):
        lengths.append(len(document))
        # 128 bits: among 10**12 documents, two that differ are alike with a chance of 10**-15.
        digest = hashlib.blake2b(document, digest_size=16).digest()
        if document and digest in seen:
            duplicates += 1
            duplicate_bytes += len(document)
        seen.add(digest)
        lines.count(document)
        # A character begins with a byte that does not continue one.
        bytes_of = np.frombuffer(document, np.uint8)
        characters += int(np.count_nonzero((bytes_of & 0xC0) != 0x80))
        turkish += sum(map(document.count, _TURKISH))
        replaced += document.count("\N{REPLACEMENT CHARACTER}".encode())
    sizes = np.array(lengths or [0])
    return Statistics(
        name=file.name,
        bytes=int(sizes.sum()),
        documents=len(lengths),
        empty=int(np.count_nonzero(sizes == 0)) if lengths else 0,
        median=int(np.median(sizes)),
        longest=int(sizes.max()),
        duplicates=duplicates,
        duplicate_bytes=duplicate_bytes,
        repeated_lines=lines.repeated / max(lines.counted, 1),
        turkish_letters=1e3 * turkish / max(characters, 1),
        replacements=1e6 * replaced / max(characters, 1),
    )


class _Lines:
    """Counts the lines of a sample that are like an earlier one."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.counted = self.repeated = 0

    def count(self, document: bytes) -> None:
        for line in document.split(b"\n"):
            # The cheap sum chooses, the same lines each time; the other one tells them apart.
            if len(line) < _LINE_BYTES or zlib.crc32(line) % _LINES:
                continue
            digest = hashlib.blake2b(line, digest_size=8).digest()
            self.counted += 1
            self.repeated += digest in self._seen
            self._seen.add(digest)


def documents(tokens: Tokens, tokenizer: Tokenizer) -> Iterator[bytes]:
    """Yield the documents of some tokens, decoded; whole ones only, whatever their size."""
    rest = np.empty(0, tokens.dtype)
    for at in range(0, len(tokens), _BLOCK):
        block = np.concatenate([rest, tokens[at : at + _BLOCK]])
        ends = np.flatnonzero(block == tokenizer.end)
        if not len(ends):
            rest = block
            continue
        yield from tokenizer.decode_documents(block[: ends[-1]])
        rest = block[ends[-1] + 1 :]
    if len(rest):
        yield tokenizer.decode(rest)


def samples(file: TokenFile, count: int, length: int) -> list[str]:
    """Return pieces of a dataset as a model sees them, evenly spread over its training part.

    Args:
      file: the dataset.
      count: pieces wanted.
      length: of a piece, in tokens.

    Returns:
      Texts in which the end of a document is marked by its separator; a piece may begin and end
      inside a character, which is shown as U+FFFD.
    """
    tokens = file.train
    length = min(length, len(tokens))
    room = len(tokens) - length
    mark = SEPARATOR.decode()
    found = []
    for number in range(count):
        start = room * number // max(count - 1, 1)
        pieces = file.tokenizer.decode_documents(tokens[start : start + length])
        found.append(mark.join(piece.decode(errors="replace") for piece in pieces))
    return found
