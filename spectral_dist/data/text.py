"""Text to token bytes and back, as streams of blocks.

Owns the one rule of the format: a token is a UTF-8 byte, and byte 0 ends a document. A line that is
exactly `<|endoftext|>` becomes one byte 0, and so does the end of the text. Knows nothing of files
on disk, manifests or batches, and imports no JAX. Read `convert` first, then its inverse `to_text`.

The exact rules (docs/formats.md holds them for readers of the files):

- A separator is the line `<|endoftext|>` ended by a line feed, by carriage return and line feed, or
  by the end of the text. The line ending belongs to the separator; the one before it belongs to the
  document. The same words inside a longer line are ordinary text.
- The end of the text ends the last document; a text that ends with a separator gets no second 0.
- Consecutive separators stay: each one is a byte 0, so that the round trip is exact.
- NUL bytes and invalid UTF-8 cannot be tokens. Each becomes U+FFFD; how many, and the first line of
  them, is reported.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

SEPARATOR = b"<|endoftext|>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
# 1 MB stays in the cache of a core: 4 and 8 MB were not faster.
BLOCK_BYTES = 1 << 20
# The share of unreadable bytes in the first block above which the file is taken for binary.
BINARY_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """What `convert` saw; enough, with the tokens, to write the source again.

    Attributes:
      source_bytes: size of the text, in bytes.
      source_sha256: of the text, in hexadecimal.
      tokens: bytes written.
      documents: bytes 0 among them.
      nul_bytes: NUL bytes replaced by U+FFFD.
      invalid_sequences: invalid pieces of UTF-8 replaced by U+FFFD, one for each replacement.
      first_replaced_line: the line (from 1) of the first replacement, or None.
      crlf_separators: separators ended by carriage return and line feed, the last one aside.
      ending: the bytes of the source that the last byte 0 stands for: "" where the end of the text
        ended the document, else the separator with its line ending.
    """

    source_bytes: int
    source_sha256: str
    tokens: int
    documents: int
    nul_bytes: int
    invalid_sequences: int
    first_replaced_line: int | None
    crlf_separators: int
    ending: str

    @property
    def exact(self) -> bool:
        """Whether `to_text` gives the source back byte by byte."""
        inner = self.documents - 1
        return self.nul_bytes + self.invalid_sequences == 0 and self.crlf_separators in {0, inner}


def convert(
    source: BinaryIO,
    write: Callable[[bytes], object],
    *,
    progress: Callable[[int], None] = lambda done: None,
    block_bytes: int = BLOCK_BYTES,
) -> TextFacts:
    """Write the tokens of a text, reading it in blocks: constant memory, at the disk's speed.

    Args:
      source: the text, opened in binary mode at its start; it can be read again.
      write: takes the tokens, in order.
      progress: told the number of bytes read so far, once for each block.
      block_bytes: bytes read at a time.

    Raises:
      ValueError: if the text is empty or its first block does not look like text.
    """
    converter = _Converter(write)
    digest = hashlib.sha256()
    # SHA-256 leaves the interpreter lock, so that on a second core it costs nothing.
    with ThreadPoolExecutor(1, thread_name_prefix="sha256") as hasher:
        hashed = hasher.submit(lambda: None)
        carry = b""
        while block := source.read(block_bytes):
            hashed.result()
            hashed = hasher.submit(digest.update, block)
            if converter.source_bytes == 0:
                _check_is_text(block)
            converter.source_bytes += len(block)
            carry = converter.take(carry + block)
            progress(converter.source_bytes)
        hashed.result()
    if converter.source_bytes == 0:
        raise ValueError("is empty")
    ending = converter.finish(carry)
    replaced = converter.first_replaced
    return TextFacts(
        source_bytes=converter.source_bytes,
        source_sha256=digest.hexdigest(),
        tokens=converter.tokens,
        documents=converter.documents,
        nul_bytes=converter.nul_bytes,
        invalid_sequences=converter.invalid,
        first_replaced_line=None if replaced is None else _line_of(source, replaced),
        crlf_separators=converter.crlf,
        ending=ending,
    )


def to_text(tokens: bytes | np.ndarray, *, ending: str = "", crlf: bool = False) -> bytes:
    """Return the text whose tokens these are: the inverse of `convert`.

    Args:
      tokens: uint8 [n], or bytes.
      ending: what the last byte 0 stands for, as in `TextFacts`.
      crlf: whether separators end with carriage return and line feed.

    Returns:
      The text. A document in the middle that does not end its last line gets a line feed before
      its separator (converted texts never need one; generated tokens may).
    """
    data = tokens if isinstance(tokens, bytes) else tokens.tobytes()
    line = SEPARATOR + (b"\r\n" if crlf else b"\n")
    final = data.endswith(b"\0")
    *documents, last = (data[:-1] if final else data).split(b"\0")
    pieces = []
    for document in documents:
        pieces += (document, b"" if document.endswith(b"\n") or not document else b"\n", line)
    return b"".join([*pieces, last, ending.encode() if final else b""])


class _Converter:
    """The state of one conversion: what was counted, and whether a line starts here."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._at_line_start = True
        self._done = 0  # bytes of the source that were converted
        self._last = b"\n"  # the last token written, or a line feed before the first
        self._tail = b""  # the last bytes of the source, as long as the longest separator
        self.source_bytes = 0
        self.tokens = 0
        self.documents = 0
        self.crlf = 0
        self.nul_bytes = 0
        self.invalid = 0
        self.first_replaced: int | None = None  # where it stands in the source

    def take(self, block: bytes) -> bytes:
        """Convert as much of the block as can be decided; return the rest, for the next block."""
        cut = block.rfind(b"\n") + 1
        if cut == 0:
            # A line longer than the block. It may still turn out a separator if it is short.
            if self._at_line_start and len(block) <= len(SEPARATOR) + 1:
                return block
            cut = _character_cut(block)
        self._put(block[:cut])
        return block[cut:]

    def finish(self, rest: bytes) -> str:
        """Convert the rest and end the last document; return what its byte 0 stands for."""
        ending = ""
        if rest == SEPARATOR and self._at_line_start:
            ending = rest.decode()
            self._emit(b"\0", documents=1)
        else:
            self._put(rest)
            if self._last == b"\0":
                crlf = self._tail.endswith(b"\r\n")
                self.crlf -= crlf
                ending = SEPARATOR.decode() + ("\r\n" if crlf else "\n")
            else:
                self._emit(b"\0", documents=1)
        return ending

    def _put(self, block: bytes) -> None:
        """Convert a block that ends between two characters, and after a line if it holds one."""
        if not block:
            return
        self._tail = (self._tail + block[-2:])[-2:]
        clean = self._clean(block)
        started = self._at_line_start
        self._at_line_start = block.endswith(b"\n")
        tokens, plain, crlf = _replace_separators(clean, started)
        self.crlf += crlf
        self._emit(tokens, documents=plain + crlf)

    def _emit(self, tokens: bytes, documents: int) -> None:
        self._write(tokens)
        self.tokens += len(tokens)
        self.documents += documents
        self._last = tokens[-1:]

    def _clean(self, block: bytes) -> bytes:
        """Return the block with NUL bytes and invalid UTF-8 replaced by U+FFFD, and count them."""
        original = block
        if b"\0" in block:
            self.nul_bytes += block.count(b"\0")
            block = block.replace(b"\0", REPLACEMENT)
        try:
            block.decode()
        except UnicodeDecodeError:
            # U+FFFD that the text itself holds is not a replacement.
            own = block.count(REPLACEMENT)
            block = block.decode(errors="replace").encode()
            self.invalid += block.count(REPLACEMENT) - own
        if block is not original and self.first_replaced is None:
            self.first_replaced = self._done + _first_difference(original, block)
        self._done += len(original)
        return block


