"""`spectral-dist runs`: the runs of a folder, each with how far it is and what it has come to.

Reads files alone: no JAX, and nothing of a run is changed. Read `main`.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_dist.command_line import Parser, printable, run_main, say

_HEADS = {
    "name": "run",
    "state": "state",
    "step": "step",
    "steps": "of",
    "best": "held out, best",
    "last": "held out, last",
    "tokens_per_second": "tokens/s",
    "gigabytes": "GB",
    "age": "last written",
}


def main(argv: Sequence[str]) -> int:
    """List the runs of a folder; return the exit code."""
    flags = make_parser().read(argv)
    if not flags.checkpoint_dir.is_dir():
        raise ValueError(f"checkpoint_dir={str(flags.checkpoint_dir)!r}: is no folder")
    folders = sorted(p for p in flags.checkpoint_dir.iterdir() if _is_run(p))
    if not folders and not flags.json:
        say(f"no run in {flags.checkpoint_dir}")
    found = [describe(folder) for folder in folders]
    if flags.json:
        say(json.dumps(found, indent=2))
    elif found:
        _print(found)
    return 0


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(prog="python -m spectral_dist.runs", description=main.__doc__)
    parser.add_argument(
        "--checkpoint_dir",
        type=Path,
        default=Path("checkpoints"),
        help="folder of the runs (default: checkpoints)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def describe(folder: Path) -> dict[str, Any]:
    """Return what is known of a run, as JSON can hold it.

    Its name, state (trains, or how its last start ended), step, steps, best and last bits per byte
    on held-out text, tokens_per_second, gigabytes on the disk, and age: seconds since the last
    record.
    """
    from spectral_dist.file_lock import is_held
    from spectral_dist.outputs.report.facts import Facts

    try:
        facts = Facts.read(folder)
    except ValueError:  # nothing was logged yet
        facts = Facts(folder, [])
    written = max((p.stat().st_mtime for p in folder.glob("*.jsonl")), default=None)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return {
        "name": folder.name,
        "state": "trains" if is_held(folder / ".lock") else facts.state,
        "step": facts.step,
        "steps": facts.config.run.steps if facts.config is not None else None,
        "best": facts.best("val/bits_per_byte"),
        "last": facts.last("val/bits_per_byte"),
        "tokens_per_second": facts.last("perf/tokens_per_second"),
        "gigabytes": size / 1e9,
        "age": None if written is None else time.time() - written,
    }


def _print(found: Sequence[dict[str, Any]]) -> None:
    import rich.box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=rich.box.ASCII2)
    for number, head in enumerate(_HEADS.values()):
        table.add_column(head, justify="left" if number < 2 else "right", overflow="fold")
    for run in found:
        table.add_row(*(Text(printable(_cell(name, run[name]))) for name in _HEADS))
    # Piped, it is as wide as it needs to be: a program reads it.
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    console.print(table)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "age":
        hours, seconds = divmod(int(value), 3600)
        return f"{hours // 24} d ago" if hours >= 48 else f"{hours}:{seconds // 60:02} h ago"
    if name in ("best", "last"):
        return f"{value:.4f}"
    if name == "gigabytes":
        return f"{value:.3g}"
    return value if isinstance(value, str) else f"{value:,.0f}"


if __name__ == "__main__":
    run_main(main)
