"""`python -m spectral_dist.train`: train as the command line says.

Owns the first moments of a run: the settings are checked and signals are heard before JAX and all
that needs it is loaded, which takes seconds, and on a busy file system a minute. The run itself is
in `run`.
"""

from collections.abc import Sequence

from spectral_dist.cluster.signals import StopSignal
from spectral_dist.command_line import run_main
from spectral_dist.flags import load_config, make_parser

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str]) -> int:
    """Train as the command line says; return the exit code."""
    config = load_config(argv)
    with StopSignal() as stop:
        with stop.interruptible("starting"):
            from spectral_dist.run import run
        return run(config, argv, stop)


if __name__ == "__main__":
    run_main(main)
