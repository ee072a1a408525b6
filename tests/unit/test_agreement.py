"""What the processes of a run do alike: agree, and stop at the same sync point."""

import random
import signal
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.client import Client
from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.secret import leave_secret
from spectral_dist.cluster.service import Table
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.cluster.start import start_processes
from spectral_dist.command_line import FAULT, Ending


class Monitor:
    """Stands for a monitor that never judges."""

    def __init__(self) -> None:
        self.sync_points, self.progress, self.phase = 0, 0, ""

    def name(self, index: int) -> str:
        return f"process {index}"


def together(count: int) -> list[Processes]:
    """Processes of one run that share a table, without a network between them."""
    table = Client(Table())
    found = []
    for index in range(count):
        identity = Identity("here", 1, index, count, None, "job")
        found.append(Processes(StopSignal(), identity, table, cast(Any, Monitor())))
    return found


def test_one_process_is_alone_and_the_coordinator(tmp_path: Path) -> None:
    stop = StopSignal()
    with start_processes(stop, 1.0, 1.0, tmp_path) as alone:
        assert (alone.index, alone.count, alone.is_coordinator) == (0, 1, True)
        alone.agree("settings", {"seed": 1})
        alone.enter("training")
        alone.note_progress()
        assert not alone.should_stop()
        stop.ask(signal.SIGTERM)
        assert alone.should_stop()
        with pytest.raises(Ending, match="stopped by SIGTERM"):
            alone.note_progress()


@pytest.mark.parametrize("seed", range(200))
def test_all_stop_at_the_same_sync_point(seed: int) -> None:
    """In any order in which nobody is more than one sync point ahead of the slowest."""
    draw = random.Random(seed)
    processes = together(draw.randint(2, 4))
    asked_at = draw.randint(0, 60)
    passed = [0] * len(processes)
    stopped: dict[int, int] = {}
    for turn in range(1000):
        if turn == asked_at:
            processes[0]._stop.ask(signal.SIGUSR1)  # the coordinator's monitor has heard of it
        # At sync point p a process has read a result of p - 2, so all have passed that.
        ready = [
            i for i in range(len(processes)) if i not in stopped and passed[i] - min(passed) < 2
        ]
        if not ready:
            break
        index = draw.choice(ready)
        if processes[index].should_stop():
            stopped[index] = passed[index]
            passed[index] = 10**6  # waits for nobody any more
        else:
            passed[index] += 1
    assert len(stopped) == len(processes)
    assert len(set(stopped.values())) == 1
    assert all(one._stop.received is signal.SIGUSR1 for one in processes)


@pytest.mark.parametrize("seed", range(200))
def test_all_save_at_the_same_steps(seed: int) -> None:
    """As above, in any order; only the clock of the coordinator counts."""
    draw = random.Random(seed)
    processes = together(draw.randint(2, 4))
    passed = [0] * len(processes)
    saved: list[list[int]] = [[] for _ in processes]
    while min(passed) < 40:
        ready = [i for i, p in enumerate(passed) if p < 40 and p - min(passed) < 2]
        index = draw.choice(ready)
        assert not processes[index].should_stop()
        # Every fourth sync point is a batch of an evaluation, after which no step is saved.
        if passed[index] % 4:
            due = draw.random() < 0.1
            if processes[index].should_save(due):
                saved[index].append(passed[index])
        passed[index] += 1
    assert all(one == saved[0] for one in saved)


def test_a_process_alone_saves_by_its_own_clock() -> None:
    alone = Processes(StopSignal())
    assert alone.should_save(True)
    assert not alone.should_save(False)


def test_what_differs_is_named_everywhere() -> None:
    processes = together(3)
    errors: list[str] = []

    def agree(one: Processes) -> None:
        one.agree("folder", {})
        facts = {"seed": 1 if one.index == 2 else 0, "lr": 0.1}
        try:
            one.agree("settings", facts)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=agree, args=(one,)) for one in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert errors == ["settings: seed=1 in process 2, but 0 in process 0"] * 3


def test_only_the_coordinator_makes_what_all_get() -> None:
    made: list[int] = []

    def make(one: Processes) -> dict[str, str]:
        made.append(one.index)
        return {"mesh": "1x2x1"}

    processes = together(3)
    got: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda one=one: got.append(one.from_coordinator("mesh", lambda: make(one)))
        )
        for one in reversed(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert made == [0]
    assert got == [{"mesh": "1x2x1"}] * 3


@pytest.mark.parametrize("secret", [False, True])
def test_a_coordinator_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: bool
) -> None:
    if secret:
        leave_secret(tmp_path, "127.0.0.1:9")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    words = r"process 0 of 2 not reached at 127\.0\.0\.1:9 within start_timeout=0\.3 s"
    words += "$" if secret else f": it has left no secret in {tmp_path}, which all must see$"
    with pytest.raises(Ending, match=words) as ending:
        start_processes(StopSignal(), 0.3, 1.0, tmp_path)
    assert ending.value.code == FAULT
