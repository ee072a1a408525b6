"""Worker processes: one real one, and those that fail in every way they can."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.search import workers as working
from spectral_dist.planning.search.cache import Cache
from spectral_dist.planning.search.workers import (
    Cluster,
    Failure,
    Outcome,
    Task,
    Workers,
    default_count,
    free_bytes,
)
from spectral_dist.settings import Config
from tests.unit.test_bounds import small

CLUSTER = Cluster(None, 1, 2)


def tiny(**changes: Any) -> Config:
    return small(mesh="1x2x1", num_layers=1, layer_pattern="spectral", batch_size=2, **changes)


def one(workers: Workers, task: Task) -> Outcome | Failure:
    workers.start(task)
    assert workers.busy == 1
    done, found = workers.wait()
    assert done == task
    assert workers.busy == 0
    return found


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Workers:
    """Return workers whose process is a shell script."""
    program = folder / "worker.sh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return Workers(CLUSTER, Cache(folder / "cache"), count=1, seconds=30)


def test_a_real_worker_and_the_second_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One of several processes has fewer devices than the mesh; a worker makes its own.
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    monkeypatch.setenv("XLA_FLAGS", flags)
    task = Task(tiny(), unlimited=False)
    with Workers(CLUSTER, Cache(tmp_path), count=1) as workers:
        assert workers.recall(task) is None
        found = one(workers, task)
    assert isinstance(found, Outcome)
    assert found.peak > 0
    assert 0 < found.kernel_seconds < found.step_seconds
    assert found.tokens_per_second == pytest.approx(2 * 32 / found.step_seconds)
    # The name of the run is no part of what is compiled, its width is.
    again = Workers(CLUSTER, Cache(tmp_path))
    assert again.recall(Task(tiny(run_name="other", steps=20_000), unlimited=False)) == found
    assert again.recall(Task(tiny(hidden_dim=64), unlimited=False)) is None
    assert Workers(Cluster(None, 2, 1), Cache(tmp_path)).recall(task) is None


def test_all_programs_of_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Workers(CLUSTER, Cache(tmp_path), count=1) as workers:
        programs = workers.whole(tiny())
        assert isinstance(programs, list)
        names = [program.name for program in programs]
        assert names == ["train step", "evaluation 1x", "initial state", "restore"]
        assert programs[0].text.startswith("HloModule")
        assert programs[1].text == ""
        monkeypatch.setattr(sys, "executable", "no such program")
        assert workers.whole(tiny()) == programs, "from the cache"


def test_one_that_dies_is_a_failure_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = stand_in(tmp_path, monkeypatch, "exit 3")
    task = Task(tiny(), unlimited=False)
    assert one(workers, task) == Failure("its worker process ended (exit 3)", lasting=False)
    assert workers.recall(task) is None
    killed = stand_in(tmp_path, monkeypatch, "kill -9 $$").whole(tiny())
    assert isinstance(killed, Failure)
    assert "exit -9, as where memory is short" in killed.reason


def test_one_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "exec sleep 60")
    workers = Workers(CLUSTER, Cache(tmp_path / "cache"), count=1, seconds=0.2)
    found = one(workers, Task(tiny(), unlimited=False))
    assert found == Failure("its worker process took more than 0.2 s", lasting=False)


def test_a_refusal_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = stand_in(tmp_path, monkeypatch, """echo noise; echo '{"error": "no way"}'""")
    task = Task(tiny(), unlimited=False)
    assert one(workers, task) == Failure("no way", lasting=True)
    assert workers.recall(task) == Failure("no way", lasting=True)
    assert workers.whole(tiny(seed=3)) == Failure("no way", lasting=True)


@pytest.mark.parametrize("said", ["[]", '{"outcome": {"peak": 3}}', '{"outcome": 3}', "{", ""])
def test_nonsense_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    workers = stand_in(tmp_path, monkeypatch, f"echo '{said}'")
    found = one(workers, Task(tiny(), unlimited=False))
    assert found == Failure("its worker process ended (exit 0)", lasting=False)


def test_leaving_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with stand_in(tmp_path, monkeypatch, "exec sleep 60") as workers:
        workers.start(Task(tiny(), unlimited=False))
    _, found = workers.wait()
    assert isinstance(found, Failure)
    assert time.monotonic() - started < 50


def test_workers_see_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("JAX_PLATFORM_NAME", "gpu")
    environment = working._environment()
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["JAX_PLATFORM_NAME"] is None  # taken out


def test_a_process_that_cannot_be_started_is_a_failure_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    task = Task(tiny(), unlimited=False)
    found = one(Workers(CLUSTER, Cache(tmp_path), count=1), task)
    assert isinstance(found, Failure)
    assert found.reason.startswith("no worker process could be started: ")
    assert not found.lasting


def test_as_many_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes() > 2**28
    assert default_count() >= 1
    monkeypatch.setattr(working, "free_bytes", lambda: 0)
    assert default_count() == 1


def test_what_a_question_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    l4 = Workers(Cluster(find_gpu("l4"), 1, 2), Cache(tmp_path))
    task = Task(tiny(), unlimited=False)
    asked = l4._question(task, whole=False)
    assert asked["target"] == find_gpu("l4").target
    assert asked["config"]["hidden_dim"] == 32
    assert "run_name" not in asked["config"]
    assert l4._question(Task(tiny(), unlimited=True), whole=False) != asked
    assert Workers(CLUSTER, Cache(tmp_path))._question(task, whole=False) == Workers(
        CLUSTER, Cache(tmp_path)
    )._question(Task(tiny(), unlimited=True), whole=False), "a processor has no limit"
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    assert l4._question(task, whole=False) != asked
    more = "--xla_other=1 --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", more)
    assert l4._question(task, whole=False)["flags"] == "--xla_other=1"
