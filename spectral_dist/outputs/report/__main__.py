"""`python -m spectral_dist.outputs.report FOLDER`: draw report.html of a run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spectral_dist.outputs.report.run_page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the report of the run folder on the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m spectral_dist.outputs.report", description="Draw report.html of a run."
    )
    parser.add_argument("folder", type=Path, help="the run folder, which holds metrics.jsonl")
    folder = parser.parse_args(arguments).folder
    try:
        path = write_report(folder)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
