"""The curriculum of a run before it starts: its phases, what they read, their learning rates.

Read `phase_rows`.
"""

import rich.box
from rich.table import Table

from spectral_dist.data.phases import shares_of, stretches
from spectral_dist.settings import Config
from spectral_dist.training.schedule import learning_rate

HEADS = (
    "phase",
    "steps",
    "billion tokens",
    "learning rate",
    "share of each dataset, and its billion tokens",
)


def phase_rows(config: Config) -> list[tuple[str, ...]]:
    """Return a row for each phase, of `HEADS`; none for a run without phases."""
    if not config.phases:
        return []
    parts, rate = stretches(config), learning_rate(config)
    names = [str(dataset.name) for dataset in config.datasets]
    rows, first = [], 0
    for number, (phase, steps) in enumerate(zip(config.phases, config.phase_steps, strict=True)):
        last = first + steps
        tokens = steps * config.data.step_tokens / 1e9
        shares = zip(names, shares_of(parts, first, last), strict=True)
        ramp = f", {phase.ramp:,} of them a ramp" if phase.ramp else ""
        rows.append(
            (
                str(number + 1),
                f"{first + 1:,} to {last:,}{ramp}",
                f"{tokens:,.3g}",
                f"{float(rate(first)):.3g} to {float(rate(last - 1)):.3g}",
                ", ".join(f"{n} {s:.1%} ({s * tokens:,.3g})" for n, s in shares if s),
            )
        )
        first = last
    return rows


def phase_table(config: Config) -> Table:
    """Return the rows as a table for the console."""
    table = Table(title="the curriculum", box=rich.box.SIMPLE, title_justify="left")
    for head in HEADS:
        table.add_column(head, overflow="fold")
    for row in phase_rows(config):
        table.add_row(*row)
    return table


def phase_json(config: Config) -> list[dict[str, str]]:
    """Return the rows by their heads."""
    return [dict(zip(HEADS, row, strict=True)) for row in phase_rows(config)]
