"""`spectral-dist report RUN ...`: draw report.html of a run, or one page that compares several."""

from collections.abc import Sequence
from pathlib import Path

from spectral_dist.command_line import Parser, run_main, say
from spectral_dist.outputs.report.compare_page import write_comparison
from spectral_dist.outputs.report.run_page import write_report


def main(argv: Sequence[str]) -> int:
    """Draw the report of a run, or the comparison of several; return the exit code.

    Raises:
      ValueError: if a folder holds no metrics, or the page cannot be written.
    """
    flags = make_parser().read(argv)
    folders = flags.folder
    if len(folders) > 1:
        say(str(write_comparison(folders, flags.out)))
        return 0
    try:
        say(str(write_report(folders[0])))
    except OSError as error:
        raise ValueError(f"{folders[0]}: cannot be written: {error.strerror}") from error
    return 0


def make_parser() -> Parser:
    """Return the argument parser of this command."""
    parser = Parser(
        prog="python -m spectral_dist.outputs.report",
        description="Draw report.html of a run, or one page that compares several.",
    )
    parser.add_run_folder(several=True)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("compare.html"),
        help="the page that compares several runs (default: compare.html)",
    )
    return parser


if __name__ == "__main__":
    run_main(main)
