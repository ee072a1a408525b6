"""Letters in two parts: composed, at every size of a block, and counted."""

import io
import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from spectral_dist.data.formats import Format
from spectral_dist.data.manifest import read_manifest
from spectral_dist.data.normalization import count_decomposed
from spectral_dist.data.remarks import remark
from spectral_dist.data.sources import find_sources
from spectral_dist.data.text import convert
from spectral_dist.data.tokens import prepare
from spectral_dist.settings.datasets import DatasetConfig

COMPOSED = "Işığı söndürüp çıktığı gün, ağaç şimşek gibi düştü: café ή й Å\n"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
# As written: marks without a letter of their own, at the beginning, after a line; Hangul; a letter
# of three parts, in the wrong order too; nothing but letters that are no ASCII.
ODD = ["\u0301a", "x\u0301y", "a\n\u0301b", "\u1112\u1161\u11ab", "e\u0302\u0301", "a\u0323\u0307"]
ODD += ["s\u0307\u0323", "ş" * 50 + "\u0327", "\u2126\u212b", "", DECOMPOSED * 3]


def read(content: bytes, form: Format, block_bytes: int = 1 << 20) -> list[str]:
    tokens: list[bytes] = []
    convert(io.BytesIO(content), tokens.append, form=form, block_bytes=block_bytes)
    return b"".join(tokens).decode().split("\0")[:-1]


def as_jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 64, 1 << 20])
def test_documents_are_composed_at_every_size_of_a_block(block_bytes: int) -> None:
    wanted = [unicodedata.normalize("NFC", text) for text in ODD]
    assert read(as_jsonl(ODD), Format("jsonl", normalize="nfc"), block_bytes) == wanted
    text = "".join(f"{t}\n<|endoftext|>\n" for t in ODD).encode()
    lines = [text + "\n" for text in wanted]
    assert read(text, Format(normalize="nfc"), block_bytes) == lines
    assert read(text, Format(), block_bytes) == [text + "\n" for text in ODD]


def test_random_texts_are_composed() -> None:
    draw = random.Random(0)
    parts = ["s", "ş", "e", "\u0327", "\u0301", "\n", "😀", "\u1100", "\u1161", "<|endoftext|>"]
    for _ in range(1000):
        text = "".join(draw.choices(parts, k=draw.randint(1, 15)))
        plain = read(text.encode(), Format())
        wanted = [unicodedata.normalize("NFC", document) for document in plain]
        assert read(text.encode(), Format(normalize="nfc"), draw.randint(1, 30)) == wanted


def test_letters_in_two_parts_are_counted() -> None:
    turkish = unicodedata.normalize("NFD", "ş ğ ü İ ö ç é").encode()
    assert count_decomposed([turkish, b"plain", turkish]) == 14
    assert count_decomposed(["й ή".encode(), unicodedata.normalize("NFD", "й ή").encode()]) == 2
    # Letters, and not marks: of two on one letter the first alone makes it one.
    assert count_decomposed(["e\u0302\u0301".encode()]) == 1
    # A mark that no letter has, or that stands alone, cannot be composed.
    assert count_decomposed(["x\u0301 \u0301 \n\u0301 q\u0327 şü é".encode()]) == 0


def test_tokens_cannot_be_composed(tmp_path: Path) -> None:
    dataset = DatasetConfig(paths=("a.bin",), normalize="nfc")
    with pytest.raises(ValueError, match=r"^data_paths: a\.bin: holds tokens, whose letters "):
        find_sources(dataset, print, tmp_path)


def test_a_dataset_of_letters_in_two_parts(tmp_path: Path) -> None:
    path, told = tmp_path / "a.txt", list[str]()
    path.write_text(DECOMPOSED)
    how = {"validation_fraction": 0.0, "min_tokens": 1, "report": told.append}
    (plain,) = prepare([DatasetConfig(paths=(str(path),))], **how)  # type: ignore[arg-type]
    wanted = len(DECOMPOSED) - len(COMPOSED)
    assert any(f"a.txt: {wanted} letters are written in two parts" in line for line in told)
    told.clear()
    dataset = DatasetConfig(paths=(str(path),), normalize="nfc")
    (composed,) = prepare([dataset], **how)  # type: ignore[arg-type]
    assert not any("two parts" in line for line in told)
    assert bytes(composed.tokens[:]) == COMPOSED.encode() + b"\0"
    assert bytes(plain.tokens[:]) == DECOMPOSED.encode() + b"\0"
    # Other tokens of the same file, each with a name and a sum of its own.
    assert composed.path.name == "a+nfc.bin"
    assert composed.sha256 != plain.sha256
    manifest = read_manifest(composed.path)
    assert (manifest.normalize, manifest.decomposed) == ("nfc", 0)
    # Said at the next start as well, from the manifest.
    (source,) = find_sources(DatasetConfig(paths=(str(path),)), told.append, tmp_path)
    remark(source, read_manifest(plain.path), False, told.append)
    assert sum("two parts" in line for line in told) == 1
    remark(source, replace(read_manifest(plain.path), tokens=10**7), False, told.append)
    assert sum("two parts" in line for line in told) == 1  # a few in a long text are not told
