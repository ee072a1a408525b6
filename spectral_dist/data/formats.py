"""File formats: how a file of a dataset is unpacked, and which reader reads it.

The name says it, `x.jsonl.zst`, unless the setting `format` does; a file that looks like another
format than its name is an error with a remedy, never swallowed. To add a format: a reader in
`readers` or `records`, one line in `READERS`, one in `ENDINGS`. Knows nothing of tokens and imports
no JAX. Read `Format`, then `find_format`.
"""

import bz2
import contextlib
import dataclasses
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import BinaryIO, cast

from spectral_dist.data.encodings import looks_like
from spectral_dist.data.normalization import composed
from spectral_dist.data.readers import Reader, read_txt
from spectral_dist.data.records import read_arrow, read_jsonl, read_parquet

TEXT_FIELD = "text"
# The last ending of a name -> how it is unpacked.
PACKINGS = {"gz": "gzip", "zst": "zstd", "zstd": "zstd", "bz2": "bz2", "xz": "xz"}
# The ending before that -> the format. Any other ending is plain text: x.md, x.py, x.csv.
ENDINGS = {
    "txt": "txt",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "parquet": "parquet",
    "arrow": "arrow",
    "feather": "arrow",
}
# Each is given the field of a record that holds the text.
READERS: dict[str, Callable[[str], Reader]] = {
    "txt": lambda field: read_txt,
    "jsonl": lambda field: partial(read_jsonl, field=field),
    "parquet": lambda field: partial(read_parquet, field=field),
    "arrow": lambda field: partial(read_arrow, field=field),
}
# Their readers go back and forth in a file, so it must not be packed.
_SEEKING = ("parquet", "arrow")
SAMPLE_BYTES = 1 << 16  # of a file's beginning, to see what it is


@dataclass(frozen=True)
class Format:
    """The format of a file.

    Attributes:
      kind: of its content, a name in `READERS`.
      packing: a value of `PACKINGS`, or "" for a file that is not packed.
      field: of a record, that holds the text; unused for txt.
      given: whether the user said the format, and not the file's name.
      normalize: "nfc" for letters in Unicode's composed form, or "none" for the text as it is.
    """

    kind: str = "txt"
    packing: str = ""
    field: str = TEXT_FIELD
    given: bool = dataclasses.field(default=False, compare=False)
    normalize: str = "none"

    @property
    def seeks(self) -> bool:
        """Whether its reader goes back and forth in the file."""
        return self.kind in _SEEKING

    @property
    def reader(self) -> Reader:
        """The reader of the unpacked file."""
        reader = READERS[self.kind](self.field)
        return composed(reader) if self.normalize == "nfc" else reader

    def check(self, head: bytes) -> None:
        """Raise ValueError if a file's first bytes, unpacked, look like another format.

        Plain text may look like JSON if the user said himself that it is text.

        Args:
          head: the first bytes, some kilobytes.
        """
        head = head.removeprefix(b"\xef\xbb\xbf")  # the mark that Windows puts in front
        packed = next((ending for ending, magic in _MAGIC.items() if head.startswith(magic)), "")
        if packed == "parquet":
            if self.kind != "parquet":
                raise ValueError("is a Parquet file; its name must end in .parquet")
        elif packed == "arrow":
            if self.kind != "arrow":
                raise ValueError("is an Arrow file; its name must end in .arrow")
        elif packed:
            raise ValueError(f"is packed by {PACKINGS[packed]}; its name must end in .{packed}")
        elif self.kind == "parquet":
            raise ValueError("is no Parquet file, whatever its name says")
        elif self.kind == "txt" and not self.given and _is_json_lines(head):
            raise ValueError(
                "looks like JSON, a record a line: with the ending .jsonl, or format: jsonl in a"
                " settings file, the field text of each is a document; format: txt takes the lines"
                " as they are"
            )
        elif self.kind == "jsonl" and not head.lstrip().startswith(b"{"):
            if head.lstrip().startswith(b"["):
                raise ValueError(
                    "is one JSON array, and a record a line is wanted; jq -c '.[]' writes that"
                )
            guess = looks_like(head)
            raise ValueError(
                f"is no JSON lines: it begins with {head[:20]!r}{f'; {guess}' if guess else ''}"
            )


