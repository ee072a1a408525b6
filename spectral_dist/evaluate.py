"""`python -m spectral_dist.evaluate`: bits per byte of any text, by dataset and by context length.

The same windows, targets and verdicts as in training. Of a text that the run was trained on, only
the held-out part is read; of any other text, all of it. Loads JAX only once the flags are read.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from spectral_dist.command_line import Parser, run_main


def main(argv: Sequence[str]) -> int:
    """Print bits per byte of held-out or other text; return the exit code."""
    flags = make_parser().read(argv)
    if flags.json and (Path(flags.json).is_dir() or not Path(flags.json).parent.is_dir()):
        raise ValueError(f"json={flags.json!r}: must name a file in a folder that exists")
    if flags.tasks is None and (flags.limit is not None or flags.include_path):
        raise ValueError("limit, include_path: are of --tasks, which is not given")
    if flags.pairs is not None and flags.tasks is not None:
        raise ValueError("pairs, tasks: give one of them")
    _check_stream(flags)
    from spectral_dist.scoring import score, score_pair_files, score_streams, score_tasks  # JAX

    if flags.stream is not None:
        score_streams(flags)
    elif flags.pairs is not None:
        score_pair_files(flags)
    elif flags.tasks is not None:
        score_tasks(flags)
    else:
        score(flags)
    return 0


def _check_stream(flags: Namespace) -> None:
    if flags.stream is None:
        return
    if flags.stream < 1:
        raise ValueError(f"stream={flags.stream}: must be at least 1")
    for name in ("batch_size", "windows"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    for name in ("tasks", "pairs", "lengths"):
        if getattr(flags, name) is not None:
            raise ValueError(f"stream, {name}: give one of them")


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(prog="python -m spectral_dist.evaluate", description=main.__doc__)
    parser.add_checkpoint()
    parser.add_argument("--data_paths", help="texts, joined by commas (default: the run's own)")
    parser.add_argument("--lengths", help="context lengths, multiples of seq_len, such as 1,2,4")
    parser.add_argument(
        "--stream",
        type=int,
        metavar="N",
        help="read continuous text in place of windows, as many streams of N x seq_len tokens as"
        " --windows says (default: --batch_size): bits per byte by distance from the start",
    )
    parser.add_argument("--windows", type=int, help="windows for each dataset (default: the run's)")
    parser.add_argument("--batch_size", type=int, default=8, help="sequences at a time")
    parser.add_argument("--mesh", default="1x1x1", help="devices as DATAxFSDPxTENSOR")
    parser.add_argument(
        "--sequence_parallel",
        nargs="?",
        const="true",
        default="false",
        choices=("true", "false"),
        help="the last number of mesh divides the time of each sequence, for long contexts",
    )
    parser.add_argument(
        "--tasks",
        help="tasks of the lm-evaluation-harness in place of texts, joined by commas (extra: eval)",
    )
    parser.add_argument(
        "--pairs",
        help="tables of minimal pairs in place of texts, joined by commas: how often the right"
        " sentence is the likelier; turkish stands for 1,000 pairs of ten phenomena",
    )
    parser.add_argument(
        "--pair_columns",
        metavar="RIGHT,WRONG",
        default="good_sentence,bad_sentence",
        help="with --pairs: the columns of both sentences (default: %(default)s)",
    )
    parser.add_argument("--limit", type=int, help="with --tasks: examples of each (default: all)")
    parser.add_argument("--include_path", help="with --tasks: folder of tasks of your own")
    parser.add_argument(
        "--allow_replaced",
        nargs="?",
        const="true",
        default="false",
        choices=("true", "false"),
        help="take texts of which more than a thousandth is no UTF-8",
    )
    parser.add_argument("--json", help="file to write every figure to")
    return parser


if __name__ == "__main__":
    run_main(main)
