"""Ranking of `--mesh=auto` as a printed table, and the command line that starts the best candidate.

Owns how a ranking is shown. Read `ranking_table`.
"""

import shlex
from collections.abc import Sequence

import rich.box
from rich.table import Table

from spectral_dist.planning.memory import GIB
from spectral_dist.planning.search.candidates import CHOSEN, Candidate

ROWS = 12  # of ranked candidates, and as many of those that are left out: JSON and HTML have all


def ranking_table(ranking: Sequence[Candidate]) -> Table:
    """Return a table of the best candidates and the nearest of those that were left out."""
    ranked = [c for c in ranking if not c.reason]
    # One candidate for each reason, as a rule forbids hundreds of them. Reversed, so that the first
    # one, which is the nearest, stays in the dict.
    left_out = list({c.reason: c for c in reversed(ranking) if c.reason}.values())[::-1]
    table = Table(title=summary(ranking), box=rich.box.SIMPLE, title_justify="left")
    table.add_column("mesh")
    for name in ("batch_size", "accum_steps"):
        table.add_column(name, justify="right")
    for name in ("remat", "unroll"):
        table.add_column(name)
    for name in ("GiB", "spare", "step s", "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("left out because", overflow="fold")
    for c in [*ranked[:ROWS], *left_out[:ROWS]]:
        figures = (
            "" if c.peak is None else f"{c.peak / GIB:.2f}",
            "" if c.spare is None else f"{c.spare / GIB:.2f}",
            "" if c.step_seconds is None else f"{c.step_seconds:.3f}",
            "" if c.tokens_per_second is None else f"{c.tokens_per_second:,.0f}",
        )
        chosen = (c.mesh, str(c.batch_size), str(c.accum_steps), c.remat, c.unroll)
        table.add_row(*chosen, *figures, c.reason)
    return table


def summary(ranking: Sequence[Candidate]) -> str:
    """Return the numbers of candidates, of compiled and of ranked ones: the table's title."""
    ranked = sum(not c.reason for c in ranking)
    compiled = sum(c.step_seconds is not None for c in ranking)
    return f"{len(ranking)} candidates, {compiled} compiled, {ranked} ranked; the best of them"


def closest_line(ranking: Sequence[Candidate]) -> str:
    """Return which candidate is the nearest to fitting if none fits, else an empty text."""
    if not ranking or not ranking[0].reason:
        return ""
    nearest = ranking[0]
    return (
        f"none of {len(ranking)} candidates fits; the nearest: {nearest.flags} ({nearest.reason})"
    )


def start_command(words: Sequence[str], best: Candidate) -> str:
    """Return the command line that trains with a candidate.

    Args:
      words: settings on the command line of the search.
      best: the candidate; its flags replace those of the same settings.
    """
    # Both --mesh=auto and --mesh auto: the value may be a word of its own.
    kept, skip = [], False
    for word in words:
        name = word.partition("=")[0].lstrip("-").replace("-", "_")
        chosen = word.startswith("--") and name in CHOSEN
        if not chosen and not skip:
            kept.append(word)
        skip = chosen and "=" not in word
    return shlex.join(["python", "-m", "spectral_dist.train", *kept]) + f" {best.flags}"
