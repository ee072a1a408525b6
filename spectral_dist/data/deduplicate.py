"""Exact deduplication: datasets written anew with each document once.

A document is left out if it is like an earlier one of any of the datasets, byte for byte but for
white space around it; if it stands in held-out text; or if it is empty. Three passes over the
tokens; some 65 bytes of memory for each document. Near-duplicates are not ours. Imports no JAX.
Read `deduplicate`.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectral_dist.atomic_file import replacing
from spectral_dist.data.formats import TEXT_FIELD
from spectral_dist.data.manifest import FORMAT_VERSION, Manifest, blocks_crc32, write_manifest
from spectral_dist.data.statistics import documents
from spectral_dist.data.tokens import TokenFile

_BLOCK = 1 << 24  # tokens read at a time
_DIGEST_BYTES = 16  # among 10**12 documents, two that differ are alike with a chance of 10**-15


@dataclass(frozen=True)
class Deduplicated:
    """What became of one dataset.

    Attributes:
      name: of the dataset.
      binary: its new tokens.
      documents: that it had.
      tokens: that it had, the ends of documents included.
      kept: documents that are left.
      kept_tokens: tokens that are left.
      repeated: documents left out that are like an earlier one.
      held_out: documents left out that stand in held-out text.
      empty: documents left out that hold nothing but white space.
    """

    name: str
    binary: Path
    documents: int
    tokens: int
    kept: int
    kept_tokens: int
    repeated: int
    held_out: int
    empty: int


def check_new(folder: Path) -> None:
    """Raise ValueError if the folder to be written is there already."""
    if folder.exists():
        raise ValueError(f"deduplicate={folder}: is there already; name a new folder")


def deduplicate(
    files: Sequence[TokenFile], held_out: Sequence[TokenFile], folder: Path
) -> list[Deduplicated]:
    """Write datasets anew with each document once: `folder`/NAME.bin, with its manifest.

    The first of several stays, in the order of the datasets and of their files, so the result does
    not depend on who made it.

    Args:
      files: the datasets, all of one tokenizer.
      held_out: datasets whose documents are left out of the others.
      folder: a new folder; it appears when all is written, or not at all.

    Raises:
      ValueError: if the folder is there already or cannot be written, or nothing would be left of a
        dataset.
    """
    check_new(folder)
    found = [_documents(file) for file in (*held_out, *files)]
    first = _first_of_its_kind([digests for digests, _ in found])
    known = np.unique(np.concatenate([d for d, _ in found[: len(held_out)]] or [_NONE]))
    results: list[Deduplicated] = []
    try:
        with _appearing(folder) as written:
            own = zip(files, found[len(held_out) :], first[len(held_out) :], strict=True)
            for file, (digests, stops), once in own:
                empty = digests == _EMPTY
                inside = np.isin(digests, known) & ~empty
                keep = once & ~empty  # of held-out text the first is there
                if not keep.any():
                    raise ValueError(
                        f"deduplicate={folder}: nothing would be left of {file.name}, all of whose"
                        " documents stand elsewhere"
                    )
                tokens = _write(file, stops, keep, written / f"{file.name}.bin")
                results.append(
                    Deduplicated(
                        name=file.name,
                        binary=folder / f"{file.name}.bin",
                        documents=len(stops),
                        tokens=len(file.tokens),
                        kept=int(keep.sum()),
                        kept_tokens=tokens,
                        repeated=int((~once & ~empty & ~inside).sum()),
                        held_out=int(inside.sum()),
                        empty=int(empty.sum()),
                    )
                )
    except OSError as error:
        raise ValueError(f"deduplicate={folder}: {error.strerror or error}") from error
    return results


# A digest as one number with two parts: numpy compares those of a structure field by field.
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
_NONE = np.empty(0, _DIGEST)
_EMPTY = np.frombuffer(hashlib.blake2b(digest_size=_DIGEST_BYTES).digest(), _DIGEST)


def _documents(file: TokenFile) -> tuple[np.ndarray, np.ndarray]:
    """Return the digest of each document [N], and the index of the token that ends it, int64 [N].

    The last document may lack that token: its index is then the number of tokens.
    """
    # Without the white space around it: the last line of a plain text ends, and that of a record
    # often does not.
    digests = bytearray()
    for document in documents(file.tokens, file.tokenizer):
        digests += hashlib.blake2b(document.strip(), digest_size=_DIGEST_BYTES).digest()
    found, stops = np.frombuffer(digests, _DIGEST), file.tokens.places_of(file.tokenizer.end)
    if len(stops) < len(found):
        stops = np.append(stops, len(file.tokens))
    return found, stops


def _first_of_its_kind(digests: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return which documents are like no earlier one, of the same dataset or another; bool [N]."""
    every = np.concatenate(digests)
    # Stable: of those that are alike, the first comes first.
    order = np.lexsort((every["low"], every["high"]))
    sorted_ = every[order]
    first = np.ones(len(every), bool)
    first[order[1:]] = sorted_[1:] != sorted_[:-1]
    return np.split(first, np.cumsum([len(d) for d in digests])[:-1])


def _write(file: TokenFile, stops: np.ndarray, keep: np.ndarray, binary: Path) -> int:
    """Write the documents that are kept, and their manifest; return the number of tokens."""
    digest, tokens, end = hashlib.sha256(), 0, np.array([file.tokenizer.end], file.tokens.dtype)
    with replacing(binary) as output:
        for start, stop in _runs(stops, keep):
            for at in range(start, stop, _BLOCK):
                block = file.tokens[at : min(at + _BLOCK, stop)]
                # The last document may lack the token that ends it.
                if at + len(block) < min(at + _BLOCK, stop):
                    block = np.concatenate([block, end])
                digest.update(block.data)
                output.write(block.data)
                tokens += len(block)
        output.flush()
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            dtype=file.tokenizer.dtype.name,
            tokenizer=file.tokenizer.fingerprint,
            kind="tokens",
            field=TEXT_FIELD,
            documents=int(keep.sum()),
            tokens=tokens,
            source_bytes=tokens * file.tokenizer.dtype.itemsize,
            source_sha256=digest.hexdigest(),
            source_mtime_ns=0,
            blocks_crc32=blocks_crc32(Path(output.name)),
        )
        write_manifest(manifest, binary)
    return tokens


def _runs(stops: np.ndarray, keep: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first token, last + 1) of each run of documents that are kept."""
    edges = np.flatnonzero(np.diff(keep, prepend=False, append=False))
    for first, after in edges.reshape(-1, 2).tolist():
        yield (int(stops[first - 1]) + 1 if first else 0), int(stops[after - 1]) + 1


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Make a folder under a temporary name, which has its own at the end of the block."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
