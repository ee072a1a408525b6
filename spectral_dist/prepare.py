"""`python -m spectral_dist.prepare --data_paths a.txt,b.txt`: texts to token files, ahead of a run.

Training does the same on its first start; this does it without a device. Read `main`.
"""

from collections.abc import Sequence

from spectral_dist.command_line import Parser, run_main, say


def main(argv: Sequence[str]) -> int:
    """Build the token files and print one line for each.

    Raises:
      ValueError: names the flag or the file, and what is wrong.
    """
    options = make_parser().read(argv)
    paths = [path.strip() for path in options.data_paths.split(",") if path.strip()]
    if not paths:
        raise ValueError(f"data_paths={options.data_paths!r}: must name at least one text file")
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"processes={options.processes}: must be positive")
    fraction = options.validation_fraction
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction={fraction}: must be above 0 and below 1")
    from spectral_dist.data.tokens import prepare  # loads numpy

    files = prepare(
        paths,
        validation_fraction=fraction,
        min_tokens=1,
        processes=options.processes,
        allow_replaced=options.allow_replaced == "true",
        report=say,
    )
    for file in files:
        say(
            f"{file.name}: {len(file.tokens):,} tokens in {file.documents:,} documents,"
            f" {len(file.validation):,} held out; sha256 {file.sha256[:12]}; {file.path}"
        )
    return 0


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(
        prog="python -m spectral_dist.prepare",
        allow_abbrev=False,
        description="Make .bin token files and their .bin.json manifests beside text files.",
    )
    parser.add_argument("--data_paths", required=True, help="text files, joined by commas")
    parser.add_argument(
        "--processes", type=int, help="texts built at a time (default: the cores of this machine)"
    )
    parser.add_argument(
        "--validation_fraction",
        type=float,
        default=0.01,
        help="share of each text held out, for the figures printed here (default: 0.01)",
    )
    add_allow_replaced(parser)
    return parser


def add_allow_replaced(parser: Parser) -> None:
    """Add the flag of the setting `allow_replaced` to a command that reads texts."""
    parser.add_argument(
        "--allow_replaced",
        nargs="?",
        const="true",
        default="false",
        choices=("true", "false"),
        help="take texts of which more than a thousandth is no UTF-8",
    )


if __name__ == "__main__":
    run_main(main)
