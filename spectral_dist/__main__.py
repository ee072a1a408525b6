"""`spectral-dist` and `python -m spectral_dist`: one door to every command.

Each command is a module with `main(argv)` and `make_parser()`, which may also be run by itself, as
`python -m spectral_dist.train`. Loads the one that is asked for and nothing else. Read `COMMANDS`,
then `main`.
"""

import argparse
import importlib
import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from spectral_dist.command_line import Parser, run_main

# name -> its module in the package, and what it does
COMMANDS = {
    "train": ("train", "train a model, or go on with a run"),
    "evaluate": ("evaluate", "bits per byte of a run on held-out or other text"),
    "generate": ("generate", "write text with a trained model"),
    "prepare": ("prepare", "turn text into token files ahead of a run"),
    "tokenizer": ("tokenizer", "train a BPE tokenizer on text"),
    "dryrun": ("dryrun", "memory and speed of a run on devices that are not there"),
    "plan": ("plan", "what to train with a budget, before any GPU hour"),
    "launch": ("launch", "start several processes on this host"),
    "runs": ("runs", "list the runs of a folder"),
    "report": ("outputs.report.__main__", "draw report.html of a run, or compare several"),
    "wandb": ("outputs.wandb_mirror", "send the metrics of a run to Weights & Biases"),
    "tensorboard": ("outputs.tensorboard", "write the metrics of runs for TensorBoard"),
    "export": ("export", "write a trained model for Hugging Face transformers"),
    "store": ("store", "copy checkpoints to or from s3://, gs:// and others"),
    "bench": ("bench", "measure this machine, beside other projects"),
    "schema": ("schema", "the JSON schema of a settings file, for editors"),
}


def make_parser() -> Parser:
    """Return the parser of the door itself: its help lists the commands."""
    listed = "\n".join(f"  {name:11} {text}" for name, (_, text) in COMMANDS.items())
    parser = Parser(
        prog="spectral-dist",
        usage="spectral-dist COMMAND ...",
        epilog=f"commands:\n{listed}\n\nspectral-dist COMMAND --help explains one of them.\n"
        'eval "$(register-python-argcomplete spectral-dist)" completes them in a shell.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version())
    return parser


def find_command(name: str) -> Any:
    """Return the module of a command, loaded."""
    return importlib.import_module(f"spectral_dist.{COMMANDS[name][0]}")


def version() -> str:
    """Return the version of the package and of JAX, without loading either."""
    return f"spectral-dist {metadata.version('spectral-dist')}, jax {metadata.version('jax')}"


def _complete() -> None:
    """Answer a shell that asks for the words that may come next; never returns."""
    import argcomplete

    parser = make_parser()
    commands = parser.add_subparsers()
    for name in COMMANDS:
        own = find_command(name).make_parser()
        commands.add_parser(name, parents=[own], add_help=False)
    argcomplete.autocomplete(parser)


def main(argv: Sequence[str]) -> int:
    """Run the command that the first word names; return its exit code.

    Raises:
      ValueError: if there is no such command.
    """
    name, *rest = argv or ["--help"]
    if name.startswith("-"):
        make_parser().read([name])
        return 0
    if name not in COMMANDS:
        from spectral_dist.settings.rules import nearest

        raise ValueError(f"unknown command {name!r}{nearest(name, COMMANDS)}; --help lists them")
    return find_command(name).main(rest)


def console_script() -> None:
    """Be `spectral-dist`."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    run_main(main)


if __name__ == "__main__":
    console_script()
