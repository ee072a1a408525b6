"""`python -m spectral_dist.train`: the entry point of training.

Owns the start of a run, before JAX is loaded: it checks the settings and installs the signal
handlers. The run itself is in `run`.
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
            # Loading JAX takes seconds, and a minute on a busy file system. A wrong setting must
            # not wait for it, and a signal meanwhile must end the program with its exit code.
            from spectral_dist.run import run
        return run(config, argv, stop)


if __name__ == "__main__":
    run_main(main)
