"""Signals: the first is noted, a second Ctrl-C interrupts, and all are given back."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from spectral_dist.cluster.signals import SIGNALS, StopSignal, exit_code
from spectral_dist.command_line import STOPPED, Ending
from tests.waiting import finish


def test_a_closed_terminal_stops_a_run_but_not_under_nohup() -> None:
    assert {signal.SIGHUP, signal.SIGUSR2} <= set(SIGNALS)
    assert exit_code(signal.SIGHUP) == exit_code(signal.SIGUSR2) == STOPPED
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received is signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_a_second_ctrl_c_interrupts(number: signal.Signals) -> None:
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received is number
        for again in (signal.SIGTERM, signal.SIGUSR1):  # schedulers send several
            os.kill(os.getpid(), again)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is number


def test_a_stop_asked_for_elsewhere_leaves_ctrl_c_its_first_time() -> None:
    with StopSignal() as stop:
        stop.ask(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # is noted, and interrupts nothing
        assert stop.received is signal.SIGTERM


def test_where_nothing_is_lost_a_signal_ends_the_process_at_once() -> None:
    left: list[tuple[str, int]] = []
    with StopSignal() as stop:
        stop.leave = lambda message, code: left.append((message, code))
        with stop.interruptible("compiling"):
            stop.ask(signal.SIGUSR1)
        words = (
            "stopped by SIGUSR1 while compiling: nothing new to save; the same command continues"
        )
        assert left == [(words, 75)]
        stop.ask(signal.SIGUSR1)
        assert len(left) == 1
        with stop.interruptible("reading"):  # asked for before it began
            assert len(left) == 2
    with pytest.raises(Ending, match="stopped by SIGUSR1: nothing new to save") as ending:
        stop.check()
    assert ending.value.code == STOPPED


def test_a_process_deep_in_a_call_is_ended_all_the_same() -> None:
    code = """
import ctypes
from spectral_dist.cluster.signals import StopSignal
with StopSignal() as stop, stop.interruptible("compiling"):
    print("deep", flush=True)
    library, mutex = ctypes.CDLL(None), (ctypes.c_ulong * 8)()
    for _ in range(2):  # the second time waits for ever, and no signal interrupts it
        library.pthread_mutex_lock(mutex)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "deep\n"
        child.send_signal(signal.SIGTERM)
        out, _ = finish(child)
    assert child.returncode == STOPPED
    assert out.startswith("stopped by SIGTERM while compiling")


def test_a_schedulers_second_signal_does_not_hurt_a_run_that_leaves() -> None:
    with StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_exit_codes(number: signal.Signals, code: int) -> None:
    assert exit_code(number) == code


def test_the_handlers_of_before_come_back() -> None:
    numbers = SIGNALS
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


def test_in_another_thread_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def elsewhere() -> None:
        with StopSignal() as stop, stop.interruptible("compiling"):
            seen.append(stop.received)
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [None, *before]
