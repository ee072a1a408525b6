"""The commit of a save by several processes: a failure anywhere ends the waiting everywhere."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import pytest

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.client import Client
from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.service import Table
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.training import commit as module
from spectral_dist.training.commit import Commit, SaveFailed
from spectral_dist.training.manifest import Unreadable

COUNT = 3
Act = Callable[[Callable[[Commit], Any]], list["Future[Any]"]]


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def processes(table: Table) -> list[Processes]:
    found = []
    for index in range(COUNT):
        identity = Identity("here", 1, index, COUNT, None, "job")
        found.append(Processes(StopSignal(), identity, Client(table)))
    return found


@pytest.fixture
def everywhere(processes: list[Processes]) -> Act:
    """Return a function that acts in every process at once, each a thread."""
    commits = [Commit(one) for one in processes]

    def act(action: Callable[[Commit], Any]) -> list["Future[Any]"]:
        with ThreadPoolExecutor(COUNT) as pool:
            return [pool.submit(action, one) for one in commits]

    return act


def test_a_barrier_lets_nobody_through_before_all_are_there(everywhere: Act) -> None:
    arrived: list[float] = []

    def wait(commit: Commit) -> float:
        commit.begin()
        time.sleep(0.1 * commit._index)
        arrived.append(time.monotonic())
        commit.barrier(key="written", timeout_ms=300_000)
        return time.monotonic()

    assert min(f.result() for f in everywhere(wait)) >= max(arrived)


def test_a_failure_in_one_process_is_a_failure_in_all_that_says_where_and_why(
    everywhere: Act,
) -> None:
    def save(commit: Commit) -> None:
        commit.begin()
        if commit._index == 2:
            time.sleep(0.1)
            commit.fail("no space left")
            raise OSError("no space left")
        try:
            commit.barrier(key="written", timeout_ms=300_000)
        except SaveFailed as error:
            commit.fail(str(error))
            raise

    start = time.monotonic()
    errors = [f.exception() for f in everywhere(save)]
    assert time.monotonic() - start < 100
    assert isinstance(errors[2], OSError)
    for error in errors[:2]:
        assert isinstance(error, SaveFailed)
        assert "process 2: no space left" in str(error)
    # The next save begins afresh.
    everywhere(lambda commit: commit.begin())
    again = everywhere(lambda commit: commit.barrier(key="written", timeout_ms=300_000))
    assert [f.exception() for f in again] == [None] * COUNT


def test_who_does_not_come_is_waited_for_so_long(everywhere: Act) -> None:
    def wait(commit: Commit) -> None:
        commit.begin()
        if commit._index:
            commit.barrier(key="written", timeout_ms=200)

    errors = [f.exception() for f in everywhere(wait)]
    assert [type(error) for error in errors] == [type(None), TimeoutError, TimeoutError]


def test_the_lead_returns_from_a_failure_when_all_have_failed(
    everywhere: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(commit: Commit) -> float:
        commit.begin()
        time.sleep(0.2 * commit._index)
        commit.fail("why")
        return time.monotonic()

    times = [f.result() for f in everywhere(fail)]
    assert times[0] >= times[2] - 0.1
    monkeypatch.setattr(module, "_SETTLE_SECONDS", 0.1)
    begun = time.monotonic()
    everywhere(lambda commit: commit.begin())
    everywhere(lambda commit: commit.fail("why") if commit._index == 0 else None)
    assert time.monotonic() - begun < 9


def test_what_was_said_of_old_saves_is_forgotten(everywhere: Act, table: Table) -> None:
    def save(commit: Commit) -> None:
        commit.begin()
        commit.barrier(key="written", timeout_ms=300_000)

    for _ in range(6):
        everywhere(save)
    assert len(table._values) == 2 * COUNT


def test_one_process_waits_for_nobody() -> None:
    alone = Commit()
    alone.begin()
    alone.barrier(key="written", timeout_ms=0)
    alone.fail("why")
    assert alone.as_coordinator_sees([1, 2]) == [1, 2]


@pytest.mark.parametrize("error", [OSError("disk"), Unreadable("torn")])
def test_an_error_that_was_here_is_the_one_that_is_raised(error: Exception) -> None:
    def act() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        Commit().on_all(act)
    assert Commit().on_all(lambda: 3) == 3
    assert jax.process_count() == 1


def test_all_go_by_the_leads_list(everywhere: Act, table: Table) -> None:
    for round_number in range(1, 4):
        lists = everywhere(lambda commit: commit.as_coordinator_sees([10 * commit._index + 7]))
        assert [f.result() for f in lists] == [[7]] * COUNT
        # Of what was said only the last rounds are kept.
        assert len(table._values) <= 2 * COUNT, round_number


def test_what_fails_in_one_process_fails_in_all(everywhere: Act) -> None:
    def read(commit: Commit) -> int:
        if commit._index == 1:
            raise OSError("torn")
        return commit._index

    errors = [f.exception() for f in everywhere(lambda commit: commit.on_all(lambda: read(commit)))]
    assert [type(error) for error in errors] == [Unreadable, OSError, Unreadable]
    assert str(errors[0]) == "failed on process 1"
    done = everywhere(lambda commit: commit.on_all(lambda: commit._index))
    assert [f.result() for f in done] == [0, 1, 2]


def test_two_checkpoint_folders_of_one_run_do_not_hear_each_other(
    processes: list[Processes],
) -> None:
    """A run that begins with another's parameters reads that one's checkpoints too."""

    def act(one: Processes) -> list[list[int]]:
        its_own, other = Commit(one), Commit(one)
        return [
            its_own.as_coordinator_sees([10 * one.index]),
            other.as_coordinator_sees([10 * one.index + 1]),
            its_own.as_coordinator_sees([10 * one.index + 2]),
        ]

    with ThreadPoolExecutor(COUNT) as pool:
        assert list(pool.map(act, processes)) == [[[0], [1], [2]]] * COUNT
