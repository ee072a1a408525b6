"""What is said of a text at every start, and what is refused."""

import gzip
from pathlib import Path

import pytest

from spectral_dist.data.build import build
from spectral_dist.data.remarks import remark
from spectral_dist.data.sources import Source

LINE = "Işığı görünce şaşırdı, ağaçların gölgesinde.\n"


def said(path: Path, content: bytes, allow: bool = False) -> list[str]:
    path.write_bytes(content)
    lines: list[str] = []
    remark(Source(path), build(path), allow, lines.append)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_of_clean_text_nothing_is_said(tmp_path: Path) -> None:
    assert said(tmp_path / "a.txt", (LINE + "<|endoftext|>\n").encode() * 9) == []


def test_replaced_bytes_have_their_share_line_and_encoding(tmp_path: Path) -> None:
    text = LINE.encode() * 100 + LINE.encode("cp1254")[:5] + b"\n" + LINE.encode() * 200
    (line,) = said(tmp_path / "a.txt", text)
    assert line == (
        "4 pieces of invalid UTF-8 (0.02% of its bytes, the first in line 101) are replaced by"
        " U+FFFD; it looks like UTF-8 with parts in WINDOWS-1254 (Turkish)"
    )
    (line,) = said(tmp_path / "b.txt", LINE.encode() * 100 + b"a\0b\n")
    assert line.startswith("1 NUL bytes (0.02% of its bytes, the first in line 101) are replaced")


def test_too_many_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    text = LINE.encode() * 30 + LINE.encode("cp1254") * 3
    words = r"a\.txt: 42 pieces of invalid .*line 31\); .*1254.*--allow_replaced true"
    with pytest.raises(ValueError, match=words):
        said(tmp_path / "a.txt", text)
    assert len(said(tmp_path / "a.txt", text, allow=True)) == 1


@pytest.mark.parametrize("near", ["doc<|endoftext|>doc\n", "<|endoftext|> \n", " <|endoftext|>\n"])
@pytest.mark.parametrize("lines", [0, 50_000])
def test_separators_that_are_nearly_right_are_counted(
    tmp_path: Path, near: str, lines: int
) -> None:
    """In the first block of a text and in a later one, after replaced bytes too."""
    text = (
        b"\xff" * 3 + LINE.encode() * lines + near.encode() * 2 + b"<|endoftext|>\n" + LINE.encode()
    )
    *_, line = said(tmp_path / "a.txt", text, allow=True)
    assert line.startswith(
        f"<|endoftext|> stands 2 times inside a line, the first in line {lines + 1:,}: there it is"
    )


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl"])
def test_no_encoding_is_guessed_of_a_file_whose_bytes_are_not_the_text(
    tmp_path: Path, name: str
) -> None:
    """what_it_holds: a packed file would look like gzip, and gzip -d is no remedy."""
    path = tmp_path / name
    record = b'{"text": "' + b"x" * 5000 + b'\\u0000"}\n'
    path.write_bytes(gzip.compress(b"x" * 5000 + b"\0\n") if name.endswith("gz") else record)
    told: list[str] = []
    remark(Source(path), build(path), False, told.append)
    assert len(told) == 1
    assert "1 NUL bytes" in told[0]
    assert told[0].endswith("are replaced by U+FFFD")
