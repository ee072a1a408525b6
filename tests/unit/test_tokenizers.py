"""Another tokenizer and another reader, each added by one line, from the file to the batch."""

import io
import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from spectral_dist.data.build import build
from spectral_dist.data.formats import ENDINGS, READERS
from spectral_dist.data.manifest import bin_path, manifest_path, read_manifest
from spectral_dist.data.mixture import TrainSequences, long_windows, validation_windows
from spectral_dist.data.readers import Blocks, ReaderFacts
from spectral_dist.data.text import convert
from spectral_dist.data.tokenizers import BYTES, TOKENIZERS, Tokenizer
from spectral_dist.data.tokens import prepare
from spectral_dist.settings import DatasetConfig

T = 16


class Pairs(Tokenizer):
    """Two bytes are a token; the last one of an odd document is padded with byte 255."""

    vocab_size = 1 << 16
    end = 7  # no text holds the bytes 0 and 7 side by side: it holds no byte 0
    dtype = np.dtype(np.uint16)
    token_bytes = np.full(1 << 16, 2, np.int32)
    fingerprint = "pairs"

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text + b"\xff" * (len(text) % 2), ">u2").astype(np.uint16)

    def decode(self, tokens: np.ndarray) -> bytes:
        return tokens.astype(">u2").tobytes().removesuffix(b"\xff")


def read_lines(source: BinaryIO, block_bytes: int) -> Blocks:
    """One document a line."""
    documents = 0
    carry = b""
    while block := source.read(block_bytes):
        *lines, carry = (carry + block).split(b"\n")
        yield [*lines, b""]
        documents += len(lines)
    return ReaderFacts(documents=documents)


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENIZERS, "pairs", Pairs())
    monkeypatch.setitem(READERS, "lines", lambda field: read_lines)
    monkeypatch.setitem(ENDINGS, "lines", "lines")


def run(path: Path, tokenizer: str = "pairs"):  # type: ignore[no-untyped-def]
    (file,) = prepare(
        [DatasetConfig(paths=(str(path),))],
        tokenizer=tokenizer,
        validation_fraction=0.2,
        min_tokens=T + 1,
        processes=1,
        report=lambda line: None,
    )
    return file


@pytest.mark.parametrize("name", ["a.txt", "a.lines"])
def test_from_a_text_to_batches_and_back(tmp_path: Path, name: str) -> None:
    texts = [f"belge {i}: ışığı görünce şaşırdı".encode() * (1 + i % 3) for i in range(100)]
    path = tmp_path / name
    path.write_bytes(
        b"".join(t + b"\n" for t in texts)
        if name == "a.lines"
        else b"".join(t + b"\n<|endoftext|>\n" for t in texts)
    )
    file = run(path)
    pairs = TOKENIZERS["pairs"]
    assert file.tokens.dtype == np.uint16
    assert file.documents == 100
    *decoded, rest = pairs.decode_documents(np.asarray(file.tokens))
    assert [d.removesuffix(b"\n") for d in decoded] == texts
    assert rest == b""
    # Split after a document, windows without its end, sequences of the right type.
    assert file.train[-1] == file.validation[-1] == 7
    assert validation_windows(file, T, 5).dtype == np.uint16
    windows = long_windows(file, T, 5)
    assert len(windows) == 5
    assert not (windows == 7).any()
    assert file.tokens[file.split - 1] == 7
    bytes_file = run(path, "bytes")
    sequences = TrainSequences([file, file], [(0, (0.5, 0.5))], T, seed=0).read(range(50))
    assert sequences.dtype == np.uint16
    starts = np.lib.stride_tricks.sliding_window_view(file.train, T + 1)[::T]
    assert all((starts == row).all(1).any() for row in sequences)
    # The .bin of bytes beside it is another file.
    assert bytes_file.path == tmp_path / ("a.bin" if name == "a.txt" else "a.lines.bin")
    assert file.path == bin_path(path, pairs) != bytes_file.path
    assert not (validation_windows(bytes_file, T, 5) > 255).any()


def test_whole_documents_reach_a_tokenizer_that_sees_where_they_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abcd\nefgh\n<|endoftext|>\n" * 3)
    expected = TOKENIZERS["pairs"].encode_documents([b"abcd\nefgh\n"] * 3 + [b""])
    for block in (1, 3, 8, 1000):
        written = io.BytesIO()
        with path.open("rb") as source:
            convert(source, written.write, tokenizer=TOKENIZERS["pairs"], block_bytes=block)
        assert written.getvalue() == expected.tobytes()


def test_a_manifest_names_its_tokenizer_unless_it_is_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"some words\n" * 50)
    build(path)
    values = json.loads(manifest_path(bin_path(path)).read_text())
    assert "tokenizer" not in values  # readable by earlier versions, as theirs are here
    assert read_manifest(bin_path(path)).tokenizer == "bytes"
    pairs = TOKENIZERS["pairs"]
    build(path, tokenizer=pairs)
    assert read_manifest(bin_path(path, pairs), pairs).tokenizer == "pairs"
    with pytest.raises(ValueError, match="its tokenizer is 'pairs', and the run's 'bytes'"):
        read_manifest(bin_path(path, pairs))


def test_the_fast_path_of_bytes_is_the_rule() -> None:
    pieces = [b"", b"ab\n", b"", "ı".encode(), b""]
    fast = BYTES.encode_documents(pieces)
    np.testing.assert_array_equal(fast, Tokenizer.encode_documents(BYTES, pieces))
    assert BYTES.decode_documents(fast) == Tokenizer.decode_documents(BYTES, fast) == pieces
    assert BYTES.line_ends.tolist() == [10]
    assert [BYTES.inside_character(t) for t in (0, 0x41, 0x80, 0xBF, 0xC4)] == [0, 0, 1, 1, 0]
