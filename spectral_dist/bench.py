"""`spectral-dist bench`: measure this machine, by the benchmarks beside the package.

They are no part of an installed wheel, because only a checkout's own figures can be repeated. Read
`main`.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_dist.command_line import Parser, run_main

_CHECKOUT = Path(__file__).parents[1]


def _benchmarks() -> Any:
    """Return the module of the benchmarks' own command.

    Raises:
      ValueError: if this package is not in a checkout.
    """
    if not (_CHECKOUT / "benchmarks" / "__main__.py").is_file():
        raise ValueError(
            "bench: the benchmarks are not in an installed wheel; run it from a checkout, installed"
            " by pip install -e '.[bench]'"
        )
    # In front: another project's package may have this common name.
    sys.path.insert(0, str(_CHECKOUT))
    return importlib.import_module("benchmarks.__main__")


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    return _benchmarks().make_parser()


def main(argv: Sequence[str]) -> int:
    """Run the benchmarks; return the exit code."""
    return _benchmarks().main(argv)


if __name__ == "__main__":
    run_main(main)
