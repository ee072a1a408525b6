"""Tokenizers from a file: what is accepted, that every text comes back, and a run with one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from spectral_dist import tokenizer as command
from spectral_dist.data.tokenizer_file import FileTokenizer, _cut
from spectral_dist.data.tokenizer_training import END, sample_blocks, train_bpe
from spectral_dist.data.tokenizers import BYTES, open_tokenizer
from spectral_dist.data.tokens import prepare
from spectral_dist.settings import DatasetConfig

TEXT = "Işığı görünce şaşırdı; Türkiye'nin çayı 125 liraymış.\n\tif x:  # 中文 😀\n" * 40


def byte_level(vocabulary: dict[str, int] | None = None, end: str = END) -> tokenizers.Tokenizer:
    """Return a tokenizer of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary or {c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if end:
        made.add_special_tokens([end])
    return made


def dataset(folder: Path, text: str = TEXT, name: str = "a") -> DatasetConfig:
    path = folder / f"{name}.txt"
    path.write_text(f"{text}\n<|endoftext|>\n" * 4, encoding="utf-8")
    return DatasetConfig(paths=(str(path),))


def opened(config: DatasetConfig, tokenizer: str = "bytes") -> Any:
    how = {"validation_fraction": 0.25, "min_tokens": 1, "report": lambda line: None}
    return prepare([config], tokenizer=tokenizer, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    made = train_bpe(opened(dataset(folder)), [1.0], 300, 10**6, lambda line: None)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        TEXT,
        "e\u0301 \r\n\r\n  son ",
        "yok\u2581 \ufffd <|endoftext|> a",
        " \n\n",
        "ıIiİ" * 9,
    ],
)
def test_every_text_comes_back_and_none_becomes_the_end(trained: Path, text: str) -> None:
    one = open_tokenizer(str(trained))
    tokens = one.encode(text.encode())
    assert one.decode(tokens) == text.encode()
    assert one.end not in tokens
    assert one.token_bytes[one.end] == 1
    assert int(one.token_bytes[tokens].sum()) == len(text.encode())
    assert tokens.dtype == one.dtype == np.uint16
    pieces = [text.encode(), b"", b"b"]
    both = one.encode_documents(pieces)
    assert (both == one.end).sum() == 2
    assert one.decode_documents(both) == pieces


def test_a_trained_one_joins_bytes_and_knows_lines_and_characters(trained: Path) -> None:
    one = open_tokenizer(str(trained.parent))  # the folder serves as well
    assert one is open_tokenizer(str(trained))
    assert len(one.encode(TEXT.encode())) < len(TEXT.encode()) / 2
    assert one.token_bytes.max() <= 2 * 24
    assert all(one.decode(np.array([t])).endswith(b"\n") for t in one.line_ends)
    assert len(one.line_ends)
    first, second = one.encode("😀".encode())[:2] if len(one.encode("😀".encode())) > 1 else (0, 0)
    assert not one.inside_character(int(first)) or first == second == 0


def test_the_same_text_gives_the_same_tokenizer_and_held_out_text_is_not_read(
    tmp_path: Path,
) -> None:
    (file,) = opened(dataset(tmp_path))
    one, other = (train_bpe([file], [1.0], 290, 10**6, lambda line: None) for _ in range(2))
    assert one.to_str() == other.to_str()
    read = np.concatenate(list(sample_blocks(file, 10**6)))
    np.testing.assert_array_equal(read, np.asarray(file.train[:]))
    assert sum(map(len, sample_blocks(file, 100))) == 100


def test_long_texts_are_cut_after_lines_or_before_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectral_dist.data.tokenizer_file._PIECE", 8)
    for text, expected in (
        (b"ab\ncd ef gh", [b"ab\n", b"cd ef gh"]),
        (b"abc def ghijk", [b"abc", b" def", b" ghijk"][:0] or None),
        ("ışığışığ".encode(), None),
        (b"x" * 20, [b"x" * 8, b"x" * 8, b"x" * 4]),
    ):
        parts = list(_cut(text))
        assert b"".join(parts) == text
        assert all(part.decode() is not None and len(part) <= 8 for part in parts)
        assert expected is None or parts == expected


