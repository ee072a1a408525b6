"""Tokenizing a text file as a stream: a reader's blocks, encoded by a tokenizer.

Memory is constant, whatever the size of the text file. Knows neither formats nor tokenizers by
name, nothing of paths, manifests or batches, and imports no JAX. Read `convert`.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import BinaryIO, cast

from spectral_dist.data.formats import TXT, Format, unpacked
from spectral_dist.data.normalization import count_decomposed
from spectral_dist.data.readers import BLOCK_BYTES, Blocks, ReaderFacts
from spectral_dist.data.tokenizers import BYTES, Tokenizer

# A larger document is encoded in pieces, even if the tokenizer does not join: memory is limited,
# and a few tokens at the cuts do not matter.
_WHOLE_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class TextFacts(ReaderFacts):
    """Facts about a text file that was tokenized.

    Attributes:
      source_bytes: size of the text file, in bytes.
      source_sha256: of the text file, in hexadecimal.
      tokens: number of tokens written.
      decomposed: letters written in two parts that have one of their own (`count_decomposed`).
    """

    source_bytes: int
    source_sha256: str
    tokens: int
    decomposed: int = 0

    @property
    def exact(self) -> bool:
        """Whether `readers.write_txt` gives the text file back byte by byte."""
        # Not of records, nor where bytes were replaced, or separators have line endings of both
        # kinds.
        inner = self.documents - 1
        return self.nul_bytes + self.invalid_sequences == 0 and self.crlf_separators in {0, inner}


def convert(
    source: BinaryIO,
    write: Callable[[memoryview], object],
    *,
    form: Format = TXT,
    tokenizer: Tokenizer = BYTES,
    progress: Callable[[int], None] = lambda done: None,
    block_bytes: int = BLOCK_BYTES,
) -> TextFacts:
    """Tokenize a text file in blocks, in constant memory.

    Args:
      source: the file, opened in binary mode at its start; a stream that can seek.
      write: takes the tokens, in order, as the bytes that a .bin holds.
      form: its format.
      tokenizer: of the tokens.
      progress: called with the number of bytes read so far, once for each block.
      block_bytes: bytes read at a time.

    Raises:
      ValueError: if the file holds no byte, or is not in this format.
    """
    with (
        _Watched(source, progress) as watched,
        unpacked(cast(BinaryIO, watched), form.packing) as stream,
    ):
        if form.seeks:
            # Its bytes are not read in their order: they are hashed first. That is a tenth of the
            # time, and the file is in the system's cache afterwards.
            while watched.read(block_bytes):
                pass
            watched.seek(0)
        blocks = _Returning(form.reader(stream, block_bytes))
        tokens = decomposed = 0
        # A tokenizer that joins takes the blocks as they come. Any other needs whole documents, or
        # the tokens would depend on where the blocks happen to end.
        for pieces in blocks if tokenizer.joins else _whole_documents(blocks):
            decomposed += count_decomposed(pieces)
            encoded = tokenizer.encode_documents(pieces)
            write(encoded.data)
            tokens += len(encoded)
        # What follows the last packed block is part of the file's hash as well.
        while watched.first_pass and watched.read(block_bytes):
            pass
    if watched.bytes == 0:
        raise ValueError("is empty")
    return TextFacts(
        **asdict(blocks.facts),
        source_bytes=watched.bytes,
        source_sha256=watched.digest.hexdigest(),
        tokens=tokens,
        decomposed=decomposed,
    )


class _Returning:
    """Iterates over a reader's blocks, and keeps the facts that the reader returns at its end."""

    facts: ReaderFacts

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def __iter__(self) -> Generator[list[bytes], None, None]:
        self.facts = yield from self._blocks


def _whole_documents(blocks: _Returning) -> Iterator[list[bytes]]:
    """Regroup a reader's pieces so that no document is cut, except a very large one."""
    open_piece: list[bytes] = []
    size = 0
    for first, *others in blocks:
        open_piece.append(first)
        size += len(first)
        if others or size > _WHOLE_BYTES:
            ended = [*others[:-1], b""] if others else []
            yield [b"".join(open_piece), *ended]
            open_piece = others[-1:]
            size = sum(map(len, open_piece))
    if size:
        yield [b"".join(open_piece)]


class _Watched:
    """A stream that computes its SHA-256 and reports progress while it is read."""

    def __init__(self, source: BinaryIO, progress: Callable[[int], None]) -> None:
        self._source, self._progress = source, progress
        # SHA-256 releases the interpreter lock: in a thread, on a second core, it costs no time.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._hashed: Future[None] | None = None
        self.first_pass = True
        self.digest = hashlib.sha256()
        self.bytes = 0

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def read(self, size: int = -1) -> bytes:
        # Readers may seek back and read again; those bytes must not be hashed twice.
        if not self.first_pass:
            return self._source.read(size)
        if self.bytes:
            self._progress(self.bytes)
        block = self._source.read(size)
        if self._hashed is not None:
            self._hashed.result()  # one block at a time, so that memory stays constant
        self.first_pass = bool(block)
        self.bytes += len(block)
        self._hashed = self._pool.submit(self.digest.update, block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self._source.closed

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""
