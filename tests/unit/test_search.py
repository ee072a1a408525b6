"""The search of a mesh: what there is to choose from, and that leaving out changes no answer."""

import dataclasses
import logging
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.memory import GIB
from spectral_dist.planning.roofline import rates_of
from spectral_dist.planning.search.bounds import find_shapes, kernel_floor, memory_bound, time_bound
from spectral_dist.planning.search.candidates import Candidate, chosen_config, settings_of
from spectral_dist.planning.search.search import (
    BEST,
    FREE_SHARE,
    room,
    search,
)
from spectral_dist.planning.search.worker import answer
from spectral_dist.planning.search.workers import Cluster, Failure, Found, Outcome, Task
from spectral_dist.settings import Config
from tests.unit.test_bounds import level3, small

L4 = find_gpu("l4")
HOSTS = Cluster(L4, 4, 8, L4.memory_bytes)
SHAPES = find_shapes(level3())


class Bench:
    """Compiles by a function, two at a time, the last one begun first."""

    count = 2

    def __init__(self, compiler: Callable[[Task], Found]) -> None:
        self._compile, self._waiting = compiler, list[Task]()
        self.compiled: dict[Task, Found] = {}
        self.started: list[Task] = []

    @property
    def busy(self) -> int:
        return len(self._waiting)

    def recall(self, task: Task) -> Found | None:
        return self.compiled.get(task)

    def start(self, task: Task) -> None:
        assert self.busy < self.count
        self._waiting.append(task)
        self.started.append(task)

    def wait(self) -> tuple[Task, Found]:
        task = self._waiting.pop()
        self.compiled[task] = self._compile(task)
        return task, self.compiled[task]


def level3_outcome(task: Task) -> Outcome:
    """Stand for the compiler: twice the bound on kernels, and what smaller pieces cost."""
    config, shapes = task.config, SHAPES
    bound = time_bound(config, shapes, rates_of(L4), 8)
    slower = 1 + 0.03 * math.log2(config.data.accum_steps * config.mesh.shape[2])
    kernels = {"none": 9.0, "dots": 6.6, "full": 7.2}[config.model.remat] * slower
    kernels *= 0.8 if config.model.unroll == "all" else 1.0
    traffic = 1.02 * bound.communication_seconds
    peak = int((1.6 if config.model.unroll == "all" else 1.4) * memory_bound(config, shapes))
    return Outcome(peak, kernels, traffic, traffic, 524288 / (kernels + traffic))


def settings_text(config: Config) -> str:
    return f"{config.mesh.mesh} {config.data.batch_size} {config.model.remat} {config.model.unroll}"


def run(
    bench: Bench,
    config: Config,
    cluster: Cluster = HOSTS,
    ruled_out: dict[Config, str] | None = None,
) -> list[Candidate]:
    said: list[str] = []
    found = search(config, cluster, bench, ruled_out=ruled_out or {}, say=said.append)
    assert len(said) == len(bench.started) or ruled_out or not said
    return found


def exhaustive(
    config: Config, cluster: Cluster, outcome: Callable[[Task], Found]
) -> dict[Config, Outcome]:
    """Return every candidate that can be made and fits, compiled."""
    found = {}
    for settings in settings_of(config, cluster.count):
        try:
            changed = chosen_config(config, Candidate(*settings, None, None, None, None, ""))
            done = outcome(Task(changed, False))
        except ValueError:
            continue
        limit = room(changed, cluster)
        if isinstance(done, Outcome) and (limit is None or done.peak <= limit):
            found[changed] = done
    return found


# ---- what there is to choose from


def test_every_mesh_every_split_every_remat_and_unroll() -> None:
    found = list(settings_of(level3(), 32))
    assert len(found) == len(set(found)) == 21 * 9 * 3 * 2
    for mesh, batch, accum, remat, unroll in found:
        assert math.prod(map(int, mesh.split("x"))) == 32
        assert batch * accum == 64 * 4
        assert remat in ("none", "dots", "full")
        assert unroll in ("all", "none")
    # A single block of layers is no loop either way.
    assert {unroll for *_, unroll in settings_of(small(num_layers=3), 1)} == {"none"}


