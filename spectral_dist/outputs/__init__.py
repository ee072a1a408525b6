"""Outputs of a run: the console, metrics.jsonl, Weights & Biases and the report.

An output gets records and never calls back, so the training loop need not know which ones there
are. All they share is `Output`; each has a module of its own.
"""

import sys
from typing import Protocol

from spectral_dist.training.metrics import Record


class Output(Protocol):
    """A logger of records. No method may stop training."""

    def write(self, record: Record) -> None:
        """Write one record. Steps never decrease within one run."""
        ...

    def close(self) -> None:
        """Write what is pending. Safe to call more than once."""
        ...


def warn_on_stderr(text: str) -> None:
    """Print one warning to stderr; for code that has no console."""
    sys.stderr.write(f"warning: {text}\n")
