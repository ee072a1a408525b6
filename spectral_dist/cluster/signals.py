"""Preemption: a run that a signal asks to stop saves a checkpoint and ends with its exit code.

Owns the handlers of SIGINT, SIGTERM and SIGUSR1, and what a signal does in each phase. Where there
is work to save, it is only noted, and the run looks at `received` between two steps. Where there is
none (`interruptible`), the process ends at once, even while the main thread is deep inside the
compiler. Read `StopSignal` first.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from spectral_dist.command_line import STOPPED, Ending

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def exit_code(number: signal.Signals) -> int:
    """Return the exit code of a run that a signal ended: 130 for Ctrl-C, else STOPPED."""
    return 128 + number if number is signal.SIGINT else STOPPED


def leave(message: str, code: int) -> None:
    """Print a line and end this process at once, whatever its other threads do."""
    stream = sys.stdout if code in (0, STOPPED, 130) else sys.stderr
    with contextlib.suppress(OSError, ValueError):
        stream.write(message + "\n")
    for each in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            each.flush()
    os._exit(code)


class StopSignal:
    """A context in which signals ask for a stop.

    The first of SIGINT, SIGTERM and SIGUSR1 is noted. A second SIGINT interrupts; further SIGTERM
    and SIGUSR1 change nothing, because schedulers send several and the save is under way.

    Attributes:
      received: the signal that asked for the stop, here or in another process of the run.
      leave: ends the process at once, given a line and an exit code.
    """

    def __init__(self) -> None:
        """Note nothing yet."""
        self.received: signal.Signals | None = None
        self.leave: Callable[[str, int], None] = leave
        self._phase: str | None = None  # the interruptible phase, if the run is in one
        self._noted = False  # whether a signal has reached this process
        self._lock = threading.RLock()
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1
        self._pipe = (-1, -1)

    def __enter__(self) -> "StopSignal":
        """Take the signals over; only the main thread may, so that elsewhere nothing is heard."""
        if threading.current_thread() is not threading.main_thread():
            return self
        # The operating system's handler writes the number here at once; Python's own waits until
        # the main thread runs Python again.
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back; once stopping, a scheduler's second one no longer counts."""
        if not self._before:
            return
        for number, handler in self._before.items():
            stopping = self.received is not None and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if stopping else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._pipe[1])

    def ask(self, number: signal.Signals) -> None:
        """Ask for a stop, from any thread; ends the process where that loses nothing."""
        with self._lock:
            self.received = self.received or number
            if self._phase is not None:
                self._leave_now(self._phase)

    def check(self) -> None:
        """Stop here if that was asked for.

        Raises:
          Ending: with the signal's exit code.
        """
        if self.received is not None:
            raise Ending(self._last_words("here"), exit_code(self.received))

    @contextlib.contextmanager
    def interruptible(self, phase: str) -> Iterator[None]:
        """Mark a part of the run in which a signal may end the process at once."""
        with self._lock:
            self._phase = phase
            if self.received is not None:
                self._leave_now(phase)
        try:
            yield
        finally:
            with self._lock:
                self._phase = None

    def _leave_now(self, phase: str) -> None:
        assert self.received is not None
        self.leave(self._last_words(phase), exit_code(self.received))

    def _last_words(self, phase: str) -> str:
        assert self.received is not None
        where = "" if phase == "here" else f" while {phase}"
        return (
            f"stopped by {self.received.name}{where}: nothing new to save; the same command"
            " continues"
        )

    def _listen(self) -> None:
        with contextlib.suppress(OSError), os.fdopen(self._pipe[0], "rb", buffering=0) as pipe:
            while byte := pipe.read(1):
                if byte[0] in SIGNALS:
                    self.ask(signal.Signals(byte[0]))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = True
        self.ask(signal.Signals(number))
