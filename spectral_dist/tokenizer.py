"""`spectral-dist tokenizer`: train a BPE tokenizer on a run's datasets, in their shares.

It takes every flag of training, `--config` among them, writes a `tokenizer.json`, and says how many
bytes a token of each dataset stands for. Read `main`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_dist.command_line import Parser, run_main, say

if TYPE_CHECKING:  # they load numpy and the package tokenizers
    from spectral_dist.data.tokenizer_file import FileTokenizer
    from spectral_dist.data.tokens import TokenFile

_SMALLEST = 257  # the bytes, and the end of a document
# Megabytes. A pair of tokens is counted in 32 bits by versions of the package, which end without
# a word for more (huggingface/tokenizers issue #888); and more text changes few of the merges.
_LARGEST_SAMPLE = 2000
_MEASURED = 2_000_000  # bytes of each part of a dataset that are tokenized for the figures


def main(argv: Sequence[str]) -> int:
    """Train a tokenizer and write its file.

    Raises:
      ValueError: names the flag or the file, and what is wrong.
    """
    options, rest = make_parser().read_some(argv)
    if options.vocab_size < _SMALLEST:
        raise ValueError(
            f"vocab_size={options.vocab_size}: must be at least {_SMALLEST}: the bytes, and the end"
            " of a document"
        )
    if not 1 <= options.sample_mb <= _LARGEST_SAMPLE:
        raise ValueError(f"sample_mb={options.sample_mb}: must be from 1 to {_LARGEST_SAMPLE}")
    out = Path(options.out).expanduser()
    if out.exists():
        raise ValueError(f"out={str(out)!r}: is there and is not replaced; name a new file")
    if not out.parent.is_dir():
        raise ValueError(f"out={str(out)!r}: there is no folder {out.parent}")

    from spectral_dist.flags import load_config

    config = load_config(rest, "spectral_dist.tokenizer")
    if not config.datasets:
        raise ValueError("data_paths: must name at least one text file, or --config datasets")
    # Imported here: they load numpy and the package tokenizers.
    from spectral_dist.atomic_file import write_text
    from spectral_dist.data.tokenizer_file import FileTokenizer
    from spectral_dist.data.tokenizer_training import train_bpe
    from spectral_dist.data.tokens import prepare
    from spectral_dist.settings.datasets import normalise_weights

    weights, message = normalise_weights(config.datasets)
    if message:
        say(message)
    files = prepare(
        config.datasets,
        validation_fraction=0.0 if config.validation else config.data.validation_fraction,
        min_tokens=1,
        allow_replaced=config.data.allow_replaced,
        cache=config.data.data_cache,
        report=say,
    )
    trained = train_bpe(files, weights, options.vocab_size, options.sample_mb * 1_000_000, say)
    try:
        write_text(out, trained.to_str(pretty=True) + "\n")
    except OSError as error:
        raise ValueError(f"out={str(out)!r}: cannot be written: {error.strerror}") from error
    tokenizer = FileTokenizer(out)
    for file in files:
        _measure(file, tokenizer)
    say(f"{out}: {tokenizer.vocab_size:,} tokens, {tokenizer.fingerprint}; use --tokenizer {out}")
    return 0


def _measure(file: "TokenFile", tokenizer: "FileTokenizer") -> None:
    """Say how many bytes a token of a dataset stands for."""
    # Of what it was trained on and of what it was not: the difference is what it learned by heart.
    for name, part in (("training", file.train), ("held out", file.validation)):
        if len(part):
            # The window may begin inside a character, which no tokenizer needs to give back.
            beginning = bytes(part[:_MEASURED]).decode(errors="ignore").encode()
            tokens = tokenizer.encode_documents(beginning.split(b"\0"))
            rate = int(tokenizer.token_bytes[tokens].sum()) / len(tokens)
            say(f"{file.name}, {name}: {rate:.2f} bytes a token")


def make_parser() -> Parser:
    """Return the parser of this command's own flags; every flag of training is one too."""
    parser = Parser(
        prog="python -m spectral_dist.tokenizer",
        allow_abbrev=False,
        description="Train a byte-level BPE tokenizer on the training part of datasets, in the"
        " shares of their weights. Every flag of spectral_dist.train is a flag here too:"
        " --data_paths, --config, ...",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="tokenizer.json to write")
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=32_768,
        help="tokens, with the 256 bytes and the end of a document (default: 32768)",
    )
    parser.add_argument(
        "--sample_mb", type=int, default=500, help="megabytes of text to read (default: 500)"
    )
    return parser


if __name__ == "__main__":
    run_main(main)
