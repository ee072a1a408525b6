"""Statistics of a dataset and samples of it, against texts counted by hand."""

from pathlib import Path

import numpy as np
import pytest

from spectral_dist.data import statistics
from spectral_dist.data.shards import Tokens
from spectral_dist.data.statistics import Statistics, describe, samples
from spectral_dist.data.tokens import TokenFile


def dataset(*documents: str, end: bool = True) -> TokenFile:
    text = b"\0".join(d.encode() for d in documents) + (b"\0" if end else b"")
    tokens = Tokens([np.frombuffer(text, np.uint8)])
    return TokenFile("d", Path("d.bin"), tokens, len(documents), "", len(text) * 3 // 4)


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("end", [True, False])
def test_counts(monkeypatch: pytest.MonkeyPatch, block: int, end: bool) -> None:
    monkeypatch.setattr(statistics, "_BLOCK", block)
    found = describe(dataset("ağaç", "", "plain", "ağaç", "", "x\ufffd", end=end))
    assert found == Statistics(
        name="d",
        bytes=6 + 5 + 6 + 4,
        documents=6,
        empty=2,
        median=4,
        longest=6,
        duplicates=1,
        duplicate_bytes=6,
        repeated_lines=0.0,
        turkish_letters=pytest.approx(1000 * 4 / 15),
        replacements=pytest.approx(1e6 / 15),
    )


def test_lines_that_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_LINES", 1)
    line, other = "a line that is long enough to count", "another line of which there is one only"
    found = describe(dataset(f"{line}\nshort\n{other}\n", f"short\n{line}\n{line}", "short"))
    assert found.repeated_lines == pytest.approx(2 / 4)


def test_the_sample_of_lines_tells_the_share() -> None:
    lines = [f"line number {n % 3000:06} of a long list of lines" for n in range(4000)]
    assert describe(dataset("\n".join(lines))).repeated_lines == pytest.approx(0.25, abs=0.06)


def test_samples_are_spread_over_the_training_part_and_show_the_ends() -> None:
    file = dataset(*(f"document {n:02}" for n in range(20)))
    found = samples(file, 3, 30)
    assert found[0].startswith("document 00<|endoftext|>document 01<|endoftext|>docum")
    assert [len(text.replace("<|endoftext|>", "\0")) for text in found] == [30] * 3
    assert "document 14" in found[2]
    assert not any("document 16" in text for text in samples(file, 50, 30))  # held out
    assert samples(dataset("ş" * 9), 1, 3)[0] == "ş\ufffd"
    assert samples(dataset("kısa"), 2, 900) == ["kıs", "kıs"]  # all that is trained on
