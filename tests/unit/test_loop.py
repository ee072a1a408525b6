"""The rhythm of the loop: read one step late, the last one too, stop on bad steps."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from spectral_dist.data.mixture import Batch
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training import loop
from spectral_dist.training.loop import LN2, Progress, train
from spectral_dist.training.metrics import Throughput


class OnDevice:
    """A figure that is not there yet: reading it is noted."""

    def __init__(self, value: float, note: Any) -> None:
        self._value, self._note = value, note

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._note()
        return np.asarray(self._value, np.float32)


class Fake:
    """A training step that notes what happens when, and a clock that only it and the data move."""

    def __init__(self, bad: set[int] = frozenset(), step_bytes: float = 192.0) -> None:  # type: ignore[assignment]
        self.events: list[str] = []
        self.now = 0.0
        self._bytes = step_bytes
        self._bad, self._in_row, self._skipped = bad, 0, 0

    def clock(self) -> float:
        return self.now

    def batches(self, count: int, first: int = 0, seconds: float = 0.0) -> Iterator[Batch]:
        for step in range(first, first + count):
            self.now += seconds
            yield Batch(step, jax.numpy.int32(step))

    def step(self, state: int, tokens: Any) -> tuple[int, dict[str, Any]]:
        number = int(tokens) + 1
        self.events.append(f"run {number}")
        self.now += 1.0
        is_bad = number in self._bad
        self._in_row = self._in_row + 1 if is_bad else 0
        self._skipped += is_bad
        values = {
            "grad_norm": 2.0,
            "bytes": self._bytes,
            "learning_rate": 0.5,
            "skipped": self._skipped,
            "bad_in_row": self._in_row,
        }
        loss = OnDevice(float(number), lambda: self.events.append(f"read {number}"))
        return state + 1, {"loss": loss} | {k: np.float32(v) for k, v in values.items()}

    def run(self, batches: Iterator[Batch], config: Config) -> list[Progress]:
        return list(train(self.step, 0, batches, config, Throughput(self.clock)))  # type: ignore[arg-type]


def config(**settings: Any) -> Config:
    values = {"log_every": 1, "seq_len": 16, "batch_size": 4, "accum_steps": 3, "lr": 0.125}
    return resolve(from_flat(values | settings))


def test_a_step_is_read_while_the_next_one_runs_and_the_last_is_read_too() -> None:
    fake = Fake()
    items = fake.run(fake.batches(3), config())
    assert fake.events == ["run 1", "run 2", "read 1", "run 3", "read 2", "read 3"]
    assert [item.step for item in items] == [1, 2, 3, 3]
    assert [item.record.step if item.record else None for item in items] == [None, 1, 2, 3]
    assert [item.state for item in items] == [1, 2, 3, 3]


def test_the_record_holds_the_figures_under_their_names() -> None:
    fake = Fake()
    record = fake.run(fake.batches(1), config())[-1].record
    assert record is not None
    assert record.metrics["train/loss"] == 1.0
    assert record.metrics["train/bits_per_byte"] == pytest.approx(1 / np.log(2))
    assert pytest.approx(np.log(2)) == LN2
    assert record.metrics["train/grad_norm"] == 2.0
    assert record.metrics["train/skipped_steps"] == 0.0
    assert record.metrics["optimizer/learning_rate"] == 0.5
    assert record.metrics["perf/tokens_per_second"] == pytest.approx(16 * 4 * 3)


def test_bits_are_per_byte_whatever_the_tokenizer() -> None:
    """192 tokens that stand for 768 bytes: a quarter of the bits per token."""
    record = Fake(step_bytes=768.0).run(Fake().batches(1), config())[-1].record
    assert record is not None
    assert record.metrics["train/loss"] == 1.0
    assert record.metrics["train/bits_per_byte"] == pytest.approx(1 / 4 / np.log(2))


def test_records_come_every_log_every_steps_and_at_the_end() -> None:
    fake = Fake()
    items = fake.run(fake.batches(7, first=2), config(log_every=3))
    assert [item.record.step for item in items if item.record] == [3, 6, 9]
    items = fake.run(fake.batches(2, first=9), config(log_every=3))
    assert [item.record.step for item in items if item.record] == [11]


def test_no_batch_gives_no_step() -> None:
    assert Fake().run(iter(()), config()) == []


def test_waiting_for_data_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setattr(loop.time, "perf_counter", fake.clock)
    items = fake.run(fake.batches(4, seconds=0.25), config(log_every=4))
    record = items[-1].record
    assert record is not None
    assert record.metrics["perf/data_wait_seconds"] == pytest.approx(0.25)
    assert record.metrics["perf/step_seconds"] == pytest.approx(1.25)


def test_too_many_bad_steps_in_a_row_stop_the_run_with_the_remedy() -> None:
    fake = Fake(bad={3, 4, 5})
    made = config(max_bad_steps=3, warmup_steps=7, steps=100)
    seen: list[int] = []
    items = train(fake.step, 0, fake.batches(20), made, Throughput())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_bad_steps=3") as error:
        seen.extend(item.step for item in items)
    message = str(error.value)
    assert "step 5" in message
    assert "--lr (now 0.125)" in message
    assert "--warmup_steps (now 7)" in message
    assert "no checkpoint holds one" in message
    assert "\n" not in message
    # Step 5 is read when step 6 has been started.
    assert fake.events[-2:] == ["run 6", "read 5"]
    assert seen[-1] == 5


def test_the_last_step_may_be_the_one_too_many() -> None:
    fake = Fake(bad={2, 3})
    with pytest.raises(ValueError, match="step 3"):
        fake.run(fake.batches(3), config(max_bad_steps=2, log_every=100))


def test_bad_steps_with_good_ones_between_do_not_stop_the_run() -> None:
    fake = Fake(bad={1, 2, 4, 5, 7})
    items = fake.run(fake.batches(8), config(max_bad_steps=3))
    record = items[-1].record
    assert record is not None
    assert record.step == 8
    assert record.metrics["train/skipped_steps"] == 5.0


def test_what_else_the_step_returns_is_a_figure_of_the_record() -> None:
    fake = Fake()

    def step(state: int, tokens: Any) -> tuple[int, dict[str, Any]]:
        state, metrics = fake.step(state, tokens)
        return state, metrics | {"train/entropy": np.float32(1.5)}

    items = list(train(step, 0, fake.batches(1), config(), Throughput()))  # type: ignore[arg-type]
    record = items[-1].record
    assert record is not None
    assert record.metrics["train/entropy"] == 1.5
    assert "bad_in_row" not in record.metrics


def test_nothing_crosses_between_host_and_device_unasked() -> None:
    fake = Fake()

    def step(state: jax.Array, tokens: Any) -> tuple[Any, dict[str, Any]]:
        _, metrics = fake.step(0, tokens)
        return state + np.float32(1), metrics  # a number of the host's, at every step

    items = train(step, jax.numpy.zeros(3), fake.batches(1), config(), Throughput())  # type: ignore[arg-type]
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        list(items)
