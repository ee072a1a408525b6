"""The profile of a few steps: which are traced, where the trace is, and what goes wrong."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from spectral_dist.settings import from_flat, resolve
from spectral_dist.training import profile
from spectral_dist.training.profile import profiled


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what the profiler was told, in order with the steps."""
    told: list[Any] = []

    def start(folder: Path, *, create_perfetto_trace: bool) -> None:
        assert create_perfetto_trace
        told.append(("start", folder))

    monkeypatch.setattr(profile.jax.profiler, "start_trace", start)
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: told.append("stop"))
    return told


def run(calls: list[Any], folder: Path, steps: range | None, done: int, count: int) -> list[str]:
    """Run so many steps; return what was said."""
    said: list[str] = []

    def train_step(state: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        calls.append(int(state) + 1)
        return state + 1, tokens

    with profiled(train_step, steps, folder, done, said.append, said.append) as step:
        state = jnp.int32(done)
        for _ in range(count):
            state, _ = step(state, jnp.zeros((1, 1, 2), jnp.int32))
    assert int(state) == done + count
    return said


def test_these_steps_and_no_others_are_traced(calls: list[Any], tmp_path: Path) -> None:
    said = run(calls, tmp_path, range(3, 5), 0, 6)
    assert calls == [1, 2, ("start", tmp_path), 3, 4, "stop", 5, 6]
    assert len(said) == 1
    assert "steps 3 to 4" in said[0]
    assert str(tmp_path) in said[0]


def test_steps_are_those_of_the_run_and_not_of_this_start(calls: list[Any], tmp_path: Path) -> None:
    run(calls, tmp_path, range(12, 13), 10, 3)
    assert calls == [11, ("start", tmp_path), 12, "stop", 13]


def test_a_run_that_ends_early_writes_what_there_is(calls: list[Any], tmp_path: Path) -> None:
    said = run(calls, tmp_path, range(2, 9), 0, 3)
    assert calls == [1, ("start", tmp_path), 2, 3, "stop"]
    assert "steps 2 to 3" in said[0]


def test_steps_that_are_over_are_not_traced(calls: list[Any], tmp_path: Path) -> None:
    said = run(calls, tmp_path, range(3, 5), 3, 2)
    assert calls == [4, 5]
    assert said == ["profile=3:4: the run goes on after step 3; nothing is traced"]


def test_without_a_profile_the_step_is_the_compiled_one(tmp_path: Path) -> None:
    def step(state: Any, tokens: Any) -> Any:
        return state, tokens

    with profiled(step, None, tmp_path, 0, print, print) as found:
        assert found is step


def test_a_trace_that_cannot_be_written_is_a_warning(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    said = run(calls, tmp_path / "file" / "below", range(1, 2), 0, 2)
    assert calls == [1, 2]
    assert said[0].startswith("profile: no trace: ")

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profile.jax.profiler, "stop_trace", full)
    said = run([], tmp_path, range(1, 2), 0, 2)
    assert "could not be written" in said[0]
    assert "No space left" in said[0]


def test_a_real_trace(tmp_path: Path) -> None:
    run([], tmp_path, range(2, 3), 0, 2)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert "perfetto_trace.json.gz" in names
    assert any(name.endswith(".xplane.pb") for name in names)


@pytest.mark.parametrize("value", ["3", "0:4", "5:4", "a:b", "1:2:3", "-1:2", "", "10:99999"])
def test_what_is_no_range_of_steps_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="profile"):
        resolve(from_flat({"profile": value, "steps": 100}))


def test_the_setting() -> None:
    assert resolve(from_flat({"profile": "10:13"})).run.traced_steps == range(10, 14)
    assert resolve(from_flat({})).run.traced_steps is None
