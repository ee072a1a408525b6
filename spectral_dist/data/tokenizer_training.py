"""Training a tokenizer: a byte-level BPE of a mixture's text, by Hugging Face's tokenizers.

Sources: Sennrich et al. 2016, arXiv:1508.07909; by bytes, Radford et al. 2019 (GPT-2).

Owns which text it is trained on, and how text is cut into words before pairs are merged. Read
`train_bpe`.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from spectral_dist.data.tokens import TokenFile

END = "<|endoftext|>"
# A word with its accents and at most one sign before it (a blank, an apostrophe, a bracket); a
# single digit; signs with the line ends after them; line ends; blanks, the last one before a word
# aside. Of Turkish: "Türkiye'nin" is Türkiye and 'nin, so that a suffix is the same after any name.
_WORDS = (
    r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LONGEST = 24  # characters of a token: longer ones are of tables and rules, seen in few texts
_BLOCK = 1 << 20  # bytes read at one place


def train_bpe(
    files: Sequence[TokenFile],
    weights: Sequence[float],
    vocab_size: int,
    sample_bytes: int,
    report: Callable[[str], None],
) -> Tokenizer:
    """Return a byte-level BPE, trained on a sample of the training part of some datasets.

    Args:
      files: the datasets, of the byte tokenizer; what they hold out is not read.
      weights: share of each in the sample; they sum to 1.
      vocab_size: V, with the 256 bytes and the end of a document; at least 257.
      sample_bytes: of text in all; of a dataset with less than its share all is taken.
      report: takes a line for each dataset.

    Raises:
      ValueError: if the text has too few pairs of its own for such a vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST,
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for file, weight in zip(files, weights, strict=True):
            taken = 0
            for block in sample_blocks(file, int(weight * sample_bytes)):
                taken += len(block)
                for piece in file.tokenizer.decode_documents(block):
                    # The ends of a block may cut a character.
                    yield piece.decode(errors="ignore")
            report(f"{file.name}: {taken / 1e6:,.1f} MB of {len(file.train) / 1e6:,.1f} MB read")

    tokenizer.train_from_iterator(texts(), trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the text has pairs for {found:,} tokens only; give more text"
            " or a smaller vocabulary"
        )
    return tokenizer


def sample_blocks(file: TokenFile, count: int) -> Iterator[np.ndarray]:
    """Yield blocks of a dataset's training part, evenly spread, `count` tokens in all at most."""
    tokens = file.train
    blocks = max(1, -(-min(count, len(tokens)) // _BLOCK))
    size = min(count, len(tokens)) // blocks
    for number in range(blocks):
        start = number * len(tokens) // blocks
        yield np.asarray(tokens[start : start + size])
