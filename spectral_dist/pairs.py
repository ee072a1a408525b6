"""Minimal pairs: how often the right one of two sentences is the likelier, `evaluate --pairs`.

A file is a table with a header, such as those of TurBLiMP (Basar et al. 2025, arXiv:2506.13487) and
BLiMP; each row is a pair. Chance is 50%. Read `read_pairs`, then `score_pairs`.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectral_dist.inference import LoadedRun
from spectral_dist.likelihood import Likelihood

BUILT_IN = "turkish"  # stands for the pairs of sample_text/turkish_pairs.py, in place of a file
_DELIMITERS = ";,\t"
_Z = 1.96  # of a 95% interval


@dataclass(frozen=True)
class PairScore:
    """What a model reaches in the pairs of one file.

    Attributes:
      pairs: that were scored.
      right: of which the right sentence is the likelier.
      alike: rows left out, because both sentences are the same.
      shorter: pairs whose right sentence has fewer bytes. A model that has learned little prefers
        the shorter sentence: a share near this one's may tell no more than that.
    """

    pairs: int
    right: int
    alike: int
    shorter: int

    @property
    def share(self) -> float:
        """Of the pairs, from 0 to 1; NaN of none."""
        return self.right / self.pairs if self.pairs else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share (Wilson 1927)."""
        n, p = self.pairs, self.share
        if not n:
            return math.nan, math.nan
        middle = p + _Z**2 / (2 * n)
        half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
        return (middle - half) / (1 + _Z**2 / n), (middle + half) / (1 + _Z**2 / n)


def read_pairs(path: Path, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of a file: (right sentence, wrong sentence).

    Args:
      path: text in UTF-8, its cells divided by semicolons, commas or tabs.
      columns: the names of both columns in its first line, the right one first.

    Raises:
      ValueError: names the file and what is wrong with it, or the columns that it has.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            # The character that divides the names; a sentence may hold any of the others.
            delimiter = max(_DELIMITERS, key=first.count)
            file.seek(0)
            rows = list(csv.reader(file, delimiter=delimiter, strict=True))
    except (OSError, UnicodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"pairs: {path}: cannot be read: {reason}") from error
    heads = [name.strip() for name in rows[0]] if rows else []
    for name in columns:
        if name not in heads:
            there = ", ".join(heads) or "none"
            raise ValueError(
                f"pairs: {path}: has no column {name!r}; its columns are {there}"
                " (--pair_columns RIGHT,WRONG names two of them)"
            )
    at = [heads.index(name) for name in columns]
    found = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(at) or not all(row[i].strip() for i in at):
            raise ValueError(f"pairs: {path}: row {number} has not both sentences")
        found.append((row[at[0]].strip(), row[at[1]].strip()))
    if not found:
        raise ValueError(f"pairs: {path}: holds no pair")
    return found


def score_pairs(
    run: LoadedRun, files: Mapping[str, Sequence[tuple[str, str]]], batch_size: int
) -> dict[str, PairScore]:
    """Return what a model reaches in the pairs of some files, by their names.

    A sentence's score is the log-probability of all its tokens, after the end of a document.

    Args:
      run: the model.
      files: the pairs of each.
      batch_size: sentences that are scored at a time.
    """
    likelihood = Likelihood(run, batch_size)
    found = {}
    for name, pairs in files.items():
        different = [pair for pair in pairs if pair[0] != pair[1]]
        texts = [("", sentence) for pair in different for sentence in pair]
        scores = [logp for logp, _ in likelihood.of_continuations(texts)]
        right = sum(a > b for a, b in zip(scores[::2], scores[1::2], strict=True))
        shorter = sum(len(a.encode()) < len(b.encode()) for a, b in different)
        found[name] = PairScore(len(different), right, len(pairs) - len(different), shorter)
    return found
