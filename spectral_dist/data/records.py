"""Readers of records: JSON lines, Parquet and Arrow, of which one field holds a document's text.

They yield what every reader yields (readers.py), whole documents, in constant memory but for the
largest document and, in Parquet, one column of a row group. Imports no JAX, and Arrow only where a
file needs it. Read `read_jsonl` and `_Documents`.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from spectral_dist.data.readers import REPLACEMENT, Blocks, ReaderFacts

_SHOWN_FIELDS = 12
_ROWS = 1024  # of Parquet read at a time
_LONGEST_LINE = 1 << 30


class _Documents:
    """Documents on their way: NUL and invalid UTF-8 are replaced and counted."""

    def __init__(self) -> None:
        self.documents = self.nul_bytes = self.invalid = self.without_text = 0
        self.first_replaced: int | None = None  # a record, from 1

    def block(self, documents: list[bytes], numbers: Sequence[int]) -> list[bytes]:
        """Return a reader's block of whole documents.

        Args:
          documents: their texts.
          numbers: of their lines or records, from 1, for the message.
        """
        joined = b"".join(documents)
        try:
            joined.decode()
            clean = b"\0" not in joined
        except UnicodeDecodeError:
            clean = False
        if not clean:
            documents = list(map(self._clean, documents, numbers))
        self.documents += len(documents)
        return [*documents, b""]

    def _clean(self, text: bytes, number: int) -> bytes:
        nul = text.count(b"\0")
        replaced = text.replace(b"\0", REPLACEMENT)
        own = replaced.count(REPLACEMENT)
        replaced = replaced.decode(errors="replace").encode()
        invalid = replaced.count(REPLACEMENT) - own
        self.nul_bytes += nul
        self.invalid += invalid
        if (nul or invalid) and self.first_replaced is None:
            self.first_replaced = number
        return replaced

    def facts(self) -> ReaderFacts:
        return ReaderFacts(
            documents=self.documents,
            nul_bytes=self.nul_bytes,
            invalid_sequences=self.invalid,
            first_replaced_line=self.first_replaced,
            records_without_text=self.without_text,
        )


def read_jsonl(source: BinaryIO, block_bytes: int, field: str) -> Blocks:
    """Read JSON lines: a record a line, of which one field is a document.

    Blank lines are skipped, and so are records whose field is null, which are counted.

    Args:
      source: a stream at its start.
      block_bytes: bytes read at a time.
      field: that holds the text.

    Raises:
      ValueError: names the line that is no JSON object, or whose field is missing or no text.
    """
    import orjson

    documents = _Documents()
    number = 0
    for lines in _lines(source, block_bytes):
        texts: list[bytes] = []
        numbers: list[int] = []
        for line in lines:
            number += 1
            if not line or line.isspace():
                continue
            try:
                text = orjson.loads(line)[field]
            except (ValueError, KeyError, TypeError):
                text = _slowly(line, field, number)
            if isinstance(text, str):
                # A lone surrogate, such as U+D800, is no character: it is counted as invalid.
                texts.append(text.encode(errors="surrogatepass"))
                numbers.append(number)
            elif text is None:
                documents.without_text += 1
            else:
                kind = type(text).__name__
                raise ValueError(f"line {number:,}: field {field!r} is of type {kind}, not text")
        yield documents.block(texts, numbers)
    return documents.facts()


def _lines(source: BinaryIO, block_bytes: int) -> Iterator[list[bytes]]:
    """Yield the lines of a stream in blocks, without their line feeds."""
    rest = b""
    while block := source.read(block_bytes):
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise ValueError("has a line of more than a gibibyte: is it one JSON value?")
        yield lines
    if rest:
        yield [rest]


def _slowly(line: bytes, field: str, number: int) -> Any:
    """Return a field of a line that the fast parser refused, or say what is wrong with it."""
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise ValueError(f"line {number:,}: is no JSON ({reason}): {line[:40]!r}") from error
    if not isinstance(record, dict):
        raise ValueError(f"line {number:,}: is no record but a {type(record).__name__}")
    if field not in record:
        raise ValueError(f"line {number:,}: {_missing(field, record)}")
    return record[field]


def read_parquet(source: BinaryIO, block_bytes: int, field: str) -> Blocks:
    """Read a Parquet file: a row is a record.

    Args:
      source: the file, which can seek.
      block_bytes: unused; a block is some rows.
      field: the column that holds the text.

    Raises:
      ValueError: if the file is damaged, or the column is missing or no text.
    """
    import pyarrow
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        file = parquet.ParquetFile(source)
        _check_column(field, file.schema_arrow)
        yield from file.iter_batches(batch_size=_ROWS, columns=[field], use_threads=False)

    return (yield from _read_batches(batches(), field, pyarrow.ArrowException))


def read_arrow(source: BinaryIO, block_bytes: int, field: str) -> Blocks:
    """Read an Arrow file or stream, as Hugging Face datasets keeps them on disk.

    Args:
      source: the file, which can seek.
      block_bytes: unused; a block is one of the file's batches.
      field: the column that holds the text.

    Raises:
      ValueError: if the file is damaged, or the column is missing or no text.
    """
    import pyarrow
    from pyarrow import ipc

    def batches() -> Iterator[Any]:
        magic = source.read(6)
        source.seek(0)
        if magic == b"ARROW1":
            file = ipc.open_file(source)
            _check_column(field, file.schema)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            stream = ipc.open_stream(source)
            _check_column(field, stream.schema)
            yield from stream

    return (yield from _read_batches(batches(), field, pyarrow.ArrowException))


def _read_batches(batches: Iterable[Any], field: str, damaged: type[Exception]) -> Blocks:
    documents, number = _Documents(), 0
    each = iter(batches)
    while True:
        try:
            batch = next(each, None)
        except (damaged, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk, and not of what is on it
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"cannot be read: {reason}") from error
        if batch is None:
            return documents.facts()
        column = batch.column(batch.schema.get_field_index(field))
        documents.without_text += column.null_count
        rows: Sequence[int] = range(number + 1, number + len(column) + 1)
        if column.null_count:
            there = column.is_valid().to_pylist()
            rows = [row for row, valid in zip(rows, there, strict=True) if valid]
        yield documents.block(_texts(column), rows)
        number += len(column)


def _texts(column: Any) -> list[bytes]:
    """Return the texts of an Arrow array, without those that are null."""
    import numpy as np
    import pyarrow

    if column.null_count:
        column = column.drop_null()
    if not len(column):
        return []
    # One cast for every kind of text there is: large, dictionaries, views.
    column = column.cast(pyarrow.large_string()).cast(pyarrow.large_binary())
    _, offsets, data = column.buffers()
    edges = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    view = memoryview(data) if data is not None else memoryview(b"")
    return [bytes(view[a:b]) for a, b in itertools.pairwise(edges.tolist())]


def _check_column(field: str, schema: Any) -> None:
    import pyarrow

    if field not in schema.names:
        raise ValueError(_missing(field, schema.names))
    kind = schema.field(field).type
    value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    checks: Sequence[Callable[[Any], bool]] = (
        pyarrow.types.is_string,
        pyarrow.types.is_large_string,
        pyarrow.types.is_string_view,
    )
    if not any(check(value) for check in checks):
        raise ValueError(f"field {field!r} is of type {kind}, not text")


def _missing(field: str, fields: Iterable[str]) -> str:
    names = list(fields)
    shown = ", ".join(map(str, names[:_SHOWN_FIELDS])) + (
        ", ..." if len(names) > _SHOWN_FIELDS else ""
    )
    return (
        f"has no field {field!r}; it has {shown or 'none'}: --datasets.0.text_field NAME takes one"
    )
