"""Signals: the first is noted, the second interrupts, and both are given back."""

import os
import signal

import pytest

from spectral_dist.cluster.signals import StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_interrupts(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is number


def test_the_handlers_of_before_come_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignal():
        assert all(signal.getsignal(n) != b for n, b in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before

    def fails() -> None:
        with StopSignal():
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fails()
    assert [signal.getsignal(number) for number in numbers] == before
