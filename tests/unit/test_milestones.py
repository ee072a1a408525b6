"""What falls due at which step, and what joins a record."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest

from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokens import TokenFile
from spectral_dist.flags import load_config
from spectral_dist.training.evaluation import Interrupted
from spectral_dist.training.loop import Progress
from spectral_dist.training.metrics import Record
from spectral_dist.training.milestones import Figure, Milestones
from spectral_dist.training.state import TrainState

STATE = TrainState(cast(Any, 0), {}, None, cast(Any, 0), cast(Any, 0))
FLAGS = "--data_paths a.txt --steps 12 --save_every 5 --eval_every 4 --batch_size 2 --accum_steps 3"


class Heard:
    """Stands for checkpoints, evaluation and output: keeps what each was given."""

    def __init__(
        self,
        first: tuple[int, int] = (0, 0),
        stopping: bool = False,
        figures: Sequence[Figure] = (),
        flags: str = FLAGS,
    ) -> None:
        self.stopping = stopping
        self.saved: list[tuple[int, int, float | None]] = []
        self.written: list[Record] = []
        self.wait_seconds = 0.0
        self.loss = 2.5
        self.stored: float | None = None
        files = [TokenFile("a", Path("a.bin"), Tokens([np.zeros(9, np.uint8)]), 1, "", 5)]
        me = cast(Any, self)
        config = load_config(flags.split())
        self.due: list[bool] = []
        self.phases: list[str] = []
        self.milestones = Milestones(config, files, me, me, [me], first, figures, me)

    def should_save(self, due: bool) -> bool:
        self.due.append(due)
        return due

    def phase(self, name: str) -> AbstractContextManager[None]:
        self.phases.append(name)
        return nullcontext()

    def save(self, step: int, state: Any, description: Any, *, validation: float | None) -> None:
        del state
        self.saved.append((step, description["next_sequence"], validation))

    def by_dataset(self, params: Any) -> dict[str, float]:
        if self.stopping:
            raise Interrupted
        return {"val/bits_per_byte": self.loss}

    def steps(self) -> list[int]:
        return [step for step, *_ in self.saved]

    def validation(self, step: int) -> float | None:
        return self.stored

    def best(self) -> int | None:
        return min(self.steps(), default=None)

    def extrapolation(self, params: Any) -> dict[str, float]:
        return {"extrapolation/2x/success": 1.0}

    def write(self, record: Record) -> None:
        self.axes = {n: v for n, v in record.metrics.items() if n.startswith("progress/")}
        others = {n: v for n, v in record.metrics.items() if n not in self.axes}
        self.written.append(Record(record.step, others))

    def close(self) -> None: ...


def progress(step: int, record: Record | None = None) -> Progress:
    return Progress(step, STATE, record)


def test_evaluations_and_checkpoints_fall_due() -> None:
    heard = Heard()
    for step in range(1, 13):
        heard.milestones.reach(progress(step))
    assert heard.saved == [(5, 30, None), (10, 60, None)]
    assert [r.step for r in heard.written] == [4, 8]  # the last step is finish's
    heard.milestones.finish(progress(12))
    assert heard.saved[2:] == [(12, 72, 2.5)]
    assert heard.written[-1].metrics == {"val/bits_per_byte": 2.5, "extrapolation/2x/success": 1.0}
    assert heard.milestones.measured == heard.written[-1].metrics
    assert heard.axes["progress/tokens"] == 12 * 6 * 2048
    assert heard.axes["progress/saved_step"] == 10


def test_a_save_falls_due_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    heard = Heard(flags=f"{FLAGS} --save_minutes 2 --keep_every 7")
    for step in range(1, 12):
        now[0] += 50.0
        heard.milestones.reach(progress(step))
    # 3 and 10 by the clock, 5 by save_every, 7 by keep_every: each starts the minutes anew.
    assert heard.steps() == [3, 5, 7, 10]
    assert heard.due == [step in (3, 10) for step in range(1, 12)]
    never = Heard(flags=f"{FLAGS} --save_minutes 0")
    now[0] += 1e9
    never.milestones.reach(progress(1))
    assert never.saved == []


def test_a_stopping_run_saves_and_measures_nothing() -> None:
    heard = Heard(stopping=True)
    heard.milestones.reach(progress(4))
    heard.milestones.finish(progress(4))
    assert heard.saved == [(4, 24, None)]
    assert heard.written == []


def test_the_next_row_is_counted_from_where_the_run_resumed() -> None:
    heard = Heard(first=(3, 1000))
    heard.milestones.reach(progress(5))
    assert heard.saved == [(5, 1000 + 2 * 6, None)]


def test_the_record_of_the_step_before_is_written_with_its_own_step() -> None:
    heard = Heard()
    heard.milestones.reach(progress(2, Record(1, {"train/loss": 5.0})))
    assert heard.written[0].step == 1
    assert heard.written[0].metrics["train/loss"] == 5.0
    assert "perf/mfu" not in heard.written[0].metrics  # no tokens per second, and a CPU


def test_a_loop_that_ends_tells_twice_of_its_last_step() -> None:
    heard = Heard()
    heard.milestones.reach(progress(4))
    heard.milestones.reach(progress(4, Record(4, {"train/loss": 5.0})))
    assert [sorted(r.metrics) for r in heard.written] == [
        ["extrapolation/2x/success", "val/bits_per_byte"],
        ["train/loss"],
    ]


def test_a_step_is_saved_once_and_not_where_it_was_not_finite() -> None:
    heard = Heard()
    heard.milestones.save_if_unsaved(progress(3))
    heard.milestones.save_if_unsaved(progress(3))
    assert heard.saved == [(3, 18, None)]
    sick = Progress(5, dataclasses.replace(STATE, bad_in_row=cast(Any, 2)), None)
    heard.milestones.save_if_unsaved(sick)
    heard.milestones.reach(sick)
    assert len(heard.saved) == 1


def test_a_figure_of_ones_own_joins_every_record() -> None:
    def doubled(record: Record, state: TrainState) -> Mapping[str, float]:
        assert state is STATE
        return {"train/doubled_loss": 2 * record.metrics["train/loss"]}

    heard = Heard(figures=[doubled])
    heard.milestones.reach(progress(2, Record(1, {"train/loss": 5.0})))
    assert heard.written[0].metrics == {"train/loss": 5.0, "train/doubled_loss": 10.0}


def test_a_state_without_a_finite_loss_is_not_saved() -> None:
    heard = Heard()
    heard.loss = math.nan
    with pytest.raises(
        ValueError, match=r"^val/bits_per_byte=nan after step 4: .*no checkpoint yet"
    ):
        heard.milestones.reach(progress(4))
    assert heard.saved == []
    assert math.isnan(heard.written[-1].metrics["val/bits_per_byte"])
    heard = Heard()
    for step in (5, 10):
        heard.milestones.reach(progress(step))
    heard.loss = math.inf
    words = r"of steps 5, 10, the best by validation is 5: without those after it the run goes on"
    with pytest.raises(ValueError, match=words):
        heard.milestones.finish(progress(12))
    assert [step for step, *_ in heard.saved] == [5, 10]


def test_a_complete_run_is_not_recorded_again() -> None:
    heard = Heard(first=(12, 72))
    heard.stored = 2.5
    heard.milestones.finish(progress(12))
    assert (heard.written, heard.saved) == ([], [])
    assert heard.milestones.measured["val/bits_per_byte"] == 2.5
    heard.stored = None  # preempted before its last evaluation
    heard.milestones.finish(progress(12))
    assert [record.step for record in heard.written] == [12]


def test_the_time_of_a_step_that_still_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, order = Heard(), []
    throughput = heard.milestones.throughput
    pause = throughput.pause
    monkeypatch.setattr(throughput, "pause", lambda: (order.append("pause"), pause()))
    monkeypatch.setattr(jax, "block_until_ready", lambda state: order.append("step ends"))
    heard.milestones.evaluate(progress(4))
    assert order == ["step ends", "pause"]
