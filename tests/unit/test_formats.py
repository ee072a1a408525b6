"""Formats: by the name of a file, unpacked, and told apart where name and content differ."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from spectral_dist.data.formats import Format, find_format, head_of, unpacked
from spectral_dist.data.text import convert


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
TEXT = "Çağrı, İsmail'e şöyle öğüt verdi.\n<|endoftext|>\nüçüncü\n".encode() * 3000


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.txt", Format()),
        ("a", Format()),
        ("a.b.md", Format()),
        ("A.JSONL", Format("jsonl")),
        ("a.ndjson.gz", Format("jsonl", "gzip")),
        ("a.json", Format("jsonl")),
        ("a.txt.zst", Format("txt", "zstd")),
        ("a.zst", Format("txt", "zstd")),
        ("a.parquet", Format("parquet")),
        ("a.arrow", Format("arrow")),
        ("x.txt/b.xz", Format("txt", "xz")),
    ],
)
def test_the_name_says_the_format(name: str, form: Format) -> None:
    assert find_format(Path(name)) == form


def test_a_format_may_be_given() -> None:
    assert find_format(Path("a.txt.gz"), "jsonl", "body") == Format("jsonl", "gzip", "body")
    assert find_format(Path("a.jsonl"), "txt", "body") == Format()
    with pytest.raises(ValueError, match="is packed by zstd: unpack it; parquet is packed"):
        find_format(Path("a.zst"), "parquet")


@pytest.mark.parametrize("ending", PACK)
def test_a_packed_text_has_the_same_tokens(ending: str) -> None:
    form = find_format(Path(f"a.txt.{ending}"))
    plain, tokens = bytearray(), bytearray()
    wanted = convert(io.BytesIO(TEXT), plain.extend)
    # In two parts one after the other, as `cat` and parallel packers write them.
    half = len(TEXT) // 2
    content = PACK[ending](TEXT[:half]) + PACK[ending](TEXT[half:])
    done: list[int] = []
    facts = convert(io.BytesIO(content), tokens.extend, form=form, progress=done.append)
    assert tokens == plain
    assert facts.documents == wanted.documents
    assert facts.source_bytes == len(content)
    assert max(done, default=0) <= len(content)


@pytest.mark.parametrize("ending", PACK)
def test_a_line_is_counted_in_what_is_packed(ending: str) -> None:
    content = PACK[ending](TEXT + b"bad \xff\n")
    facts = convert(io.BytesIO(content), lambda block: None, form=find_format(Path(f"a.{ending}")))
    assert facts.first_replaced_line == TEXT.count(b"\n") + 1


# Not ("zst", "changed"): these frames have no checksum; those of the command zstd have.
@pytest.mark.parametrize(
    ("ending", "damage"),
    [(e, d) for e in PACK for d in ("cut", "cut early", "changed") if (e, d) != ("zst", "changed")],
)
def test_a_damaged_packed_file_is_said(ending: str, damage: str) -> None:
    content = bytearray(PACK[ending](TEXT))
    match damage:
        case "cut":
            del content[-6:]
        case "cut early":
            del content[len(content) // 2 :]
        case _:
            content[len(content) // 2] ^= 0xFF
    with pytest.raises(ValueError, match="cannot be unpacked by") as caught:
        convert(io.BytesIO(content), lambda block: None, form=find_format(Path(f"a.{ending}")))
    assert "\n" not in str(caught.value)


def test_an_error_of_the_disk_stays_one() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    for packing in ("gzip", "bz2", "xz", "zstd"):
        with unpacked(Broken(), packing) as file, pytest.raises(OSError, match="Input/output"):
            file.read(10)


def test_the_head_is_read_unpacked_and_the_file_is_at_its_start() -> None:
    for ending, pack in PACK.items():
        file = io.BytesIO(pack(TEXT))
        assert TEXT.startswith(head_of(file, find_format(Path(f"a.{ending}")).packing)[:100])
        assert file.tell() == 0


RECORDS = b"".join(json.dumps({"text": str(n)}).encode() + b"\n" for n in range(5))


@pytest.mark.parametrize(
    ("form", "head", "words"),
    [
        (Format(), RECORDS, "looks like JSON, a record a line: with the ending .jsonl"),
        (Format(), b"PAR1" + bytes(9), "is a Parquet file; its name must end in .parquet"),
        (Format(), b"ARROW1\0\0", "is an Arrow file; its name must end in .arrow"),
        (Format("jsonl"), b"PAR1", "is a Parquet file"),
        (
            Format("jsonl"),
            gzip.compress(b"x", mtime=0),
            "is packed by gzip; its name must end in .gz",
        ),
        (Format("txt", "gzip"), zstd(b"x"), "is packed by zstd; its name must end in"),
        (Format("parquet"), RECORDS, "is no Parquet file, whatever its name says"),
        (Format("jsonl"), b'[{"text": ""}]', "is one JSON array, and a record a line is wanted"),
        (Format("jsonl"), b"plain\n", "is no JSON lines: it begins with b'plain"),
        (Format("jsonl"), "düz".encode("utf-16"), "UTF-16"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_content_of_another_format_is_refused(form: Format, head: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        form.check(head)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("form", "head"),
    [
        (Format(given=True), RECORDS),
        (Format(), b"{\n  int main() {}\n"),
        (Format(), b'{"a": 1}\nfree text\n'),
        (Format(), b""),
        (Format("jsonl"), b"\xef\xbb\xbf" + RECORDS),
        (Format("jsonl"), b"\n\n" + RECORDS),
        (Format("parquet"), b"PAR1"),
        (Format("arrow"), b"ARROW1"),
        (Format("arrow"), b"\xff\xff\xff\xff\x10"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else type(value).__name__,
)
def test_content_of_its_format_is_taken(form: Format, head: bytes) -> None:
    form.check(head)
