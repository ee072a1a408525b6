"""Tokenizers: what a token is, and the table of those that a run may name.

Nothing else knows how large the vocabulary is, how a token is stored, or which one ends a document.
To add one: a class below, one line in `TOKENIZERS`, its name among the settings' choices.
Imports no JAX. Read `Tokenizer`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the process that builds a text starts without the settings
    from spectral_dist.settings import Config


class Tokenizer(ABC):
    """Text to tokens and back.

    Attributes:
      vocab_size: V; tokens are 0 .. V - 1.
      end: the token that ends every document; no text becomes it.
      dtype: how a token is stored in a .bin: unsigned, one for each machine (little-endian).
      token_bytes: int [V], bytes of text that each token stands for; `end` counts as 1, for the
        separator that it stands for, so that bits per byte mean the same for any tokenizer.
      fingerprint: tells it from every tokenizer that makes other tokens; part of a file's name.
      joins: whether tokens of two pieces of text are those of the whole, wherever it is cut
        between two characters.
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
        """Return the tokens of pieces with `end` between each two: the rule of a .bin."""
        parts: list[np.ndarray] = []
        for number, piece in enumerate(pieces):
            if number:
                parts.append(np.array([self.end], self.dtype))
            if piece:
                parts.append(self.encode(piece))
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def decode_documents(self, tokens: np.ndarray) -> list[bytes]:
        """Return the texts between the `end`s, one more than there are: undoes the above."""
        ends = np.flatnonzero(tokens == self.end)
        edges = np.concatenate([[-1], ends, [len(tokens)]])
        return [self.decode(tokens[after + 1 : before]) for after, before in pairwise(edges)]

    @cached_property
    def line_ends(self) -> np.ndarray:
        """The tokens after which a line of text is over."""
        every = (t for t in range(self.vocab_size) if t != self.end)
        found = [t for t in every if self.decode(np.array([t], self.dtype)).endswith(b"\n")]
        return np.array(found, self.dtype)

    def inside_character(self, token: int) -> bool:
        """Tell whether a token's text begins in the middle of a character."""
        if token == self.end:
            return False
        text = self.decode(np.array([token], self.dtype))
        return bool(text) and text[0] & 0xC0 == 0x80


class ByteTokenizer(Tokenizer):
    """Every byte of the text is a token; byte 0, which no text holds, ends a document."""

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
        """As for any tokenizer; one call for a million bytes, since this is the fast path."""
        return np.frombuffer(b"\0".join(pieces), np.uint8)

    def decode_documents(self, tokens: np.ndarray) -> list[bytes]:
        """As for any tokenizer."""
        return tokens.tobytes().split(b"\0")


BYTES = ByteTokenizer()
TOKENIZERS: dict[str, Tokenizer] = {"bytes": BYTES}


def find_tokenizer(config: "Config") -> Tokenizer:
    """Return the tokenizer of a run."""
    return TOKENIZERS[config.data.tokenizer]
