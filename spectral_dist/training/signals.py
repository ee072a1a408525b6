"""Ctrl-C and SIGTERM: asked to stop, a run finishes its step, saves and leaves."""

import signal
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """A context in which the first SIGINT or SIGTERM is noted and the second one interrupts."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        """Take the two signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
