"""Tokenizers: text to tokens and back; the table of those that a run may name.

No other module knows the size of the vocabulary, how a token is stored, or which token ends a
document. To add one: a class below, one line in `TOKENIZERS`, its name among the settings' choices.
Imports no JAX. Read `Tokenizer`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
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


def find_tokenizer(config: "Config") -> Tokenizer:
    """Return the tokenizer of a run."""
    return TOKENIZERS[config.data.tokenizer]
