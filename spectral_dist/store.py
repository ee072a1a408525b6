"""`spectral-dist store push|pull RUN URL`: a run's newest checkpoint to a store, or from it.

Training does both by itself with `--store`. Loads what copies only once the flags are read.
"""

from collections.abc import Sequence

from spectral_dist.command_line import Parser, run_main


def main(argv: Sequence[str]) -> int:
    """Copy the newest checkpoint of a run to a store, or from it; return the exit code."""
    flags = make_parser().read(argv)
    from spectral_dist.outputs.store_mirror import copy  # loads JAX

    return copy(flags)


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(prog="python -m spectral_dist.store", description=main.__doc__)
    parser.add_argument("direction", choices=("push", "pull"))
    parser.add_run_folder()
    parser.add_argument("url", metavar="URL", help="of all runs, such as s3://bucket/runs")
    parser.add_argument("--keep", type=int, default=0, help="delete older ones there (default: no)")
    parser.add_argument("--keep_every", type=int, default=0, help="but not every so many steps")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="keep copying until standard input closes; training uses this",
    )
    return parser


if __name__ == "__main__":
    run_main(main)
