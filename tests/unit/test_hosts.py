"""Which host is slow: named after a minute, once, and not for a moment."""

import subprocess

import jax
import pytest

from spectral_dist.cluster import hosts
from spectral_dist.cluster.hosts import SlowHosts, gpu_celsius
from spectral_dist.training import hosts as figures_of_hosts
from spectral_dist.training.hosts import HostFigures
from spectral_dist.training.metrics import Record
from spectral_dist.training.probe import Probe
from tests.unit.test_milestones import STATE


def probes(*values: float) -> dict[str, dict[str, float]]:
    return {f"process {i}": {"probe_seconds": value} for i, value in enumerate(values)}


def test_one_that_is_slow_for_a_minute_is_named_once() -> None:
    said: list[str] = []
    slow = SlowHosts(said.append)
    for second in range(0, 200, 10):
        slow.look(probes(1.0, 1.02, 1.2, 0.99), float(second))
        assert len(said) == (second >= 60)
    assert said == [
        "process 2 has been 19% slower than the median in arithmetic of its own for 60 s, and all"
        " wait for it"
    ]
    slow.look(probes(1.0, 1.0, 1.0, 1.0), 200.0)  # it has recovered, and falls back again
    for second in (210.0, 280.0):
        slow.look(probes(1.0, 1.0, 1.4, 1.0), second)
    assert len(said) == 2


def test_a_slow_moment_names_nobody() -> None:
    said: list[str] = []
    slow = SlowHosts(said.append)
    for second in range(0, 600, 10):
        slow.look(probes(1.0, 3.0 if second % 60 else 1.0), float(second))
    assert said == []


def test_a_wait_for_data_and_the_heat_are_said() -> None:
    said: list[str] = []
    slow = SlowHosts(said.append)
    waiting = {"data_wait_seconds": 0.5, "step_seconds": 1.0, "gpu_celsius": 91.0}
    for second in (0.0, 60.0):
        slow.look({"process 0": {"step_seconds": 1.0}, "process 1": waiting}, second)
    assert said == [
        "process 1 has waited for its data 50% of each step for 60 s, and all wait for it; its GPU"
        " has 91 C"
    ]


def test_the_hottest_gpu_counts_and_none_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, "61\n88\n70\n", "")
    monkeypatch.setattr(hosts.subprocess, "run", lambda *_, **__: done)
    assert gpu_celsius() == 88.0

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(hosts.subprocess, "run", missing)
    assert gpu_celsius() is None


class Two:
    """Stands for the processes of a run of two, of which this is the coordinator."""

    count, is_coordinator = 2, True

    def __init__(self) -> None:
        self.mine: dict[str, float] = {}

    def report(self, figures: dict[str, float]) -> None:
        self.mine = dict(figures)

    def hosts(self) -> dict[str, dict[str, float]]:
        return {"process 0": self.mine, "process 1": {"probe_seconds": 99.0}}


def test_a_record_has_the_figures_of_each_host(monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [0.0], list[float]()

    class Fake:
        def __init__(self, devices: object) -> None:
            made.append(0.0)

        def seconds(self) -> float:
            made.append(now[0])
            return 1.0 + now[0]

    monkeypatch.setattr(figures_of_hosts, "Probe", Fake)
    monkeypatch.setattr(figures_of_hosts, "gpu_celsius", lambda: None)
    said: list[str] = []
    figures = HostFigures(Two(), said.append, lambda: now[0])  # pyright: ignore
    record = Record(1, {"perf/data_wait_seconds": 0.25, "perf/step_seconds": 2.0})
    assert figures(record, STATE) == {
        "hosts/0/probe_seconds": 1.0,
        "hosts/0/data_wait_seconds": 0.25,
        "hosts/1/probe_seconds": 99.0,
    }
    for now[0] in (10.0, 25.0, 30.0, 61.0):
        found = figures(record, STATE)
    assert made == [0.0, 0.0, 25.0, 61.0]  # compiled once, and every 20 s at most
    assert found["hosts/0/probe_seconds"] == 62.0
    assert len(said) == 1


def test_the_probe_measures_every_device() -> None:
    probe = Probe(jax.local_devices()[:2])
    assert len(probe._inputs) == 2
    assert 0 < probe.seconds() < 10
