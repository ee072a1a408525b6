"""What a run was trained on, known again in a text that has changed since.

A checkpoint keeps a sketch of each dataset: a checksum of blocks of the trained part, and the
hashes of a sample of its documents. So a text that grew at its end is scored from there on, and
one that holds trained documents anywhere is told apart from new text. It takes milliseconds,
whatever the size. Knows nothing of checkpoints and imports no JAX. Read `sketch`, then `recognise`.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokenizers import Tokenizer

SAMPLED = 64  # documents of each dataset
_BLOCKS, _BLOCK_TOKENS = 16, 1 << 14
_HASHED_TOKENS = 256  # from the start of a document; its length is hashed as well
_SHORTEST = 32  # tokens: a shorter document may stand in another text by chance
_LONGEST = 1 << 20  # a document without an end in this many tokens is not sampled


def sketch(tokens: Tokens, split: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a sketch of the trained part of a dataset, as JSON can hold it.

    Args:
      tokens: [n], of the whole dataset.
      split: index of the first token that is not trained on.
      tokenizer: of the tokens.

    Returns:
      `crc32` of blocks spread over tokens[:split], and `documents`: [length, hash] of a sample.
    """
    found: dict[tuple[int, str], None] = {}
    for number in range(SAMPLED):
        start = _after_end(tokens, split * number // SAMPLED if number else -1, split, tokenizer)
        end = _after_end(tokens, start, split, tokenizer) if start is not None else None
        if start is not None and end is not None and end - start >= _SHORTEST:
            found[end - start, _hash(tokens[start:end])] = None
    return {
        "crc32": _blocks_crc32(tokens.part(0, split)),
        "documents": [list(one) for one in found],
    }


@dataclass(frozen=True)
class Overlap:
    """How much of what a run was trained on is in a text.

    Attributes:
      split: index of the first token after the trained part, if the text begins with all of it.
      documents: sampled documents of the run that are in the text.
      sampled: how many were looked for.
    """

    split: int
    documents: int
    sampled: int


def recognise(
    tokens: Tokens, datasets: Sequence[Mapping[str, Any]], tokenizer: Tokenizer
) -> Overlap:
    """Return how much of what a run was trained on is in a text.

    Args:
      tokens: [n], of the text.
      datasets: of the run, each with `split` and, from the checkpoints that have one, a `sketch`.
      tokenizer: of the tokens.
    """
    split, wanted = 0, dict[int, set[str]]()
    for dataset in datasets:
        known = dataset.get("sketch")
        if known is None:
            continue
        end = dataset["split"]
        if end <= len(tokens) and _blocks_crc32(tokens.part(0, end)) == known["crc32"]:
            split = max(split, end)
        for length, digest in known["documents"]:
            wanted.setdefault(length, set()).add(digest)
    # All ends at once: one pass over the text, and only documents of a wanted length are hashed.
    ends = tokens.places_of(tokenizer.end) + 1
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    candidates = np.flatnonzero(np.isin(ends - starts, list(wanted)))
    found = {
        (length, digest)
        for start, end in zip(starts[candidates], ends[candidates], strict=True)
        if (digest := _hash(tokens[start:end])) in wanted[length := int(end - start)]
    }
    return Overlap(split, len(found), sum(map(len, wanted.values())))


def _after_end(tokens: Tokens, place: int, split: int, tokenizer: Tokenizer) -> int | None:
    """Return the index after the first end of a document from `place` on; -1 stands before all."""
    if place < 0:
        return 0
    window = tokens[place : min(place + _LONGEST, split)]
    ends = np.flatnonzero(window == tokenizer.end)
    return place + int(ends[0]) + 1 if len(ends) else None


def _hash(document: np.ndarray) -> str:
    return hashlib.blake2b(document[:_HASHED_TOKENS].tobytes(), digest_size=8).hexdigest()


def _blocks_crc32(tokens: Tokens) -> int:
    """Return the CRC-32 of blocks spread evenly from the first token to the last."""
    room = max(len(tokens) - _BLOCK_TOKENS, 0)
    crc = 0
    for start in sorted({room * i // (_BLOCKS - 1) for i in range(_BLOCKS)}):
        crc = zlib.crc32(tokens[start : start + _BLOCK_TOKENS].tobytes(), crc)
    return crc
