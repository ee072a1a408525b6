"""The fault table of the README: its counts are those of the tests that it stands on."""

import re
from pathlib import Path

from tests.multiprocess import test_disk, test_kills, test_lost, test_processes, test_stops

README = Path(__file__).parents[2] / "README.md"


def table() -> dict[str, list[int]]:
    """Return the numbers of the fault table by the first words of each row."""
    lines = README.read_text(encoding="utf-8").partition("| fault |")[2].splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    return {re.split(r"[,:]", first)[0]: [int(n) for n in rest] for first, *rest in rows}


def test_the_counts_are_those_of_the_tests() -> None:
    stops = [*test_stops.ONE_PROCESS.values(), *test_stops.TWO_PROCESSES.values()]
    tried = {
        "kill -9": test_kills.KILLS,
        # While JAX is loaded, and while text is prepared: by another process, and by this one.
        "SIGTERM or SIGUSR1": len(stops) + 3 * len(test_stops.WITHOUT_A_STATE),
        "one of two processes killed": len(test_lost.FAULTS),
        "two processes that differ in settings": len(test_lost.DISAGREEMENTS),
        "disk full": len(test_disk.FULL) + len(test_disk.READ_ONLY),
        "two processes to one": len(test_processes.MOVES),
    }
    assert table() == {fault: [count, count, 0] for fault, count in tried.items()}


def test_half_of_the_kills_are_inside_a_save() -> None:
    inside = re.search(r"kill -9, (\d+) of them inside a save", README.read_text("utf-8"))
    assert inside
    assert int(inside[1]) == test_kills.KILLS_IN_A_SAVE >= test_kills.KILLS / 2
