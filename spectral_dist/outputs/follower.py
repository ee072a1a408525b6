"""A process beside training that reads the run folder, and ends after training does.

Owns both sides of that: how training starts it and waits for it, and how it learns of the end. The
two share a pipe, on which nothing is written: it closes when training ends or dies. Read `Follower`
and `training_end`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping

from spectral_dist.cluster.signals import SIGNALS


class Follower:
    """The process, seen from training.

    Attributes:
      process: it.
    """

    def __init__(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start `python -m module arguments` with the modules that this process can import.

        Args:
          module: dotted name; it waits for `training_end`.
          arguments: its command line.
          environment: variables besides those of this process.

        Raises:
          OSError: if no process can be started.
        """
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            | dict(environment or {}),
            start_new_session=True,  # Ctrl-C is for training, which then ends this one
        )

    def finish(self, seconds: float) -> int | None:
        """Say that training has ended; return the exit code, or None after so many seconds."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def kill(self) -> None:
        """End it at once, with the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def training_end() -> threading.Event:
    """Return an event that is set when training has ended; called by the process itself.

    From then on signals are ignored: a preempted run still saves and logs, and only the closed pipe
    says that it has ended.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    ended = threading.Event()

    def wait() -> None:
        while os.read(0, 1):
            pass
        ended.set()

    threading.Thread(target=wait, name="training's end", daemon=True).start()
    return ended