def test_what_cannot_be_made_says_why() -> None:
    ranking = run(Bench(level3_outcome), level3())
    assert len(ranking) == 1134
    reasons = {(c.mesh, c.batch_size): c.reason for c in ranking}
    assert reasons["4x8x1", 16].startswith("batch_size=16: must be a multiple of data x fsdp = 32")
    assert "so that this mesh axis lies inside a host" in reasons["1x2x16", 64]
    assert "tensor=32 must divide num_kv_heads=16" in reasons["1x1x32", 64]


def test_nothing_can_run() -> None:
    config = small(batch_size=1, mesh="1x1x1", num_kv_heads=1)
    with pytest.raises(ValueError, match="nothing can run on 1 x 3 fake device: mesh=1x1x3"):
        run(Bench(level3_outcome), config, Cluster(None, 1, 3))


# ---- branch and bound


def test_the_best_are_those_of_an_exhaustive_search() -> None:
    bench = Bench(level3_outcome)
    ranking = run(bench, level3())
    ranked = [c for c in ranking if not c.reason]
    times = sorted(o.step_seconds for o in exhaustive(level3(), HOSTS, level3_outcome).values())
    assert [c.step_seconds for c in ranked[:BEST]] == times[:BEST]
    assert [c.step_seconds for c in ranked] == sorted(c.step_seconds or 0.0 for c in ranked)
    assert len(bench.started) < 40, "of 564 that can be made"
    best = ranked[0]
    assert best.spare == room(chosen_config(level3(), best), HOSTS) - (best.peak or 0)
    assert best.tokens_per_second == pytest.approx(524288 / (best.step_seconds or 1.0))


@pytest.mark.parametrize("seed", range(4))
def test_the_best_may_be_far_from_the_lowest_bound(seed: int) -> None:
    """Costs drawn for each candidate, none below what the bounds and the references allow."""

    def drawn(task: Task) -> Outcome:
        draw = random.Random(f"{seed} {settings_text(task.config)}")
        found = level3_outcome(task)
        slower = 1.0 if task.unlimited else 1 + draw.random() / 2
        kernels, traffic = found.kernel_seconds * slower, found.communication_seconds
        traffic *= 1 + draw.random()
        return Outcome(found.peak, kernels, traffic, traffic, 524288 / (kernels + traffic))

    bench = Bench(drawn)
    ranked = [c for c in run(bench, level3()) if not c.reason]
    every = exhaustive(level3(), HOSTS, lambda t: bench.compiled.get(t) or drawn(t))
    # A reference with memory to spare stands for its own candidate.
    for task, found in bench.compiled.items():
        if task.unlimited and task.config in every:
            assert isinstance(found, Outcome)
            every[task.config] = found
    times = sorted(found.step_seconds for found in every.values())
    assert [c.step_seconds for c in ranked[:BEST]] == times[:BEST]
    assert len(bench.started) < len(every) / 2


def test_the_first_tasks_are_references() -> None:
    bench = Bench(level3_outcome)
    run(bench, level3())
    references = [task for task in bench.started if task.unlimited]
    assert {task.config.model.remat for task in references} >= {"dots", "full"}
    assert all(task.config.mesh.mesh == "1x32x1" for task in references)
    assert all(task.unlimited for task in bench.started[:2])
    # With memory to spare the reference is what its candidate would be: no second compilation.
    assert not any(
        Task(task.config, False) in bench.started
        for task in references
        if (level3_outcome(task).peak < FREE_SHARE * L4.memory_bytes)
    )


def test_a_second_ask_compiles_nothing() -> None:
    bench = Bench(level3_outcome)
    first = run(bench, level3())
    bench.started.clear()
    assert run(bench, level3()) == first
    assert bench.started == []


def test_one_that_is_ruled_out_makes_room_for_the_next() -> None:
    bench = Bench(level3_outcome)
    first = run(bench, level3())
    best = chosen_config(level3(), first[0])
    second = run(bench, level3(), ruled_out={best: "evaluation 4x: 1.00 GiB too much"})
    assert second[0] == first[1]
    (out,) = (c for c in second if c.flags == first[0].flags)
    assert out.reason == "evaluation 4x: 1.00 GiB too much"
    assert len([c for c in second if not c.reason]) >= BEST


def test_failures_are_rows_and_end_nothing() -> None:
    def failing(task: Task) -> Found:
        if task.config.mesh.shape[0] == 1:
            return Failure("its worker process ended (exit -9)", lasting=False)
        return level3_outcome(task)

    ranking = run(Bench(failing), level3())
    assert not ranking[0].reason
    assert not ranking[0].mesh.startswith("1x")
    failed = [c for c in ranking if c.reason == "its worker process ended (exit -9)"]
    assert failed
    assert all(c.step_seconds is None for c in failed)


