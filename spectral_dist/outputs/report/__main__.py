"""`python -m spectral_dist.outputs.report FOLDER`: draw report.html of a run."""

import sys
from collections.abc import Sequence
from pathlib import Path

from spectral_dist.command_line import Parser, run_main
from spectral_dist.outputs.report.run_page import write_report


def main(argv: Sequence[str]) -> int:
    """Draw the report of the run folder on the command line; return the exit code.

    Raises:
      ValueError: if the folder holds no metrics, or the report cannot be written.
    """
    folder = make_parser().read(argv).folder
    sys.stdout.write(f"{write_report(folder)}\n")
    return 0


def make_parser() -> Parser:
    """Return the argument parser of this command."""
    parser = Parser(
        prog="python -m spectral_dist.outputs.report", description="Draw report.html of a run."
    )
    parser.add_argument("folder", type=Path, help="the run folder, which holds metrics.jsonl")
    return parser


if __name__ == "__main__":
    run_main(main)
