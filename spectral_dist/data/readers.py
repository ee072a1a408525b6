"""The reader of plain text, and what every reader gives: from a file to its documents.

A reader takes a binary stream and yields its text in blocks, in constant memory. A block is a list
of pieces. The first piece continues the document that the last block left open, and between two
pieces a document ends. Every document ends, so the last piece of the last block is empty. A reader
returns `ReaderFacts`. Readers of other formats: records.py; which one reads a file: formats.py.

The rules of plain text (docs/formats.md holds them, too):

- A separator is the line `<|endoftext|>` ended by a line feed, by carriage return and line feed, or
  by the end of the text. The line ending belongs to the separator; the one before it belongs to the
  document. The same words inside a longer line are ordinary text.
- The end of the text ends the last document, unless the text ends with a separator.
- Each of several separators in a row ends a document, an empty one, so that the round trip is
  exact.
- The words of a separator inside a longer line, a blank after them included, are counted, with the
  first line: they may be meant as a separator, and the model would learn them.
- NUL bytes and invalid UTF-8 are replaced by U+FFFD; their number and the first line are reported.

Knows nothing of tokens and imports no JAX. Read `read_txt` first, then its inverse `write_txt`.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from spectral_dist.data.encodings import looks_like

SEPARATOR = b"<|endoftext|>"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
# 1 MB stays in the cache of a core; 4 and 8 MB were not faster.
BLOCK_BYTES = 1 << 20
# A file with more than this share of NUL and invalid bytes in its first block is taken for binary.
BINARY_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class ReaderFacts:
    """Facts about a text file: with the documents, enough to write the file again byte by byte.

    Attributes:
      documents: number of documents.
      nul_bytes: NUL bytes replaced by U+FFFD.
      invalid_sequences: invalid pieces of UTF-8 replaced by U+FFFD, one for each replacement.
      first_replaced_line: the line or record (from 1) of the first replacement, or None.
      near_separators: separators that are not a line of their own, and so are ordinary text.
      first_near_line: the line (from 1) of the first of them, or None.
      crlf_separators: separators ended by carriage return and line feed, the last one aside.
      ending: how the last document ends: "" at the end of the text, else the separator with its
        line ending.
      records_without_text: records whose text is null, which are left out.
    """

    documents: int
    nul_bytes: int = 0
    invalid_sequences: int = 0
    first_replaced_line: int | None = None
    near_separators: int = 0
    first_near_line: int | None = None
    crlf_separators: int = 0
    ending: str = ""
    records_without_text: int = 0


Blocks = Generator[list[bytes], None, ReaderFacts]
Reader = Callable[[BinaryIO, int], Blocks]


def read_txt(source: BinaryIO, block_bytes: int) -> Blocks:
    """Read plain text with separator lines.

    Args:
      source: a stream at its start, which can seek.
      block_bytes: bytes read at a time.

    Raises:
      ValueError: if the first block does not look like text.
    """
    text = _PlainText()
    carry = b""  # the end of a block that cannot be decided yet: half a line or half a character
    first = True
    while block := source.read(block_bytes):
        if first:
            _check_is_text(block)
        first = False
        rest = text.take(carry + block)
        yield from text.drain()
        carry = rest
    ending = text.finish(carry)
    yield from text.drain()
    replaced, near = text.first_replaced, text.first_near
    return ReaderFacts(
        documents=text.documents,
        nul_bytes=text.nul_bytes,
        invalid_sequences=text.invalid,
        first_replaced_line=None if replaced is None else _line_of(source, replaced),
        near_separators=text.near,
        first_near_line=None if near is None else _line_of(source, near[0]) + near[1],
        crlf_separators=text.crlf,
        ending=ending,
    )


def write_txt(pieces: Sequence[bytes], *, ending: str = "", crlf: bool = False) -> bytes:
    """Return the text that holds these documents: the inverse of `read_txt`.

    Args:
      pieces: as in one block of a reader: the last one is an open document, usually empty.
      ending: how the last document ends, as in `ReaderFacts`.
      crlf: whether separators end with carriage return and line feed.

    Returns:
      The text. A document in the middle that does not end its last line gets a line feed before
      its separator (texts that were read never need one; generated ones may).
    """
    line = SEPARATOR + (b"\r\n" if crlf else b"\n")
    final = len(pieces) > 1 and not pieces[-1]
    *documents, last = pieces[:-1] if final else pieces
    written = []
    for document in documents:
        written += (document, b"" if document.endswith(b"\n") or not document else b"\n", line)
    return b"".join([*written, last, ending.encode() if final else b""])


class _PlainText:
    """The state of reading one plain text file: counts, and whether a line starts here."""

    def __init__(self) -> None:
        self._at_line_start = True
        self._done = 0  # bytes of the file that were read and yielded
        self._ended = False  # whether a document has just ended
        self._tail = b""  # the last two bytes of the file: as long as the longest line ending
        self._blocks: list[list[bytes]] = []
        self.documents = 0
        self.crlf = 0
        self.nul_bytes = 0
        self.invalid = 0
        self.first_replaced: int | None = None  # its offset in the file, in bytes
        self.near = 0
        # A block's offset in the file, and the lines of it before the first near separator.
        self.first_near: tuple[int, int] | None = None

    def take(self, block: bytes) -> bytes:
        """Read as much of the block as can be decided; return the rest, for the next block."""
        # Up to the last line feed: whole lines hold whole separators and whole characters.
        cut = block.rfind(b"\n") + 1
        if cut == 0:
            # No line feed. If it is this short, it may still become a separator.
            if self._at_line_start and len(block) <= len(SEPARATOR) + 1:
                return block
            cut = _character_cut(block)
        self._put(block[:cut])
        return block[cut:]

    def finish(self, rest: bytes) -> str:
        """Read the rest and end the last document; return its `ReaderFacts.ending`."""
        if rest == SEPARATOR and self._at_line_start:
            self._give([b"", b""])
            return rest.decode()
        self._put(rest)
        if self._ended:
            crlf = self._tail.endswith(b"\r\n")
            self.crlf -= crlf  # `crlf_separators` leaves the last one aside: `ending` has it
            return SEPARATOR.decode() + ("\r\n" if crlf else "\n")
        self._give([b"", b""])
        return ""

    def drain(self) -> list[list[bytes]]:
        """Return the finished blocks, each once."""
        blocks, self._blocks = self._blocks, []
        return blocks

    def _put(self, block: bytes) -> None:
        """Read a block that cuts no character, and no line if it holds a whole one."""
        if not block:
            return
        self._tail = (self._tail + block[-2:])[-2:]
        offset, clean = self._done, self._clean(block)
        started = self._at_line_start
        self._at_line_start = block.endswith(b"\n")
        pieces, crlf, near = _split_documents(clean, started)
        self.crlf += crlf
        if near and self.first_near is None:
            self.first_near = offset, clean.count(b"\n", 0, near[0])
        self.near += len(near)
        self._give(pieces)

    def _give(self, pieces: list[bytes]) -> None:
        self._blocks.append(pieces)
        self.documents += len(pieces) - 1
        self._ended = not pieces[-1] and (len(pieces) > 1 or self._ended)

    def _clean(self, block: bytes) -> bytes:
        """Return the block with NUL bytes and invalid UTF-8 replaced by U+FFFD, and count them."""
        original = block
        if b"\0" in block:
            self.nul_bytes += block.count(b"\0")
            block = block.replace(b"\0", REPLACEMENT)
        try:
            # The whole block at once: the strict decoder is fast, and most text passes.
            block.decode()
        except UnicodeDecodeError:
            # The text itself may hold U+FFFD, which is valid and not counted.
            own = block.count(REPLACEMENT)
            block = block.decode(errors="replace").encode()
            self.invalid += block.count(REPLACEMENT) - own
        if block is not original and self.first_replaced is None:
            self.first_replaced = self._done + _first_difference(original, block)
        self._done += len(original)
        return block


def _split_documents(block: bytes, at_line_start: bool) -> tuple[list[bytes], int, list[int]]:
    """Split a block at its separator lines.

    Returns:
      The pieces; how many separators ended with carriage return and line feed; where those begin
      that are no line of their own.
    """
    first, *parts = block.split(SEPARATOR)
    pieces: list[bytes] = []
    open_piece, crlf = [first], 0
    near: list[int] = []
    position = len(first)
    # A separator must stand at the start of a line: after a line feed or another separator.
    starts_line = first.endswith(b"\n") or (at_line_start and not first)
    for part in parts:
        end = b"\n" if part.startswith(b"\n") else b"\r\n"
        if starts_line and part.startswith(end):
            crlf += len(end) - 1
            rest = part[len(end) :]
            pieces.append(b"".join(open_piece))
            open_piece = [rest]
            starts_line = not rest or rest.endswith(b"\n")
        else:
            open_piece += (SEPARATOR, part)  # inside a longer line: ordinary text
            starts_line = part.endswith(b"\n")
            near.append(position)
        position += len(SEPARATOR) + len(part)
    # Without a separator this is the block itself, not a copy.
    pieces.append(open_piece[0] if len(open_piece) == 1 else b"".join(open_piece))
    return pieces, crlf, near


def _character_cut(block: bytes) -> int:
    """Return where to cut a block so that no UTF-8 character is cut."""
    # Before a byte that is no continuation byte. A character has at most three of those: if the
    # last four bytes all continue, the last one belongs to no character, and the cut is before it.
    for back in range(1, min(4, len(block)) + 1):
        if block[-back] & 0xC0 != 0x80:
            return len(block) - back
    return max(len(block) - 1, 0)


def _line_of(source: BinaryIO, offset: int) -> int:
    """Return the number, from 1, of the line that holds the byte at `offset`."""
    # Reads the file again. Counting the lines of every file on the way would cost a tenth of the
    # time, and few files have anything replaced.
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
    """Raise ValueError if the first block of a file holds too many NUL or invalid bytes."""
    nul_bytes = block.count(b"\0")
    text = block.decode(errors="ignore").encode()
    bad = nul_bytes + len(block) - len(text)
    # The end of the block may cut a character: up to three bytes that are not wrong.
    if bad - 3 > BINARY_SHARE * len(block):
        guess = looks_like(block)
        remedy = f"it looks like {guess}" if guess else "convert it to UTF-8 text first"
        raise ValueError(
            f"does not look like text: {bad / len(block):.0%} of its first {len(block):,} bytes are"
            f" NUL or not UTF-8; {remedy}"
        )