TXT = Format()
_MAGIC = {
    "parquet": b"PAR1",
    "arrow": b"ARROW1",
    "gz": b"\x1f\x8b",
    "zst": b"\x28\xb5\x2f\xfd",
    "bz2": b"BZh",
    "xz": b"\xfd7zXZ\0",
}


def find_format(
    path: PurePath, kind: str = "auto", field: str = TEXT_FIELD, normalize: str = "none"
) -> Format:
    """Return the format of a file, by its name unless `kind` says it.

    Args:
      path: its path or URL.
      kind: a name in `READERS`, or "auto".
      field: of a record, that holds the text.
      normalize: as in `Format`.

    Raises:
      ValueError: if a format that must not be packed is.
    """
    endings = [suffix.lower().removeprefix(".") for suffix in path.suffixes]
    packing = PACKINGS.get(endings[-1], "") if endings else ""
    if packing:
        endings.pop()
    given = kind != "auto"
    if not given:
        kind = ENDINGS.get(endings[-1], "txt") if endings else "txt"
    if packing and kind in _SEEKING:
        raise ValueError(f"is packed by {packing}: unpack it; {kind} is packed inside already")
    return Format(kind, packing, TEXT_FIELD if kind == "txt" else field, given, normalize)


@contextlib.contextmanager
def unpacked(stream: BinaryIO, packing: str) -> Iterator[BinaryIO]:
    """Open a packed stream for reading what it holds; it can seek to its start.

    Args:
      stream: the packed file, at its start.
      packing: a value of `PACKINGS`, or "".

    Reading raises ValueError where the file is damaged or ends too early.
    """
    yield cast(BinaryIO, _Unpacked(stream, packing)) if packing else stream


class _Unpacked:
    """What a packed stream holds."""

    def __init__(self, source: BinaryIO, packing: str) -> None:
        self._source, self._packing = source, packing
        self._at = 0
        self._open()

    def _open(self) -> None:
        match self._packing:
            case "gzip":
                self._stream = gzip.GzipFile(fileobj=self._source)
            case "bz2":
                self._stream = bz2.BZ2File(self._source)
            case "xz":
                self._stream = lzma.LZMAFile(self._source)  # noqa: SIM115 (the caller's file)
            case _:
                import pyarrow  # takes a quarter of a second to load

                # The package zstandard takes a file that was cut short for a whole one.
                file = pyarrow.PythonFile(_Kept(self._source), mode="r")
                self._stream = pyarrow.CompressedInputStream(file, "zstd")
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        try:
            block = self._stream.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk, and not of what is on it
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"cannot be unpacked by {self._packing}: {reason}") from error
        self._at += len(block)
        return block

    def seek(self, offset: int) -> int:
        self._source.seek(0)
        self._open()
        while self._at < offset and self.read(min(offset - self._at, 1 << 20)):
            pass
        return self._at


class _Kept:
    """A stream that its reader cannot close: Arrow closes what it reads when it is done."""

    closed = False

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        return self._source.read(size)

    def close(self) -> None:
        """Do nothing."""


def head_of(stream: BinaryIO, packing: str) -> bytes:
    """Return the first bytes of what a stream holds, unpacked; the stream is at its start again."""
    with unpacked(stream, packing) as content:
        head = content.read(SAMPLE_BYTES)
    stream.seek(0)
    return head


def _is_json_lines(head: bytes) -> bool:
    """Return whether the first two lines are JSON objects."""
    lines = [line for line in head.splitlines()[:2] if line.strip()]
    if not lines or not all(line.lstrip().startswith(b"{") for line in lines):
        return False
    try:
        return all(isinstance(json.loads(line), dict) for line in lines)
    except ValueError:
        return False
