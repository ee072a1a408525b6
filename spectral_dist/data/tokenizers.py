"""Tokenizers: text to tokens and back; those of this package, and those of a file.

No other module knows the size of the vocabulary, how a token is stored, or which token ends a
document. One from a file is in tokenizer_file.py. To add one of our own: a class below and one line
in `TOKENIZERS`. Imports no JAX. Read `Tokenizer`.
"""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # a worker process that builds a .bin starts faster without the settings
    from spectral_dist.settings import Config


class Tokenizer(ABC):
    """A tokenizer: text to tokens and back.

    Attributes:
      vocab_size: V; tokens are 0 .. V - 1.
      end: the token that ends every document; no text becomes it.
      dtype: how a token is stored in a .bin: unsigned, little-endian on every machine.
      token_bytes: int [V], bytes of text that each token stands for; `end` counts as 1, so that
        bits per byte mean the same for any tokenizer.
      fingerprint: different for every tokenizer that makes other tokens; part of a file's name.
      joins: whether a text may be cut between any two characters and its pieces tokenized one by
        one, with the same tokens.
    """

    vocab_size: int
    end: int
    dtype: np.dtype
    token_bytes: np.ndarray
    fingerprint: str
    joins: bool = False

    @abstractmethod
    def encode(self, text: bytes) -> np.ndarray:
        """Return the tokens, `dtype` [n], of UTF-8 text without a NUL."""

    @abstractmethod
    def decode(self, tokens: np.ndarray) -> bytes:
        """Return the text of tokens [n], among which `end` is not."""

    def write_to(self, folder: Path) -> None:  # noqa: B027
        """Write into a folder what this tokenizer must be read from again: for some nothing."""

    def encode_documents(self, pieces: Sequence[bytes]) -> np.ndarray:
        """Return the tokens of pieces of text with `end` between them, as a .bin holds them."""
        parts: list[np.ndarray] = []
        for number, piece in enumerate(pieces):
            if number:
                parts.append(np.array([self.end], self.dtype))
            if piece:
                parts.append(self.encode(piece))
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def decode_documents(self, tokens: np.ndarray) -> list[bytes]:
        """Return the texts between the `end` tokens: the inverse of `encode_documents`."""
        ends = np.flatnonzero(tokens == self.end)
        edges = np.concatenate([[-1], ends, [len(tokens)]])
        return [self.decode(tokens[after + 1 : before]) for after, before in pairwise(edges)]

    @cached_property
    def line_ends(self) -> np.ndarray:
        """The tokens whose text ends with a line feed."""
        every = (t for t in range(self.vocab_size) if t != self.end)
        found = [t for t in every if self.decode(np.array([t], self.dtype)).endswith(b"\n")]
        return np.array(found, self.dtype)

    def inside_character(self, token: int) -> bool:
        """Return whether a token's text begins in the middle of a character."""
        if token == self.end:
            return False
        text = self.decode(np.array([token], self.dtype))
        return bool(text) and text[0] & 0xC0 == 0x80  # a continuation byte of UTF-8


class ByteTokenizer(Tokenizer):
    """The byte tokenizer: every byte is a token; byte 0, which no text holds, ends a document."""

    vocab_size = 256
    end = 0
    dtype = np.dtype(np.uint8)
    token_bytes = np.ones(256, np.int32)
    fingerprint = "bytes"
    joins = True

    def encode(self, text: bytes) -> np.ndarray:
        """Return the bytes, a view of them."""
        return np.frombuffer(text, np.uint8)

    def decode(self, tokens: np.ndarray) -> bytes:
        """Return the tokens as bytes."""
        return tokens.tobytes()

    def encode_documents(self, pieces: Sequence[bytes]) -> np.ndarray:
        """As for any tokenizer."""
        # One call for a block of a million bytes: 285 to 447 MB/s of text in all.
        return np.frombuffer(b"\0".join(pieces), np.uint8)

    def decode_documents(self, tokens: np.ndarray) -> list[bytes]:
        """As for any tokenizer."""
        return tokens.tobytes().split(b"\0")


BYTES = ByteTokenizer()
TOKENIZERS: dict[str, Tokenizer] = {"bytes": BYTES}


def open_tokenizer(name: str) -> Tokenizer:
    """Return a tokenizer by its name in `TOKENIZERS`, or by the path of a `tokenizer.json`.

    Raises:
      ValueError: if there is no such file, or it cannot be used; says why.
    """
    if name in TOKENIZERS:
        return TOKENIZERS[name]
    path = Path(name).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        stat = path.stat()
    except OSError:
        raise ValueError(
            f"tokenizer={name!r}: no such file; give {', '.join(TOKENIZERS)}, or the path of a"
            " tokenizer.json"
        ) from None
    return _open_file(path, stat.st_mtime_ns, stat.st_size)


def own_copy(config: "Config", folder: Path) -> "Config":
    """Return the settings of a run with the copy of its tokenizer that its folder holds."""
    copy = folder / "tokenizer.json"
    if config.data.tokenizer in TOKENIZERS or not copy.is_file():
        return config
    data = dataclasses.replace(config.data, tokenizer=str(copy))
    return dataclasses.replace(config, data=data)


@functools.lru_cache
def _open_file(path: Path, mtime_ns: int, size: int) -> Tokenizer:
    """Return the tokenizer of a file, read once for each of its versions."""
    del mtime_ns, size
    # Imported here, so that a run on bytes does not load the package.
    from spectral_dist.data.tokenizer_file import FileTokenizer

    return FileTokenizer(path)


def find_tokenizer(config: "Config") -> Tokenizer:
    """Return the tokenizer of a run; raises as `open_tokenizer` does."""
    return open_tokenizer(config.data.tokenizer)
