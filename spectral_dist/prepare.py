"""`python -m spectral_dist.prepare --data_paths a.txt,b.txt`: texts to token files, ahead of a run.

Training does the same on its first start; this does it without a device. It takes every flag of
training, `--config` among them, and shows what is in the text. Read `main`.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_dist.command_line import Parser, run_main, say

if TYPE_CHECKING:  # loads numpy
    from spectral_dist.data.tokens import TokenFile
    from spectral_dist.settings import Config

_SHOWN = 300  # tokens of a sample


def main(argv: Sequence[str]) -> int:
    """Build the token files; print one line for each dataset, and what was asked for.

    Raises:
      ValueError: names the flag or the file, and what is wrong.
    """
    options, rest = make_parser().read_some(argv)
    _check(options)
    from spectral_dist.data.tokens import prepare, prepare_share  # loads numpy
    from spectral_dist.flags import load_config

    config = load_config(rest, "spectral_dist.prepare")
    if not config.datasets:
        raise ValueError("data_paths: must name at least one text file, or --config datasets")
    how: dict[str, Any] = {
        "tokenizer": config.data.tokenizer,
        "processes": options.processes,
        "cache": config.data.data_cache,
        "report": say,
    }
    if options.shard is not None:
        share = _share(options.shard)
        count = prepare_share((*config.datasets, *config.validation), share, **how)
        say(f"shard {options.shard}: {count:,} files are ready")
        return 0
    how |= {"min_tokens": 1, "allow_replaced": config.data.allow_replaced}
    tail = 0.0 if config.validation else config.data.validation_fraction
    files = prepare(config.datasets, validation_fraction=tail, **how)
    held_out = prepare(config.validation, validation_fraction=1.0, **how)
    for file in [*files, *held_out]:
        say(
            f"{file.name}: {len(file.tokens):,} tokens in {file.documents:,} documents,"
            f" {len(file.validation):,} held out; sha256 {file.sha256[:12]}; {file.path}"
        )
    if options.stats:
        _print_statistics(files)
        _print_contamination(held_out or files, files)
    if options.sample:
        _print_samples(files, options.sample)
    if options.deduplicate is not None:
        _deduplicate(config, files, held_out, options.deduplicate)
    return 0


def _check(options: Namespace) -> None:
    """Raise ValueError for a mistake that is seen before any work."""
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"processes={options.processes}: must be positive")
    if options.sample < 0:
        raise ValueError(f"sample={options.sample}: must not be negative")
    if options.shard is not None and (options.stats or options.sample or options.deduplicate):
        raise ValueError("shard: builds tokens alone; give stats, sample, deduplicate without it")
    if options.deduplicate is not None:
        from spectral_dist.data.deduplicate import check_new  # loads numpy

        check_new(options.deduplicate)


def _deduplicate(
    config: "Config", files: "Sequence[TokenFile]", held_out: "Sequence[TokenFile]", folder: Path
) -> None:
    """Write the datasets with each document once; print the settings that read them."""
    from spectral_dist.data.deduplicate import deduplicate

    written = deduplicate(files, held_out, folder)
    for one in written:
        say(
            f"{one.name}: {one.kept:,} of {one.documents:,} documents and {one.kept_tokens:,} of"
            f" {one.tokens:,} tokens are left: {one.repeated:,} like an earlier one,"
            f" {one.held_out:,} in held-out text, {one.empty:,} empty"
        )
    say("datasets:")
    for one, dataset in zip(written, config.datasets, strict=True):
        weight = "" if dataset.weight is None else f", weight: {dataset.weight}"
        path = str(one.binary).replace("'", "''")
        say(f"  - {{name: {one.name}, paths: ['{path}']{weight}}}")


def _print_samples(files: "Sequence[TokenFile]", count: int) -> None:
    """Print pieces of each dataset as the model sees them."""
    from spectral_dist.data.statistics import samples

    for file in files:
        for number, text in enumerate(samples(file, count, _SHOWN), 1):
            say(f"---- {file.name}, sample {number} of {count}")
            for line in text.splitlines():
                say(line)


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
        *("exact duplicates", "MB in them", "repeated lines"),
        *("Turkish letters of 1,000", "U+FFFD of 1,000,000"),
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
            f"{found.repeated_lines:.1%}",
            f"{found.turkish_letters:.1f}",
            f"{found.replacements:.1f}",
        )
    Console(width=160).print(table)


def _print_contamination(held_out: "Sequence[TokenFile]", trained: "Sequence[TokenFile]") -> None:
    """Print how much of the held-out text is trained on, and a warning where it is much."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from spectral_dist.data.contamination import WINDOW, find_contamination

    table = Table(box=box.ASCII, title="held-out text that stands in the training text")
    for heading in (
        *("held out", "documents", f"share {WINDOW} bytes", "half or more", "of all text"),
        *("most of it in", "such as"),
    ):
        words = heading in ("held out", "most of it in", "such as")
        table.add_column(heading, justify="left" if words else "right")
    for found in find_contamination(held_out, trained):
        table.add_row(
            found.name,
            f"{found.documents:,}",
            f"{found.touched:,}",
            f"{found.mostly:,}",
            f"{found.found / max(found.windows, 1):.2%}",
            found.trained,
            repr(found.example.decode(errors="replace"))[1:-1],
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
        help="print tables: lengths, exact duplicates, letters of Turkish, held-out text that is"
        " trained on; reads all of it, twice",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="print N pieces of each dataset as the model sees them, ends of documents marked",
    )
    parser.add_argument(
        "--deduplicate",
        type=Path,
        metavar="FOLDER",
        help="write the datasets to a new folder with each document once, and without those of"
        " validation:; reads all of it, three times",
    )
    return parser


if __name__ == "__main__":
    run_main(main)
