"""From the devices to the chosen configuration: the whole must fit, or the next one is taken."""

from types import SimpleNamespace
from typing import Any

import pytest

from spectral_dist.planning.compile import Program
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.memory import GIB
from spectral_dist.planning.search import choice as choosing
from spectral_dist.planning.search.cache import Cache
from spectral_dist.planning.search.choice import attached, choose, choose_mesh, described
from spectral_dist.planning.search.workers import Cluster, Failure, Outcome, Task
from spectral_dist.settings import Config
from tests.unit.test_bounds import small
from tests.unit.test_search import Bench

CLUSTER = Cluster(None, 1, 4, 4 * GIB)


class Compilers(Bench):
    """A bench whose programs as a whole need what it is told."""

    whole_peaks: dict[str, Any]

    def __init__(self, cluster: Cluster, cache: Cache, *, count: int | None) -> None:
        super().__init__(self._outcome)

    def __enter__(self) -> "Compilers":
        return self

    def __exit__(self, *_: object) -> None: ...

    @staticmethod
    def _outcome(task: Task) -> Outcome:
        # fsdp is the fastest, then data, then the others.
        seconds = {"1x4x1": 1.0, "4x1x1": 2.0}.get(task.config.mesh.mesh, 3.0)
        return Outcome(GIB, seconds * task.config.data.accum_steps, 0.0, 0.0, 1.0)

    def whole(self, config: Config) -> list[Program] | Failure:
        said = self.whole_peaks.get(config.mesh.mesh, GIB)
        if isinstance(said, str):
            return Failure(said, lasting=False)
        step = Program("train step", 0, 0, 0, GIB, 0, "", 0.0, ())
        return [step, Program("evaluation 4x", 0, 0, 0, said, 0, "", 0.0, ())]


@pytest.fixture
def whole_peaks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    peaks: dict[str, Any] = {}
    monkeypatch.setattr(Compilers, "whole_peaks", peaks, raising=False)
    monkeypatch.setattr(choosing, "Workers", Compilers)
    return peaks


def config() -> Config:
    return small(mesh="auto", batch_size=8, remat="full")


def test_the_best_that_fits_as_a_whole(whole_peaks: dict[str, Any]) -> None:
    said: list[str] = []
    found = choose(config(), CLUSTER, said.append)
    assert found.fits
    assert found.config.mesh.mesh == "1x4x1"
    assert (found.config.data.batch_size, found.config.data.accum_steps) == (8, 1)
    assert [program.name for program in found.programs] == ["train step", "evaluation 4x"]
    assert said[-1].startswith("all programs of --mesh=1x4x1")


@pytest.mark.parametrize(
    ("whole", "reason"),
    [(6 * GIB, "evaluation 4x: 2.00 GiB too much"), ("it died", "it died")],
)
def test_the_next_one_where_the_whole_does_not_fit(
    whole_peaks: dict[str, Any], whole: object, reason: str
) -> None:
    whole_peaks["1x4x1"] = whole
    found = choose(config(), CLUSTER, lambda text: None)
    assert found.fits
    assert found.config.mesh.mesh == "4x1x1"
    assert {c.reason for c in found.ranking if c.mesh == "1x4x1" and c.batch_size == 8} == {reason}


def test_where_nothing_fits(whole_peaks: dict[str, Any]) -> None:
    tight = Cluster(None, 1, 4, GIB // 2)
    found = choose(config(), tight, lambda text: None)
    assert not found.fits
    assert found.ranking[0].reason == "0.50 GiB too much"
    with pytest.raises(ValueError, match=r"mesh=auto: none of \d+ candidates fits on 1 x 4 fake"):
        choose_mesh(config(), tight, lambda text: None)
    whole_peaks |= dict.fromkeys((c.mesh for c in found.ranking), "it died")
    with pytest.raises(ValueError, match=r"mesh=auto: nothing fits; --mesh=.*: it died"):
        choose(config(), tight, lambda text: None)


def test_training_is_told_what_was_chosen(whole_peaks: dict[str, Any]) -> None:
    said: list[str] = []
    chosen = choose_mesh(config(), CLUSTER, said.append)
    assert chosen.mesh.mesh == "1x4x1"
    assert chosen.run == config().run
    assert said[-1].startswith("mesh=auto: --mesh=1x4x1 --batch_size=8 --accum_steps=1 --remat=")


# ---- the devices


def device(kind: str, process: int, stats: dict[str, int] | None) -> Any:
    return SimpleNamespace(device_kind=kind, process_index=process, memory_stats=lambda: stats)


def test_attached_devices_are_described_by_their_kind() -> None:
    gpus = [device("NVIDIA L4", i // 8, {"bytes_limit": 17 * GIB}) for i in range(16)]
    found = attached(gpus)
    assert found == Cluster(find_gpu("l4"), 2, 8, 17 * GIB, pool=True)
    bare = attached([device("NVIDIA L4", 0, None)])
    assert bare == Cluster(find_gpu("l4"), 1, 1, find_gpu("l4").memory_bytes)
    assert attached([device("Another", 0, None)] * 2) == Cluster(None, 1, 2, None)
    assert attached([device("Another", 0, {"bytes_limit": 5})]).usable == 5
    # Only a process's own devices know their memory.
    ours = device("NVIDIA L4", 0, {"bytes_limit": GIB})
    assert attached([device("NVIDIA L4", 1, None), ours]).usable == GIB
    assert attached() == Cluster(None, 1, 8, None)  # the tests' own


def test_described_devices() -> None:
    l4 = find_gpu("l4")
    assert described(l4, 4, 8, None) == Cluster(l4, 4, 8, l4.memory_bytes)
    assert described(l4, 1, 2, 5) == Cluster(l4, 1, 2, 5)
    assert described(None, 2, 4, None) == Cluster(None, 2, 4)
    assert described(None, None, None, None) == Cluster(None, 1, 8)