def _replace_separators(block: bytes, at_line_start: bool) -> tuple[bytes, int, int]:
    """Replace the separator lines of a block without byte 0 by byte 0.

    Returns:
      The tokens; how many separators ended with a line feed; how many with CR and LF.
    """
    first, *parts = block.split(SEPARATOR)
    if not parts:
        return block, 0, 0
    pieces = [first]
    lines = {b"\n": 0, b"\r\n": 0}
    # What stands before each separator: a line starts after a line feed or another separator.
    starts_line = first.endswith(b"\n") or (at_line_start and not first)
    for part in parts:
        end = b"\n" if part.startswith(b"\n") else b"\r\n"
        if starts_line and part.startswith(end):
            lines[end] += 1
            rest = part[len(end) :]
            pieces += (b"\0", rest)
            starts_line = not rest or rest.endswith(b"\n")
        else:
            pieces += (SEPARATOR, part)
            starts_line = part.endswith(b"\n")
    return b"".join(pieces), lines[b"\n"], lines[b"\r\n"]


def _character_cut(block: bytes) -> int:
    """Return where to cut a block so that both sides decode as they would together.

    Before any byte that is not a continuation byte both sides do. Where the last four bytes all
    continue, the last one belongs to no character.
    """
    for back in range(1, min(4, len(block)) + 1):
        if block[-back] & 0xC0 != 0x80:
            return len(block) - back
    return max(len(block) - 1, 0)


def _line_of(source: BinaryIO, offset: int) -> int:
    """Return the line, from 1, that the byte at `offset` stands in; reads the text again so far.

    Counting the lines of every text on the way, for the few that need it, would cost a tenth.
    """
    source.seek(0)
    line = 1
    while offset > 0 and (block := source.read(min(offset, BLOCK_BYTES))):
        line += block.count(b"\n")
        offset -= len(block)
    return line


def _first_difference(left: bytes, right: bytes) -> int:
    """Return the first index where two different byte strings differ."""
    size = min(len(left), len(right))
    differ = np.frombuffer(left, np.uint8, size) != np.frombuffer(right, np.uint8, size)
    return int(differ.argmax()) if differ.any() else size


def _check_is_text(block: bytes) -> None:
    """Raise ValueError if a text's first block holds too many NUL or invalid bytes."""
    nul_bytes = block.count(b"\0")
    text = block.decode(errors="ignore").encode()
    bad = nul_bytes + len(block) - len(text)
    # The end of the block may cut a character: up to three bytes of it are not a fault.
    if bad - 3 > BINARY_SHARE * len(block):
        raise ValueError(
            f"does not look like text: {bad / len(block):.0%} of its first {len(block):,} bytes are"
            " NUL or not UTF-8; convert it to UTF-8 text first"
        )
