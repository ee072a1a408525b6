"""Preemption: on a signal, the run saves a checkpoint and ends with the signal's exit code.

Owns the handlers of the signals in `SIGNALS`, and what a signal does in each phase. If there is
work to save, the signal is only noted, and the run looks at `received` between two steps. If there
is none (`interruptible`), the process ends at once, even while the main thread is inside the
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

from spectral_dist.command_line import STOPPED, Ending, printable

# Ctrl-C; a scheduler's choices; a terminal that is closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def exit_code(number: signal.Signals) -> int:
    """Return the exit code of a run that a signal ended: 130 for Ctrl-C, else STOPPED (75)."""
    # 130 is what shells expect of Ctrl-C; 75 makes the scripts in launch/ start the run again.
    return 128 + number if number is signal.SIGINT else STOPPED


def leave(message: str, code: int) -> None:
    """Print a line and end this process at once, whatever its other threads do."""
    # A stop is no error, so it goes to standard output.
    stream = sys.stdout if code in (0, STOPPED, 130) else sys.stderr
    with contextlib.suppress(OSError, ValueError):
        stream.write(printable(message) + "\n")
    for each in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            each.flush()  # `os._exit` does not
    # Not `sys.exit`: that only ends this thread, and would wait for the compiler in the main one.
    os._exit(code)


class StopSignal:
    """A context manager in which each of `SIGNALS` requests a stop.

    The first of these signals is noted. A second SIGINT raises KeyboardInterrupt; further ones of
    the others change nothing, because schedulers send several of them.

    Attributes:
      received: the signal that requested the stop, here or in another process of the run.
      leave: ends the process at once, given a message and an exit code.
    """

    def __init__(self) -> None:
        """Start with no signal received."""
        self.received: signal.Signals | None = None
        self.leave: Callable[[str, int], None] = leave
        self._phase: str | None = None  # the interruptible phase, if the run is in one
        self._noted = False  # whether a signal has reached this process
        # Reentrant: the handler may run while the main thread itself holds the lock.
        self._lock = threading.RLock()
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1
        self._pipe = (-1, -1)

    def __enter__(self) -> "StopSignal":
        """Install the signal handlers; outside the main thread this does nothing."""
        # Python lets only the main thread install handlers.
        if threading.current_thread() is not threading.main_thread():
            return self
        # Python runs a handler only when the main thread runs Python code again, which can take
        # minutes in the compiler. The number in this pipe arrives at once, and a thread reads it.
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        for number in SIGNALS:
            # Ignored by who started us: nohup does so, to have a run outlive its terminal.
            ignored = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if not ignored:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the handlers that were there before."""
        if not self._before:
            return
        for number, handler in self._before.items():
            # A scheduler's second signal must not kill a run that is about to end by itself.
            stopping = self.received is not None and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if stopping else handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._pipe[1])  # ends the thread that reads the other end

    def ask(self, number: signal.Signals) -> None:
        """Request a stop, from any thread; ends the process at once if there is nothing to save."""
        with self._lock:
            self.received = self.received or number  # the first one decides the exit code
            if self._phase is not None:
                self._leave_now(self._phase)

    def check(self) -> None:
        """Stop here if a signal has requested it.

        Raises:
          Ending: with the signal's exit code.
        """
        if self.received is not None:
            raise Ending(self._message("here"), exit_code(self.received))

    @contextlib.contextmanager
    def interruptible(self, phase: str) -> Iterator[None]:
        """Mark a phase in which a signal may end the process at once, as nothing is to be saved."""
        # The lock: a signal comes either before the phase, and is found here, or inside it.
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
        self.leave(self._message(phase), exit_code(self.received))

    def _message(self, phase: str) -> str:
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
        # The second Ctrl-C is a user who does not want to wait for the save.
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = True
        self.ask(signal.Signals(number))
