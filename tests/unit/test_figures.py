"""Figures of a benchmark: forms in turn, ratios round by round, the table and the file."""

import json
from pathlib import Path

import pytest

from benchmarks.figures import (
    Figure,
    compared,
    in_turn,
    number,
    part_parser,
    quartiles,
    read_figures,
    report,
    single,
    write_figures,
)


def test_another_one_begins_each_round() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = in_turn(calls, rounds=3)
    assert "".join(order) == "abcbcacab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_medians_of_rounds() -> None:
    ours, theirs = [1.0, 2.0, 4.0], [3.0, 4.0, 20.0]
    own, peer = compared("step", "T=8", "ms", {"ours": ours, "peer": theirs}, scale=10, at=8)
    assert (own.ratio, own.value) == (1.0, 20.0)
    assert peer.value == 40.0
    assert peer.ratio == 3.0  # of 3, 2 and 5; that of the medians would be 2
    assert (peer.ratio_low, peer.ratio_high) == (2.5, 4.0)
    assert peer.at == 8


def test_one_value_is_its_own_spread() -> None:
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert quartiles([1.0, 3.0]) == (1.5, 2.0, 2.5)
    assert single("a", "b", "c", "s", [7.0]).ratio is None


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (100.4, "100"), (12.34, "12.3"), (0.001234, "0.00123")]
)
def test_a_number_has_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_benchmark_that_stops_leaves_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    first = single("loader", "a case", "ours", "MB/s", [1.0, 2.0, 3.0], note="a note")

    def figures() -> object:
        yield first
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        report(figures(), str(file))  # type: ignore[arg-type]
    assert read_figures(file) == [first]
    assert "loader: a case: ours 2 MB/s" in capsys.readouterr().err
    assert read_figures(tmp_path / "none.json") == []


def test_the_table_and_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = compared("mixer", "T=8", "us", {"ours": [1.0, 1.0], "FFT": [2.0, 4.0]})
    report(figures, None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "FFT" in line]
    assert lines == [["FFT", "3", "(2.5", "to", "3.5)", "us", "3.00", "(2.50", "to", "3.50)"]]
    write_figures(tmp_path / "f.json", figures, machine={"cores": 2})
    written = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert written["machine"] == {"cores": 2}
    assert [Figure(**words) for words in written["figures"]] == figures


def test_every_part_has_the_same_flags() -> None:
    flags = part_parser("benchmarks.mixer", "text").read(["--quick", "--json=a.json"])
    assert (flags.quick, flags.json) == (True, "a.json")
