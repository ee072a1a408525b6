"""Who is silent, who has ended, who has hung: judged by one process, with a clock of its own."""

import signal
import time
from typing import Any

import pytest

from spectral_dist.cluster.heartbeat import HeartbeatMonitor
from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.command_line import FAULT

IDENTITY = Identity("coordinator", 1, 0, 3, None, "job")
HOSTS = {0: "a", 1: "b", 2: "c"}


class Seen:
    """A monitor of process 0 of 3, fed by hand."""

    def __init__(self, hang_timeout: float = 10.0) -> None:
        self.now = 1000.0
        self.left: list[tuple[str, int]] = []
        self.stacks: list[float] = []
        self.stop = StopSignal()
        self.heartbeats = {i: self.heartbeat() for i in HOSTS}
        self.monitor = HeartbeatMonitor(
            IDENTITY,
            HOSTS,
            self.stop,
            hang_timeout,
            lambda message, code: self.left.append((message, code)),
            lambda: self.stacks.append(self.now),
            clock=lambda: self.now,
        )

    def heartbeat(self) -> dict[str, Any]:
        counts = dict.fromkeys(("number", "sync_points", "progress", "stop_signal"), 0)
        return {**counts, "phase": "training"}

    def second(self, alive: tuple[int, ...] = (0, 1, 2), ended: Any = None) -> None:
        self.now += 1
        for index in alive:
            self.heartbeats[index]["number"] += 1
        self.monitor.hear({index: dict(last) for index, last in self.heartbeats.items()})
        self.monitor.judge(ended or {})


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_all_is_well_while_one_makes_progress(seen: Seen) -> None:
    for second in range(100):
        seen.heartbeats[2]["progress"] = second // 8
        seen.second()
    assert seen.left == []


def test_one_that_falls_silent_is_named(seen: Seen) -> None:
    for second in range(12):
        seen.heartbeats[0]["progress"] = second
        seen.second(alive=(0, 2))
        assert (seen.left == []) == (second < 11), second
    assert seen.left == [("process 1 of 3 (b): no heartbeat for 11 s", FAULT)]


def test_silence_tells_after_100_s_however_long_a_hang_may_take() -> None:
    seen = Seen(hang_timeout=600)
    for second in range(102):
        seen.heartbeats[0]["progress"] = second
        seen.second(alive=(0, 1))
    assert seen.left[0] == ("process 2 of 3 (c): no heartbeat for 101 s", FAULT)


def test_those_that_are_behind_have_hung(seen: Seen) -> None:
    for index, sync_points in ((0, 7), (1, 6), (2, 7)):
        seen.heartbeats[index]["sync_points"] = sync_points
    for _ in range(11):
        seen.second()
    assert seen.left == []
    seen.second()
    words = (
        "process 1 of 3 (b) in training: no process has made progress for hang_timeout=10 s, and"
    )
    assert seen.left == [(f"{words} this one is furthest behind", FAULT)]
    assert seen.stacks == [seen.now]


def test_the_phase_of_those_behind_says_how_long_a_wait_may_be(seen: Seen) -> None:
    for index, sync_points in ((0, 7), (1, 6), (2, 7)):
        seen.heartbeats[index] |= {"sync_points": sync_points}
    seen.heartbeats[1] |= {"phase": "saving a checkpoint", "patience": 3.0}
    for _ in range(31):
        seen.second()
    assert seen.left == []
    seen.second()
    words = "in saving a checkpoint: no process has made progress for 3 times hang_timeout=10 s"
    assert words in seen.left[0][0]


def test_a_service_that_refuses_has_ended(seen: Seen) -> None:
    seen.second()
    for error, seconds in ((ConnectionRefusedError(111, "refused"), 4), (TimeoutError(), 10)):
        seen.left.clear()
        start = seen.now = seen.monitor._now
        while not seen.left:
            seen.now += 1
            seen.monitor._judge_service(error)
        assert seen.now - start == seconds + 1
        assert seen.left[0][1] == FAULT
    assert seen.left[0][0].startswith("process 0 of 3 (a): its control service at coordinator:1")


def test_a_process_that_slept_itself_blames_nobody(seen: Seen) -> None:
    seen.second()
    seen.now += 500
    seen.second()
    assert seen.left == []
    for _ in range(9):
        seen.second()
    assert seen.left == []


def test_one_that_ended_takes_the_others_with_it_and_its_code(seen: Seen) -> None:
    seen.second(ended={0: {"message": "mine", "code": 9}})
    assert seen.left == []
    seen.second(ended={2: {"message": "data_paths: a.txt: is empty", "code": 2}})
    assert seen.left == [("process 2 of 3 (c) ended: data_paths: a.txt: is empty", 2)]
    assert seen.stacks == []  # no fault of the machine


def test_a_signal_there_asks_for_a_stop_here(seen: Seen) -> None:
    seen.second()
    assert seen.stop.received is None
    seen.heartbeats[1]["stop_signal"] = int(signal.SIGUSR1)
    seen.second()
    assert seen.stop.received is signal.SIGUSR1


def test_a_busy_process_makes_progress_where_it_waits_for_nobody(seen: Seen) -> None:
    def work() -> None:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass

    seen.monitor._heartbeat()
    work()
    assert seen.monitor._heartbeat()["progress"] == 0  # it may be spinning in a collective
    seen.monitor.busy_is_progress = True
    work()
    assert seen.monitor._heartbeat()["progress"] == 1
    assert seen.monitor._heartbeat()["progress"] == 1
