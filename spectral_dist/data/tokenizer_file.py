"""Tokenizers from a file: `tokenizer.json` of Hugging Face's tokenizers, such as a byte-level BPE.

Owns which of them can be used: those that give every text back byte by byte, since bits per byte
count the bytes of the targets. Training one is tokenizer_training.py. Imports no JAX and loads the
package only here. Read `FileTokenizer`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from spectral_dist.atomic_file import write_text
from spectral_dist.data.tokenizers import Tokenizer

FILE = "tokenizer.json"
# The names that the end of a document has in well-known vocabularies, where no
# tokenizer_config.json beside the file says `eos_token`.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>")
_PIECE = 1 << 20  # bytes of a document that are encoded at a time
_BATCH = 16  # such pieces
# What has gone wrong in tokenizers: letters of Turkish, case, blanks, line ends, marks, emoji.
_PROBE = (
    "IıİiŞşĞğÇçÖöÜü Âlâ Türkiye'nin  iki   boşluk\n\n\tsekme\r\nsatır  \n"
    " def f(x):\n    return x[0] + 1_000  # ½ ﬁ № “tırnak” — 😀👩\u200d👧 中文 العربية\u00a0 son "
)


class FileTokenizer(Tokenizer):
    """The tokenizer of a `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        """Read and check a file.

        Args:
          path: of the file, or of the folder that holds `tokenizer.json`.

        Raises:
          ValueError: names the file and what is wrong with it.
        """
        self.path = path / FILE if path.is_dir() else path
        try:
            self._content = self.path.read_text(encoding="utf-8")
            values = json.loads(self._content)
            self._own = tokenizers.Tokenizer.from_str(self._content)
        except FileNotFoundError:
            raise self._wrong("no such file; give bytes, or the path of a tokenizer.json") from None
        except OSError as error:
            raise self._wrong(f"cannot be read: {error.strerror}") from error
        # The package raises a bare Exception for a file that it does not understand.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise self._wrong(f"is not a tokenizer.json: {reason}") from error
        # The words of a special token inside a text are text: no text becomes the end.
        self._own.encode_special_tokens = True
        self._own.no_padding()
        self._own.no_truncation()
        vocabulary: dict[str, int] = self._own.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise self._wrong("has no token")
        self.vocab_size = max(vocabulary.values()) + 1
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._special: dict[str, int] = {
            token["content"]: token["id"]
            for token in values.get("added_tokens", ())
            if token.get("special")
        }
        self.end = self._find_end()
        self._texts = self._texts_of(vocabulary, values)
        self.token_bytes = np.array([len(text) for text in self._texts], np.int32)
        self.token_bytes[self.end] = 1
        # Of what it does and not of the file's layout: a copy that was written anew is the same.
        canonical = json.dumps([values, self.end], sort_keys=True, ensure_ascii=True)
        self.fingerprint = f"bpe-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"
        self._check_exact()

    def encode(self, text: bytes) -> np.ndarray:
        """Return the tokens, `dtype` [n]; a text of many megabytes is cut after lines."""
        return self._encode_all([text])[0]

    def decode(self, tokens: np.ndarray) -> bytes:
        """Return the text of tokens [n]; a token that the vocabulary lacks has none."""
        return b"".join([self._texts[token] for token in tokens.tolist()])

    def encode_documents(self, pieces: Sequence[bytes]) -> np.ndarray:
        """As for any tokenizer."""
        end = np.array([self.end], self.dtype)
        parts: list[np.ndarray] = []
        for number, tokens in enumerate(self._encode_all(pieces)):
            parts += [end, tokens] if number else [tokens]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def write_to(self, folder: Path) -> None:
        """Write a copy into a folder, with which `transformers` can load it, too.

        Raises:
          OSError: if the folder cannot be written.
        """
        end = next(token for token, number in self._special.items() if number == self.end)
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": end}
        write_text(folder / FILE, self._content)
        write_text(folder / "tokenizer_config.json", json.dumps(told, indent=2) + "\n")

    @cached_property
    def line_ends(self) -> np.ndarray:
        """The tokens whose text ends with a line feed."""
        found = [t for t, text in enumerate(self._texts) if text.endswith(b"\n") and t != self.end]
        return np.array(found, self.dtype)

    def _encode_all(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Return the tokens of some texts, each."""
        # Cut by the text alone, so that its tokens do not depend on how a file was read.
        cut = [list(_cut(text)) for text in texts]
        pieces = [piece for parts in cut for piece in parts]
        found: list[np.ndarray] = []
        for group in _groups(pieces):
            # In parallel on all cores, unless TOKENIZERS_PARALLELISM=false.
            encoded = self._own.encode_batch_fast(
                [piece.decode("utf-8", "replace") for piece in group], add_special_tokens=False
            )
            found += [np.array(one.ids, self.dtype) for one in encoded]
        left = iter(found)
        return [
            np.concatenate([next(left) for _ in parts]) if parts else np.empty(0, self.dtype)
            for parts in cut
        ]

    def _find_end(self) -> int:
        """Return the token that ends a document."""
        beside = self.path.with_name("tokenizer_config.json")
        names = list(_ENDS)
        if beside.is_file():
            try:
                told = json.loads(beside.read_text(encoding="utf-8")).get("eos_token")
            except (OSError, ValueError, AttributeError):
                told = None
            told = told.get("content") if isinstance(told, dict) else told
            names = [told, *names] if isinstance(told, str) else names
        for name in names:
            if name in self._special:
                return self._special[name]
        raise self._wrong(
            f"has no special token that ends a document, one of {', '.join(_ENDS)}, or the"
            " eos_token of a tokenizer_config.json beside it"
        )

    def _texts_of(self, vocabulary: dict[str, int], values: dict[str, Any]) -> list[bytes]:
        """Return the bytes that each token stands for."""
        added = {token["id"]: token["content"] for token in values.get("added_tokens", ())}
        byte_level = "ByteLevel" in _kinds(values.get("decoder"))
        texts = [b""] * self.vocab_size
        for token, number in vocabulary.items():
            if number in added:
                texts[number] = added[number].encode()
            elif byte_level:
                texts[number] = _from_byte_level(token)
            elif byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", token):
                texts[number] = bytes.fromhex(byte[1])  # byte fallback of SentencePiece
            else:
                texts[number] = token.replace("\u2581", " ").encode()
        return texts

    def _check_exact(self) -> None:
        """Raise ValueError if some text does not come back from its tokens."""
        single = {text[0] for text in self._texts if len(text) == 1}
        # The bytes that UTF-8 has, without NUL, which no text holds.
        missing = {*range(1, 0xC0), *range(0xC2, 0xF5)} - single
        if missing:
            raise self._wrong(
                f"has no token for {len(missing)} of the bytes of UTF-8, so it cannot write every"
                " text; use a byte-level one, or one with byte fallback"
            )
        for line in (_PROBE, *_PROBE.splitlines(keepends=True)):
            back = self.decode(self.encode(line.encode())).decode(errors="replace")
            if back != line:
                at = next((i for i, (a, b) in enumerate(zip(line, back)) if a != b), 0)  # noqa: B905
                raise self._wrong(
                    "does not give a text back as it was:"
                    f" {line[at : at + 8]!r} becomes {back[at : at + 8]!r}, and bits per byte would"
                    " be of another text; use one that does not normalise"
                )

    def _wrong(self, reason: str) -> ValueError:
        return ValueError(f"tokenizer={str(self.path)!r}: {reason}")


def _kinds(part: Any) -> set[str]:
    """Return the types that a part of a tokenizer.json is made of."""
    if not isinstance(part, dict):
        return set()
    inner = part.get("decoders") or ()
    return {str(part.get("type"))}.union(*map(_kinds, inner))


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable characters of Latin-1 stand for themselves, the other bytes for U+0100 and on, in
    order (Radford et al. 2019, the code of GPT-2).
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _from_byte_level(token: str) -> bytes:
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def _cut(text: bytes) -> Iterator[bytes]:
    """Yield a text in pieces of at most a megabyte: after a line, or else after a blank."""
    start = 0
    while len(text) - start > _PIECE:
        stop = start + _PIECE
        for mark in (b"\n", b" "):
            if (found := text.rfind(mark, start, stop)) > start:
                stop = found + (mark == b"\n")  # a blank belongs to the word that follows it
                break
        else:
            while text[stop] & 0xC0 == 0x80 and stop > start + 1:  # not inside a character
                stop -= 1
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def _groups(pieces: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yield pieces in groups of limited size: an encoding takes many times its text's memory."""
    group: list[bytes] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece)
        if size >= _BATCH * _PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group
