"""Readers of records: documents out of JSON lines, Parquet and Arrow, and what is refused."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from spectral_dist.data.formats import Format
from spectral_dist.data.readers import ReaderFacts
from spectral_dist.data.text import convert

TEXTS = ["Çağrı öğüt verdi.\n", "", "iki\nsatır <|endoftext|>\n", "x" * 3000, "\u2028son"]


def read(content: bytes, form: Format, block: int = 1 << 20) -> tuple[list[str], ReaderFacts]:
    """Return the documents and the facts; the same whatever is read at a time."""
    tokens = bytearray()
    facts = convert(io.BytesIO(content), tokens.extend, form=form, block_bytes=block)
    *documents, last = bytes(tokens).split(b"\0")
    assert last == b""
    assert facts.documents == len(documents)
    assert facts.source_bytes == len(content)
    return [document.decode() for document in documents], facts


def as_jsonl(texts: list[Any], field: str = "text") -> bytes:
    return b"".join(
        json.dumps({"id": i, field: text}, ensure_ascii=i % 2 == 0).encode() + b"\n"
        for i, text in enumerate(texts)
    )


def as_parquet(texts: list[Any], kind: Any = None, field: str = "text") -> bytes:
    file = io.BytesIO()
    table = pa.table({"id": list(range(len(texts))), field: pa.array(texts, kind)})
    parquet.write_table(table, file, row_group_size=2)
    return file.getvalue()


def as_arrow(texts: list[Any], stream: bool) -> bytes:
    file = io.BytesIO()
    table = pa.table({"text": pa.array(texts, pa.string())})
    writer = (ipc.new_stream if stream else ipc.new_file)(file, table.schema)
    writer.write_table(table, max_chunksize=2)
    writer.close()
    return file.getvalue()


WRITTEN: dict[str, tuple[Callable[[list[Any]], bytes], str]] = {
    "jsonl": (as_jsonl, "jsonl"),
    "parquet": (as_parquet, "parquet"),
    "parquet, large": (lambda texts: as_parquet(texts, pa.large_string()), "parquet"),
    "parquet, dictionary": (
        lambda texts: as_parquet(texts, pa.dictionary(pa.int32(), pa.string())),
        "parquet",
    ),
    "arrow file": (lambda texts: as_arrow(texts, stream=False), "arrow"),
    "arrow stream": (lambda texts: as_arrow(texts, stream=True), "arrow"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_record_is_a_document(name: str) -> None:
    write, kind = WRITTEN[name]
    documents, facts = read(write(TEXTS), Format(kind))
    assert documents == TEXTS
    assert facts.nul_bytes + facts.invalid_sequences + facts.records_without_text == 0
    assert not facts.near_separators  # the words of a separator are a document's own


@pytest.mark.parametrize("name", WRITTEN)
def test_records_without_text_are_left_out_and_counted(name: str) -> None:
    write, kind = WRITTEN[name]
    documents, facts = read(write([None, "a", None, "b", "c", None]), Format(kind))
    assert documents == ["a", "b", "c"]
    assert facts.records_without_text == 3


@pytest.mark.parametrize("name", WRITTEN)
def test_nul_is_replaced_and_its_record_named(name: str) -> None:
    write, kind = WRITTEN[name]
    documents, facts = read(write(["iyi", None, "a\0b", "\0"]), Format(kind))
    assert documents == ["iyi", "a\ufffdb", "\ufffd"]
    assert (facts.nul_bytes, facts.first_replaced_line) == (2, 3)


def test_lines_do_not_depend_on_the_blocks() -> None:
    draw = random.Random(0)
    texts = ["ş" * draw.randrange(200) + "\n" * draw.randrange(3) for _ in range(50)]
    whole = read(as_jsonl(texts), Format("jsonl"))
    assert whole[0] == texts
    for block in (1, 7, 64, 1000):
        assert read(as_jsonl(texts), Format("jsonl"), block) == whole
    assert read(as_jsonl(texts).removesuffix(b"\n"), Format("jsonl"))[0] == texts


def test_what_json_may_hold() -> None:
    content = (
        b'\xef\xbb\xbf{"text": "mark"}\r\n'  # as Windows writes it
        b"\n   \n"
        b'{"text": "\\ud83d\\ude00 \\ud800", "n": NaN}\n'
        b'{"text": "latin \xfd"}\n'
        b'{"a": {"text": "no"}, "text": "yes"}\n'
    )
    documents, facts = read(content, Format("jsonl"))
    assert documents[0] == "mark"
    assert documents[1].startswith("\U0001f600 \ufffd")
    assert documents[2:] == ["latin \ufffd", "yes"]
    assert facts.invalid_sequences >= 1
    assert facts.first_replaced_line == 4


def test_another_field() -> None:
    assert read(as_jsonl(["a"], "içerik"), Format("jsonl", "", "içerik"))[0] == ["a"]
    assert read(as_parquet(["a"], field="body"), Format("parquet", "", "body"))[0] == ["a"]


PARQUET = as_parquet(TEXTS)


def short(value: object) -> str:
    """Return what a case is called: not the bytes of its file."""
    return value[:40] if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(
    ("content", "form", "words"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', Format("jsonl"), "line 2: is no JSON (Expecting"),
        (b'{"text": "a"}\n[1]\n', Format("jsonl"), "line 2: is no record but a list"),
        (b'{"text": "a"}\n"b"\n', Format("jsonl"), "line 2: is no record but a str"),
        (
            b'{"id": 1, "body": ""}\n',
            Format("jsonl"),
            "line 1: has no field 'text'; it has id, body",
        ),
        (
            b'{"text": ["a"]}\n',
            Format("jsonl"),
            "line 1: field 'text' is of type list, not text",
        ),
        (b'{"text": 7}\n', Format("jsonl"), "line 1: field 'text' is of type int, not text"),
        (b"[" * 100_000 + b"\n", Format("jsonl"), "line 1: is no JSON"),
        (PARQUET[:-8], Format("parquet"), "cannot be read: "),
        (PARQUET[:200] + PARQUET[-100:], Format("parquet"), "cannot be read: "),
        (b"PAR1", Format("parquet"), "cannot be read: "),
        (PARQUET, Format("parquet", "", "body"), "has no field 'body'; it has id, text"),
        (PARQUET, Format("parquet", "", "id"), "field 'id' is of type int64, not text"),
        (as_arrow(TEXTS, stream=False)[:-30], Format("arrow"), "cannot be read: "),
        (as_arrow(TEXTS, stream=True)[:300], Format("arrow"), "cannot be read: "),
        (b"garbage of some length, no Arrow", Format("arrow"), "cannot be read: "),
    ],
    ids=short,
)
def test_what_cannot_be_read_is_said_in_one_line(content: bytes, form: Format, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read(content, form)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (b"\n\n", Format("jsonl")),
        (b'{"text": null}\n', Format("jsonl")),
        (as_parquet([], pa.string()), Format("parquet")),
        (as_arrow([], stream=True), Format("arrow")),
    ],
    ids=short,
)
def test_a_file_may_hold_no_document(content: bytes, form: Format) -> None:
    facts = convert(io.BytesIO(content), lambda block: None, form=form)
    assert (facts.documents, facts.tokens) == (0, 0)


def test_a_long_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectral_dist.data.records._LONGEST_LINE", 1000)
    with pytest.raises(ValueError, match="has a line of more than a gibibyte"):
        read(as_jsonl(["x" * 5000]), Format("jsonl"), 100)


def test_a_parquet_file_is_read_in_parts(tmp_path: Path) -> None:
    """Of a file of many row groups, one column of a few rows is in memory."""
    texts = [f"{n} " + "a" * 10_000 for n in range(5000)]
    path = tmp_path / "x.parquet"
    table = pa.table({"text": texts, "vector": [[0.0] * 10] * len(texts)})
    parquet.write_table(table, path, row_group_size=500, compression="zstd")
    sizes = []
    with path.open("rb") as file:
        facts = convert(file, lambda block: sizes.append(len(block)), form=Format("parquet"))
    assert facts.documents == 5000
    assert max(sizes) <= 1024 * 10_010
