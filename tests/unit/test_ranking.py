"""The ranked table, what is nearest to fitting, and the command that starts the best candidate."""

import dataclasses
import io

from rich.console import Console

from spectral_dist.planning.memory import GIB
from spectral_dist.planning.search.candidates import Candidate
from spectral_dist.planning.search.ranking import (
    ROWS,
    closest_line,
    ranking_table,
    start_command,
    summary,
)

BEST = Candidate("1x8x1", 64, 4, "full", "all", 8 * GIB, 2 * GIB, 1.25, 419430.4, "")
LEFT_OUT = Candidate(
    "8x1x1", 64, 4, "none", "none", None, None, None, None, "needs at least 40.00 GiB"
)


def printed(ranking: list[Candidate]) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=120).print(ranking_table(ranking))
    return [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]


def test_the_table_has_figures_and_reasons() -> None:
    lines = printed([BEST, LEFT_OUT])
    assert lines[0] == "2 candidates, 1 compiled, 1 ranked; the best of them"
    assert lines[-2].split() == [
        "1x8x1",
        "64",
        "4",
        "full",
        "all",
        "8.00",
        "2.00",
        "1.250",
        "419,430",
    ]
    assert lines[-1].split()[:5] == ["8x1x1", "64", "4", "none", "none"]
    assert lines[-1].endswith("needs at least 40.00 GiB")


def test_a_reason_stands_once_and_the_table_is_short() -> None:
    same = [dataclasses.replace(LEFT_OUT, batch_size=n) for n in range(1, 40)]
    assert len(printed([BEST, *same])) == len(printed([BEST, LEFT_OUT]))
    assert "1" in printed([BEST, *same])[-1].split()[1], "the first of them"
    others = [dataclasses.replace(LEFT_OUT, reason=f"needs {n}") for n in range(40)]
    lines = printed([BEST] * 40 + others)
    assert len(lines) == len(printed([BEST, LEFT_OUT])) - 2 + 2 * ROWS
    assert summary([BEST] * 40 + others).startswith("80 candidates, 40 compiled, 40 ranked")


def test_the_nearest_is_told_where_nothing_fits() -> None:
    assert closest_line([]) == ""
    assert closest_line([BEST, LEFT_OUT]) == ""
    assert closest_line([LEFT_OUT, LEFT_OUT]) == (
        "none of 2 candidates fits; the nearest: --mesh=8x1x1 --batch_size=64 --accum_steps=4"
        " --remat=none --unroll=none (needs at least 40.00 GiB)"
    )


def test_the_command_keeps_what_was_asked_and_puts_in_what_was_chosen() -> None:
    words = ["--config", "configs/my level.yaml", "--mesh", "auto", "--lr=1e-3", "--batch-size=9"]
    assert start_command(words, BEST) == (
        "python -m spectral_dist.train --config 'configs/my level.yaml' --lr=1e-3"
        " --mesh=1x8x1 --batch_size=64 --accum_steps=4 --remat=full --unroll=all"
    )
