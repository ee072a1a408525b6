"""What every benchmark reports: figures with their spread, as a table and as JSON.

Owns how several forms are timed in turn, and what a ratio means. Imports no JAX. Read `Figure`,
then `in_turn` and `compared`.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from spectral_dist.atomic_file import write_text
from spectral_dist.command_line import Parser

OURS = "ours"
WIDTH = 150  # of the console, in letters: Rich would fold the rows of a pipe at 80


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
      part: the benchmark, as `spectral-dist bench` names it.
      case: what is the same for all forms of a comparison, such as "T=512".
      name: which form, "ours" or a peer's.
      unit: of the value, such as "ms".
      value: median of the rounds.
      low, high: quartiles of the rounds; the value itself where it was measured once.
      ratio: median over the rounds of how many times better ours is, so above 1 ours is better;
        None where nothing of ours is compared.
      ratio_low, ratio_high: quartiles of the same.
      note: what else a reader must know, such as the number of parameters.
      at: the length in tokens, where cases differ by their length alone.
    """

    part: str
    case: str
    name: str
    unit: str
    value: float
    low: float
    high: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    note: str = ""
    at: int | None = None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile; of one value, itself thrice."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def single(
    part: str,
    case: str,
    name: str,
    unit: str,
    values: Sequence[float],
    note: str = "",
    at: int | None = None,
) -> Figure:
    """Return the figure of rounds that are compared with nothing."""
    low, middle, high = quartiles(values)
    return Figure(part, case, name, unit, middle, low, high, note=note, at=at)


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Call each function once a round and return its seconds, by name.

    Another one begins each round, so that other work on the machine, and what one leaves in the
    caches for the next, meet all alike.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(
    part: str,
    case: str,
    unit: str,
    samples: Mapping[str, Sequence[float]],
    *,
    scale: float = 1.0,
    notes: Mapping[str, str] | None = None,
    at: int | None = None,
) -> list[Figure]:
    """Return the figures of forms that took turns, each with its ratio to ours, round by round.

    Args:
      part: as of `Figure`.
      case: as of `Figure`.
      unit: as of `Figure`.
      samples: name -> one value a round, of which less is better; one of them is "ours".
      scale: what the values are multiplied with to be in the unit.
      notes: name -> note.
      at: as of `Figure`.
    """
    found = []
    for name, values in samples.items():
        low, middle, high = quartiles([scale * value for value in values])
        ratios = [value / own for value, own in zip(values, samples[OURS], strict=True)]
        ratio_low, ratio, ratio_high = quartiles(ratios)
        note = (notes or {}).get(name, "")
        found.append(
            Figure(
                *(part, case, name, unit, middle, low, high, ratio, ratio_low, ratio_high),
                note=note,
                at=at,
            )
        )
    return found


def number(value: float) -> str:
    """Return a number with three digits that count: 1,234, 123, 12.3, 0.00123."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(figures: Sequence[Figure]) -> Table:
    """Return the figures as a table for the console."""
    drawn = Table(box=rich.box.SIMPLE)
    for heading in ("part", "case", "form"):
        drawn.add_column(heading)
    drawn.add_column("median (quartiles)", justify="right")
    drawn.add_column("unit")
    drawn.add_column("over ours (quartiles)", justify="right")
    drawn.add_column("note")
    before: tuple[str, str] = ("", "")
    for f in figures:
        spread = "" if f.low == f.high else f" ({number(f.low)} to {number(f.high)})"
        ratio = ""
        if f.ratio is not None and f.ratio_low is not None and f.ratio_high is not None:
            ratio = f"{f.ratio:.2f} ({f.ratio_low:.2f} to {f.ratio_high:.2f})"
        part = "" if f.part == before[0] else f.part
        case = "" if (f.part, f.case) == before else f.case
        before = (f.part, f.case)
        drawn.add_row(part, case, f.name, number(f.value) + spread, f.unit, ratio, f.note)
    return drawn


def part_parser(module: str, description: str | None) -> Parser:
    """Return the parser that every benchmark of `spectral-dist bench` has."""
    parser = Parser(prog=f"python -m {module}", allow_abbrev=False, description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument("--json", metavar="FILE", help="write the figures to it too")
    return parser


def report(figures: Iterable[Figure], file: str | None) -> None:
    """Print figures as a table at the end, and each when it is there on stderr.

    Args:
      figures: as they are measured.
      file: JSON file that is written anew with each of them, so that a benchmark that is stopped
        leaves what it has measured; None for none.
    """
    found: list[Figure] = []
    for figure in figures:
        found.append(figure)
        sys.stderr.write(
            f"{figure.part}: {figure.case}: {figure.name} {number(figure.value)} {figure.unit}\n"
        )
        if file:
            write_figures(Path(file), found)
    Console(width=WIDTH, highlight=False, markup=False).print(table(found))


def write_figures(file: Path, figures: Sequence[Figure], **others: Any) -> None:
    """Write figures, and what else there is to say of them, as JSON."""
    words = {**others, "figures": [asdict(figure) for figure in figures]}
    write_text(file, json.dumps(words, indent=1) + "\n")


def read_figures(file: Path) -> list[Figure]:
    """Return the figures of a JSON file; none if there is no file."""
    if not file.is_file():
        return []
    return [Figure(**words) for words in json.loads(file.read_text(encoding="utf-8"))["figures"]]
