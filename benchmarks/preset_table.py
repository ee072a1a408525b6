"""`python -m benchmarks.preset_table`: table of the presets on clusters of one kind of GPU.

Owns which presets run on which devices. Each row is a dry run in a process of its own, so that none
sees the memory or the fake devices of another. The README holds its output. Read `main` first.
"""

import sys
from collections.abc import Sequence
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from spectral_dist.command_line import Parser, run_main
from spectral_dist.flags import configs_folder
from spectral_dist.plan import dry_run
from spectral_dist.planning.hardware import GPU_NAMES

GIB = 2**30
# Preset, and the flags that put it on other devices than its own. The batch of a step, batch_size x
# accum_steps, is the same in all rows of a preset: 8 sequences of a micro-batch on each device.
ROWS = (
    ("level1", ()),
    ("level2", ("--mesh=1x1x1", "--batch_size=8", "--accum_steps=16")),
    ("level2", ()),
    ("level3", ("--mesh=1x8x1", "--batch_size=64", "--accum_steps=4")),
    ("level3", ("--mesh=2x8x1", "--batch_size=128", "--accum_steps=2")),
    ("level3", ()),
)
LEVELS = tuple(dict.fromkeys(level for level, _ in ROWS))
HEADS = (
    *("preset", "parameters", "GPUs", "mesh", "batch_size x accum_steps", "remat"),
    *("memory of a GPU, GiB", "sent by a GPU in a step, GiB", "tokens/s"),
)


def main(argv: Sequence[str]) -> int:
    """Make a dry run for each row and print the table as Markdown; return 0."""
    parser = Parser(prog="python -m benchmarks.preset_table", allow_abbrev=False)
    parser.add_argument("--only", choices=LEVELS, help="one preset (default: all)")
    parser.add_argument("--gpu", default="l4", choices=GPU_NAMES, help="kind of GPU (default: l4)")
    flags = parser.read(argv)
    reports = []
    for level, words in ROWS:
        if flags.only in (None, level):
            # Progress: a row took up to 59 s on two busy cores.
            sys.stderr.write(f"{level} {' '.join(words)}\n")
            config = f"--config={configs_folder() / level}.yaml"
            reports.append(dry_run([config, f"--gpu={flags.gpu}", *words]))
    table = Table(box=rich.box.MARKDOWN)
    for head in HEADS:
        table.add_column(head, no_wrap=True)
    for report in reports:
        table.add_row(*level_cells(report))
    # Wide enough for every row: Rich folds cells that do not fit, which Markdown cannot read.
    console = Console(highlight=False, markup=False, width=200)
    console.print(table)
    console.print(reports[0]["compiler"]["line"], soft_wrap=True)
    return 0


def level_cells(report: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one dry run's row.

    Args:
      report: its JSON, as docs/formats.md describes it.
    """
    config, verdict = report["config"], report["verdict"]
    traffic = report["communication"]["collectives"]
    sent = sum(t["moved_bytes"] for t in traffic)
    # The slow part: inside a host it is PCIe or NVLink, between hosts the network.
    between = sum(t["moved_bytes"] for t in traffic if t["crosses_hosts"])
    memory = f"{verdict['peak'] / GIB:.2f} + {verdict['runtime'] / GIB:.2f}"
    crossing = f", {between / GIB:.2f} of it between hosts" if between else ""
    return (
        config["run_name"],
        _count(report["parameters"]),
        f"{report['hosts'] * report['gpus_per_host']} {report['gpu']['name'].upper()}",
        config["mesh"],
        f"{config['batch_size']} x {config['accum_steps']}",
        config["remat"],
        f"{memory}{' fits' if verdict['fits'] else ' DOES NOT FIT'}",
        f"{sent / GIB:.2f}{crossing}",
        f"{report['time']['tokens_per_second']:,.0f}",
    )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


if __name__ == "__main__":
    run_main(main)
