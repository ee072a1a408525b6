"""Text to tokens, as a stream: what a reader yields, encoded by a tokenizer, in constant memory.

Knows neither formats nor tokenizers by name, nothing of files on disk, manifests or batches, and
imports no JAX. Read `convert`.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import BinaryIO, cast

from spectral_dist.data.readers import BLOCK_BYTES, Blocks, Reader, ReaderFacts, read_txt
from spectral_dist.data.tokenizers import BYTES, Tokenizer

# A document of more bytes is encoded in pieces, whatever its tokenizer makes of the cuts.
_WHOLE_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class TextFacts(ReaderFacts):
    """What `convert` saw.

    Attributes:
      source_bytes: size of the text, in bytes.
      source_sha256: of the text, in hexadecimal.
      tokens: written.
    """

    source_bytes: int
    source_sha256: str
    tokens: int

    @property
    def exact(self) -> bool:
        """Whether `readers.write_txt` gives the source back byte by byte."""
        inner = self.documents - 1
        return self.nul_bytes + self.invalid_sequences == 0 and self.crlf_separators in {0, inner}


def convert(
    source: BinaryIO,
    write: Callable[[memoryview], object],
    *,
    reader: Reader = read_txt,
    tokenizer: Tokenizer = BYTES,
    progress: Callable[[int], None] = lambda done: None,
    block_bytes: int = BLOCK_BYTES,
) -> TextFacts:
    """Write the tokens of a text, reading it in blocks: constant memory, at the disk's speed.

    Args:
      source: the text, opened in binary mode at its start; it can be read again.
      write: takes the tokens, in order, as the bytes that a .bin holds.
      reader: of its format.
      tokenizer: of the tokens.
      progress: told the number of bytes read so far, once for each block.
      block_bytes: bytes read at a time.

    Raises:
      ValueError: if the text is empty or is not what the reader reads.
    """
    with _Watched(source, progress) as watched:
        stream = cast(BinaryIO, watched)
        blocks = _Returning(reader(stream, block_bytes))
        tokens = 0
        for pieces in blocks if tokenizer.joins else _whole_documents(blocks):
            encoded = tokenizer.encode_documents(pieces)
            write(encoded.data)
            tokens += len(encoded)
    if watched.bytes == 0:
        raise ValueError("is empty")
    return TextFacts(
        **asdict(blocks.facts),
        source_bytes=watched.bytes,
        source_sha256=watched.digest.hexdigest(),
        tokens=tokens,
    )


class _Returning:
    """A reader's blocks; after the last one, the facts that it returned."""

    facts: ReaderFacts

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def __iter__(self) -> Generator[list[bytes], None, None]:
        self.facts = yield from self._blocks


def _whole_documents(blocks: _Returning) -> Iterator[list[bytes]]:
    """Yield the same pieces, cut nowhere but between documents (or where one is very large)."""
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
    """A stream whose SHA-256 and progress are taken while it is read for the first time."""

    def __init__(self, source: BinaryIO, progress: Callable[[int], None]) -> None:
        self._source, self._progress = source, progress
        # SHA-256 leaves the interpreter lock, so that on a second core it costs nothing.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._hashed: Future[None] | None = None
        self._first = True
        self.digest = hashlib.sha256()
        self.bytes = 0

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def read(self, size: int) -> bytes:
        if not self._first:
            return self._source.read(size)
        if self.bytes:
            self._progress(self.bytes)
        block = self._source.read(size)
        if self._hashed is not None:
            self._hashed.result()
        self._first = bool(block)
        self.bytes += len(block)
        self._hashed = self._pool.submit(self.digest.update, block)
        return block

    def seek(self, offset: int) -> int:
        return self._source.seek(offset)
