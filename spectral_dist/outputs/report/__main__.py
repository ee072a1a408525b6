"""`python -m spectral_dist.outputs.report FOLDER`: draws report.html of a run on request."""

import sys
from collections.abc import Sequence
from pathlib import Path

from spectral_dist.command_line import Parser, run_main
from spectral_dist.outputs.report.run_page import write_report


def main(argv: Sequence[str]) -> int:
    """Draw the report of the folder named on the command line; return the exit code.

    Raises:
      ValueError: if the folder holds no metrics, or the report cannot be written.
    """
    folder = make_parser().read(argv).folder
    sys.stdout.write(f"{write_report(folder)}\n")
    return 0


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(
        prog="python -m spectral_dist.outputs.report", description="Draw report.html of a run."
    )
    parser.add_argument("folder", type=Path, help="the run's folder, which holds metrics.jsonl")
    return parser


if __name__ == "__main__":
    run_main(main)