def test_where_nothing_fits_the_nearest_is_first() -> None:
    small_gpu = dataclasses.replace(HOSTS, usable=2 * GIB + GIB // 2)
    bench = Bench(level3_outcome)
    ranking = run(bench, level3(), small_gpu)
    assert all(c.reason for c in ranking)
    assert ranking[0].peak is not None
    assert ranking[0].spare == max(c.spare for c in ranking if c.spare is not None)
    assert ranking[0].reason.endswith("GiB too much")
    tiny = dataclasses.replace(HOSTS, usable=GIB)
    ranking = run(Bench(level3_outcome), level3(), tiny)
    assert ranking[0].reason.startswith("needs at least")
    assert ranking[0].mesh == "1x32x1"


def test_what_keeps_more_than_one_that_does_not_fit_is_left_out() -> None:
    def hungry(task: Task) -> Outcome:
        found = level3_outcome(task)
        return dataclasses.replace(found, peak=3 * found.peak)

    ranking = run(Bench(hungry), level3(), dataclasses.replace(HOSTS, usable=8 * GIB))
    left_out = [c.reason for c in ranking if c.reason.startswith("keeps more than --mesh=")]
    assert left_out
    assert all(reason.endswith("which does not fit") for reason in left_out)


def test_the_pool_of_an_attached_device_is_all_for_the_programs() -> None:
    config = level3()
    inside = dataclasses.replace(HOSTS, usable=16 * GIB, pool=True)
    assert room(config, inside) == 16 * GIB
    assert room(config, dataclasses.replace(inside, pool=False)) < 16 * GIB - GIB // 2
    assert room(config, Cluster(None, 1, 32)) is None


# ---- against the compiler


# Nothing runs: a wide model compiles as fast as a narrow one, and its bounds say more.
WIDE = {"hidden_dim": 512, "head_dim": 256, "mlp_dim": 1024, "seq_len": 1024, "num_kv_heads": 2}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # So small a batch leaves two meshes.
    "few": {"num_layers": 1, "batch_size": 2, "head_dim": 128, "num_kv_heads": 4},
    "spectral": {"layer_pattern": "spectral", "num_layers": 2},
    "window": {"layer_pattern": "window", "num_layers": 2, "chunk_size": 64, "window": 256},
    "both": {"num_layers": 4, "batch_size": 4, "accum_steps": 2, "chunk_size": 64},
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "few" else pytest.mark.exhaustive)
        for name in CONFIGURATIONS
    ],
)
def test_against_every_candidate_compiled(name: str) -> None:
    config = small(mesh="1x1x1", **WIDE | CONFIGURATIONS[name])
    cluster, shapes, rates = Cluster(None, 2, 4), find_shapes(config), rates_of(None)

    def compiled(task: Task) -> Outcome:
        request = {"config": task.config.flat(), "gpu": None, "per_host": 4, "unlimited": False}
        return Outcome(**answer(request | {"whole": False})["outcome"])

    bench = Bench(compiled)
    best = run(bench, config, cluster)[0]
    known = {task.config: found for task, found in bench.compiled.items()}

    def remembered(task: Task) -> Found:
        if task.config not in known:
            known[task.config] = compiled(task)
        return known[task.config]

    every = exhaustive(config, cluster, remembered)
    fastest = min(found.step_seconds for found in every.values())
    assert best.step_seconds is not None
    regret = best.step_seconds / fastest - 1
    worst = 1.0  # of what a bound says, to what came out
    for other, found in every.items():
        bound = time_bound(other, shapes, rates, 4)
        floors = [
            kernel_floor(reference.kernel_seconds, of, other, shapes, rates)
            for of, reference in every.items()
        ]
        worst = max(worst, max(floors) / found.kernel_seconds)
        assert bound.kernel_seconds <= found.kernel_seconds, other
        assert bound.communication_seconds <= found.communication_seconds * 1.001, other
    logging.getLogger(__name__).info(
        f"{name}: {len(every)} candidates, {len(bench.started)} compiled, regret {regret:.2%},"
        f" a floor above by {worst - 1:.1%} at most; the best: {best.flags}"
    )
    assert regret < 0.05
