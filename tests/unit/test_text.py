"""Text to tokens and back: the rule against a slow statement of it, at every block edge."""

import io
import os
import random
import tracemalloc

import pytest

from spectral_dist.data.readers import SEPARATOR, write_txt
from spectral_dist.data.text import TextFacts, convert

TURKISH = "ğüşıöç İĞÜŞÖÇI: ığdır, İstanbul'da çağrışım şöyleydi\n".encode()
LINE = SEPARATOR + b"\n"


def run(text: bytes, block_bytes: int = 1 << 20) -> tuple[bytes, TextFacts]:
    """Convert a text in blocks of the given size."""
    pieces: list[memoryview] = []
    facts = convert(io.BytesIO(text), pieces.append, block_bytes=block_bytes)
    return b"".join(pieces), facts


def slow(text: bytes) -> bytes:
    """The rule, line by line, for valid text."""
    lines = text.split(b"\n")
    tokens, last = b"", len(lines) - 1
    for number, line in enumerate(lines):
        stripped = line[:-1] if line.endswith(b"\r") and number < last else line
        if stripped == SEPARATOR:
            tokens += b"\0"
        else:
            tokens += line + (b"\n" if number < last else b"")
    return tokens if tokens.endswith(b"\0") else tokens + b"\0"


CASES = [
    b"a",
    b"\n",
    TURKISH,
    TURKISH + LINE + TURKISH,
    TURKISH + LINE + TURKISH + LINE,
    TURKISH + LINE + TURKISH + SEPARATOR,
    LINE + TURKISH,
    LINE,
    SEPARATOR,
    LINE * 5,
    b"a\n" + LINE * 4 + b"b\n" + LINE + b"\n" + LINE,
    b"a\r\n" + SEPARATOR + b"\r\nb\r\n" + SEPARATOR + b"\r\nc\r\n",
    b"a\r\n" + SEPARATOR + b"\r\nb\r\n" + SEPARATOR + b"\r\n",
    b"a\n" + LINE + b"b\n" + SEPARATOR + b"\r\n",
    b"in a line " + LINE + LINE + b"b" + SEPARATOR,
    LINE + SEPARATOR + b" \n " + LINE + SEPARATOR + b"\r",
    SEPARATOR + SEPARATOR + b"\n" + LINE + SEPARATOR[:-1] + b"\n" + SEPARATOR[:-1],
    "\ufeffa BOM\n".encode() + LINE + "its own \ufffd and 😀😀\n".encode(),
    "ş".encode() * 100 + b"\n" + "😀".encode() * 30,
]


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 13, 14, 15, 16, 17, 64, 1 << 20])
@pytest.mark.parametrize("text", CASES)
def test_tokens_follow_the_rule_and_give_the_text_back(text: bytes, block_bytes: int) -> None:
    tokens, facts = run(text, block_bytes)
    assert tokens == slow(text)
    assert (facts.tokens, facts.documents) == (len(tokens), tokens.count(0))
    assert facts.source_bytes == len(text)
    assert facts.exact
    assert (
        write_txt(tokens.split(b"\0"), ending=facts.ending, crlf=facts.crlf_separators > 0) == text
    )


def test_random_texts_agree_at_random_block_sizes() -> None:
    draw = random.Random(0)
    parts = [b"\n", b"\r\n", b"\r", SEPARATOR, LINE, b"x", "ğ".encode(), "😀".encode(), b"<|"]
    for _ in range(2000):
        text = b"".join(draw.choices(parts, k=draw.randint(1, 12)))
        tokens, facts = run(text, draw.randint(1, 40))
        assert tokens == slow(text), text
        if facts.exact:
            crlf = facts.crlf_separators > 0
            assert write_txt(tokens.split(b"\0"), ending=facts.ending, crlf=crlf) == text


def test_mixed_line_ends_of_separators_are_called_inexact() -> None:
    _, facts = run(b"a\n" + LINE + b"b\n" + SEPARATOR + b"\r\nc\n")
    assert facts.crlf_separators == 1
    assert not facts.exact


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 4, 5, 7, 1 << 20])
def test_bytes_that_are_no_text_are_replaced_and_counted(block_bytes: int) -> None:
    good = b"a good line\n" * 20
    bad = b"x\0y\xff\xe2\x82z\x80\x80\x80\x80\x80\xf0\x9f\x98" + "\ufffd".encode() + b"\n"
    text = good + bad + good
    tokens, facts = run(text, block_bytes)
    expected = text.replace(b"\0", "\ufffd".encode()).decode(errors="replace").encode()
    assert tokens == expected + b"\0"
    assert (facts.nul_bytes, facts.invalid_sequences) == (1, 8)
    assert facts.first_replaced_line == 21
    assert not facts.exact


def test_random_bytes_decode_alike_at_every_block_size() -> None:
    draw = random.Random(1)
    alphabet = [0x41, 0x80, 0xBF, 0xC3, 0xE2, 0x82, 0xF0, 0x9F, 0x0A]
    for _ in range(500):
        text = b"plain text first\n" * 20 + bytes(draw.choices(alphabet, k=12))
        whole, facts = run(text)
        pieces, same = run(text, draw.randint(1, 9))
        assert pieces == whole
        assert same == facts


@pytest.mark.parametrize(
    "content",
    [os.urandom(4096), b"\x7fELF" + bytes(4000), "düz metin\n".encode("utf-16") * 50],
)
def test_binary_content_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="does not look like text"):
        run(content)


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        run(b"")


def test_generated_tokens_read_again_as_the_same_documents() -> None:
    text = write_txt([b"first", b"second", b"", b"third"])
    assert text == b"first\n" + LINE + b"second\n" + LINE + LINE + b"third"


def test_memory_does_not_grow_with_the_text() -> None:
    class Endless(io.RawIOBase):
        """A text of one line of 64 MB, then short ones."""

        left = 1 << 27

        def read(self, size: int = -1) -> bytes:
            self.left -= size
            piece = b"short line\n" if self.left < 1 << 26 else b"one line..."
            return (piece * (size // len(piece) + 1))[:size] if self.left >= 0 else b""

    tracemalloc.start()
    try:
        convert(Endless(), len)  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20
