"""Who listens to a run: the console, metrics.jsonl, W&B and the report.

Each output is written to with records and never calls back, so that the loop need not know which
of them are there. `Output` is all that they share; each lives in its own module.
"""

import sys
from typing import Protocol

from spectral_dist.training.metrics import Record


class Output(Protocol):
    """A place that records go to. No method may stop training."""

    def write(self, record: Record) -> None:
        """Take one record. Steps never go back within one run."""
        ...

    def close(self) -> None:
        """Finish what is pending. May be called more than once."""
        ...


def warn_on_stderr(text: str) -> None:
    """Print one warning where there is no console to print it."""
    sys.stderr.write(f"warning: {text}\n")
