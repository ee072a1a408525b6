"""`python -m spectral_dist.prepare --data_paths a.txt,b.txt`: texts to token files, ahead of a run.

Training does the same on its first start; this does it without a device. It takes every flag of
training, `--config` among them, and shows what is in the text. Read `main`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spectral_dist.command_line import Parser, run_main, say

if TYPE_CHECKING:  # loads numpy
    from spectral_dist.data.tokens import TokenFile

_SHOWN = 300  # tokens of a sample


def main(argv: Sequence[str]) -> int:
    """Build the token files; print one line for each dataset, and what was asked for.

    Raises:
      ValueError: names the flag or the file, and what is wrong.
    """
    options, rest = make_parser().read_some(argv)
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"processes={options.processes}: must be positive")
    if options.sample < 0:
        raise ValueError(f"sample={options.sample}: must not be negative")
    from spectral_dist.data.tokens import prepare, prepare_share  # loads numpy
    from spectral_dist.flags import load_config

    config = load_config(rest, "spectral_dist.prepare")
    if not config.datasets:
        raise ValueError("data_paths: must name at least one text file, or --config datasets")
    if options.shard is not None:
        share = _share(options.shard)
        how: dict[str, Any] = {
            "tokenizer": config.data.tokenizer,
            "processes": options.processes,
            "cache": config.data.data_cache,
        }
        count = prepare_share((*config.datasets, *config.validation), share, **how, report=say)
        say(f"shard {options.shard}: {count:,} files are ready")
        return 0
    files = prepare(
        config.datasets,
        tokenizer=config.data.tokenizer,
        validation_fraction=config.data.validation_fraction,
        min_tokens=1,
        processes=options.processes,
        allow_replaced=config.data.allow_replaced,
        cache=config.data.data_cache,
        report=say,
    )
    for file in files:
        say(
            f"{file.name}: {len(file.tokens):,} tokens in {file.documents:,} documents,"
            f" {len(file.validation):,} held out; sha256 {file.sha256[:12]}; {file.path}"
        )
    if options.stats:
        _print_statistics(files)
    for file in files if options.sample else []:
        from spectral_dist.data.statistics import samples

        for number, text in enumerate(samples(file, options.sample, _SHOWN), 1):
            say(f"---- {file.name}, sample {number} of {options.sample}")
            for line in text.splitlines():
                say(line)
    return 0


def _share(text: str) -> tuple[int, int]:
    """Return which share `--shard` names, and of how many."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"shard={text!r}: must be I/N, with I from 0 to N - 1")
    return int(number), int(count)


def _print_statistics(files: "Sequence[TokenFile]") -> None:
    """Print a table of the datasets' statistics."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from spectral_dist.data.statistics import describe

    table = Table(box=box.ASCII)
    for heading in (
        *("dataset", "MB", "documents", "empty", "median bytes", "longest"),
        *("exact duplicates", "MB in them", "Turkish letters of 1,000", "U+FFFD of 1,000,000"),
    ):
        table.add_column(heading, justify="left" if heading == "dataset" else "right")
    for file in files:
        found = describe(file)
        table.add_row(
            found.name,
            f"{found.bytes / 1e6:,.1f}",
            f"{found.documents:,}",
            f"{found.empty:,}",
            f"{found.median:,}",
            f"{found.longest:,}",
            f"{found.duplicates:,}",
            f"{found.duplicate_bytes / 1e6:,.1f}",
            f"{found.turkish_letters:.1f}",
            f"{found.replacements:.1f}",
        )
    Console(width=160).print(table)


def make_parser() -> Parser:
    """Return the parser of this command's own flags; every flag of training is one too."""
    parser = Parser(
        prog="python -m spectral_dist.prepare",
        allow_abbrev=False,
        description="Make .bin token files and their .bin.json manifests beside text files. Every"
        " flag of spectral_dist.train is a flag here too: --data_paths, --config, ...",
    )
    parser.add_argument(
        "--processes", type=int, help="texts built at a time (default: the cores of this machine)"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="build the files of one of N shares alone, I from 0: for N jobs beside each other",
    )
    parser.add_argument(
        "--stats",
        action="store_true",
        help="print a table: lengths, exact duplicates, letters of Turkish; reads all of it",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="print N pieces of each dataset as the model sees them, ends of documents marked",
    )
    return parser


if __name__ == "__main__":
    run_main(main)
