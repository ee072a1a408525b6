"""The split of a dataset into training and validation (held-out) tokens, between documents.

Knows nothing of files and imports no JAX. Read `split_point`.
"""

from collections.abc import Sequence

import numpy as np

from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokenizers import BYTES, Tokenizer

# How far to look for the end of a document, to each side: under half a second of reading.
_SEARCH_TOKENS = 1 << 28
_SEARCH_BLOCK = 1 << 20


def split_point(
    tokens: Tokens,
    validation_fraction: float,
    min_tokens: int,
    tokenizer: Tokenizer = BYTES,
) -> tuple[int, str | None]:
    """Return the index of the first held-out token, and a remark if no document begins there.

    It is the document boundary nearest to the wanted share that leaves at least half of the tokens
    to training. Only the tokens near the wanted place are read.

    Args:
      tokens: [n], n >= 2 * min_tokens.
      validation_fraction: share to hold out, above 0 and below 1.
      min_tokens: tokens to leave on each side, at least 1.
      tokenizer: of the tokens.
    """
    n = len(tokens)
    low, high = max(min_tokens, n // 2 if validation_fraction <= 0.5 else 1), n - min_tokens
    target = min(max(round((1 - validation_fraction) * n), low), high)
    # The held-out part begins after the token that is looked for: one before the boundary.
    window = (target - 1, low - 1, high - 1)
    if (before := _nearest(tokens, [tokenizer.end], *window)) is not None:
        return before + 1, None
    if (before := _nearest(tokens, tokenizer.line_ends, *window)) is not None:
        return (
            before + 1,
            "no document ends near the held-out share: split at a line break instead",
        )
    # A long text of one line. At least no character is cut in two.
    while target < high and tokenizer.inside_character(int(tokens[target])):
        target += 1
    return target, "no document or line ends near the held-out share: split inside a line"


def _nearest(
    tokens: Tokens, wanted: Sequence[int] | np.ndarray, target: int, low: int, high: int
) -> int | None:
    """Return the index in [low, high] nearest to `target` where a wanted token stands, or None."""
    # Outwards in blocks, to both sides at once: the nearest is usually in the first block.
    for distance in range(0, _SEARCH_TOKENS, _SEARCH_BLOCK):
        left_end, left_start = target - distance + 1, target - distance - _SEARCH_BLOCK + 1
        left = _places(tokens[max(left_start, low) : max(left_end, low)], wanted)
        right_start, right_end = target + distance, target + distance + _SEARCH_BLOCK
        right = _places(tokens[right_start : min(right_end, high + 1)], wanted)
        found = []
        if len(left):
            found.append(max(left_start, low) + int(left[-1]))
        if len(right):
            found.append(right_start + int(right[0]))
        if found:
            return min(found, key=lambda index: abs(index - target))
        if left_start <= low and right_end > high:
            return None
    return None


def _places(tokens: np.ndarray, wanted: Sequence[int] | np.ndarray) -> np.ndarray:
    # `isin` takes several times as long as one comparison, and there is usually one token.
    return np.flatnonzero(tokens == wanted[0] if len(wanted) == 1 else np.isin(tokens, wanted))