def lower(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    made.normalizer = normalizers.Lowercase()
    return made


def without_a_byte() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[1:]
    return byte_level({c: i for i, c in enumerate(alphabet)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not a tokenizer.json"),
        ("[]", "is not a tokenizer.json"),
        (tokenizers.Tokenizer(models.BPE()).to_str(), "has no token"),
        ('{"model": 3}', "is not a tokenizer.json"),
        (byte_level(end="").to_str(), "no special token that ends a document"),
        (lower(byte_level()).to_str(), "does not give a text back"),
        (without_a_byte().to_str(), "no token for 1 of the bytes"),
    ],
    ids=["cut short", "a list", "empty", "no model", "no end", "lower case", "a byte is missing"],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        open_tokenizer(str(path))
    assert str(error.value).startswith(f"tokenizer={str(path)!r}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("size", "stored"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_the_last_token_of_a_large_vocabulary_is_stored_as_it_is(
    tmp_path: Path, size: int, stored: str
) -> None:
    made = byte_level()
    made.add_tokens([f"«{n}»" for n in range(size - made.get_vocab_size())])
    path = tmp_path / "tokenizer.json"
    path.write_text(made.to_str())
    one = open_tokenizer(str(path))
    assert (one.vocab_size, one.dtype.name) == (size, stored)
    last = f"«{size - 258}»".encode()
    assert one.encode(last).tolist() == [size - 1]
    assert one.decode(one.encode(last)) == last


def test_what_a_file_adds_around_each_text_is_left_out(tmp_path: Path) -> None:
    made = byte_level()
    end = (END, made.token_to_id(END))
    made.post_processor = processors.TemplateProcessing(
        single=f"{END} $A {END}", special_tokens=[end]
    )
    path = tmp_path / "tokenizer.json"
    path.write_text(made.to_str())
    one = open_tokenizer(str(path))
    assert (one.encode_documents([b"a", b"b"]) == one.end).sum() == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer='byts': no such file; give bytes, or the path"):
        open_tokenizer("byts")
    with pytest.raises(ValueError, match="no such file"):
        FileTokenizer(tmp_path / "x.json")


def test_the_end_may_be_named_beside_the_file_and_a_copy_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    made = byte_level(end="<|bitti|>")
    path.write_text(made.to_str())
    with pytest.raises(ValueError, match="eos_token"):
        open_tokenizer(str(path))
    path.with_name("tokenizer_config.json").write_text('{"eos_token": {"content": "<|bitti|>"}}')
    one = FileTokenizer(path)
    assert one.end == made.token_to_id("<|bitti|>")
    copy = tmp_path / "copy"
    copy.mkdir()
    one.write_to(copy)
    other = FileTokenizer(copy)
    assert (other.fingerprint, other.end) == (one.fingerprint, one.end)
    # The layout of the file does not matter, its content does.
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    assert FileTokenizer(path).fingerprint == one.fingerprint
    path.write_text(byte_level(end="<|endoftext|>").to_str())
    assert FileTokenizer(path).fingerprint != one.fingerprint


def test_two_tokenizers_have_token_files_of_their_own(tmp_path: Path, trained: Path) -> None:
    config = dataset(tmp_path)
    (text,), (tokens,) = opened(config), opened(config, str(trained))
    one = open_tokenizer(str(trained))
    assert text.path != tokens.path
    assert one.fingerprint in tokens.path.name
    assert tokens.documents == text.documents == 4
    assert one.decode_documents(np.asarray(tokens.tokens)) == BYTES.decode_documents(
        np.asarray(text.tokens)
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--vocab_size=256"], "vocab_size=256: must be at least 257"),
        (["--sample_mb=0"], "sample_mb=0: must be from 1 to 2000"),
        (["--sample_mb=2001"], "sample_mb=2001: must be from 1 to 2000"),
        (["--out={there}"], "is there and is not replaced"),
        (["--out={there}/x/y.json"], "there is no folder"),
        (["--vocab_size=60000"], "vocab_size=60000: the text has pairs for"),
    ],
)
def test_mistakes_of_the_command(tmp_path: Path, flags: list[str], said: str) -> None:
    config = dataset(tmp_path)
    out = ["--out", str(tmp_path / "t.json"), "--data_paths", config.paths[0]]
    with pytest.raises(ValueError, match=said):
        command.main([*out, *(flag.format(there=config.paths[0]) for flag in flags)])
    assert not (tmp_path / "t.json").exists()


def test_the_command_writes_a_file_that_a_run_can_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.json"
    paths = ",".join(dataset(tmp_path, name=name).paths[0] for name in ("a", "b"))
    flags = ["--vocab_size", "280", "--data_paths", paths, "--data_weights", "3,1"]
    assert command.main(["--out", str(out), *flags, "--validation_fraction", "0.3"]) == 0
    printed = capsys.readouterr().out
    assert "a, held out:" in printed
    assert f"use --tokenizer {out}" in printed
    assert open_tokenizer(str(out)).vocab_size == 280
