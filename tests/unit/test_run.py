"""A run's own decisions: what falls due at which step, and the sources of a run."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.data.tokens import TokenFile
from spectral_dist.flags import load_config
from spectral_dist.run import compile_step, open_sources
from spectral_dist.training.evaluation import Interrupted
from spectral_dist.training.loop import Progress
from spectral_dist.training.metrics import Record
from spectral_dist.training.milestones import Milestones
from spectral_dist.training.state import TrainState

STATE = TrainState(cast(Any, 0), {}, None, cast(Any, 0), cast(Any, 0))
FLAGS = "--data_paths a.txt --steps 12 --save_every 5 --eval_every 4 --batch_size 2 --accum_steps 3"


class Heard:
    """Stands for checkpoints, evaluation and output: keeps what each was given."""

    def __init__(self, first: tuple[int, int] = (0, 0), stopping: bool = False) -> None:
        self.stopping = stopping
        self.saved: list[tuple[int, int, float | None]] = []
        self.written: list[Record] = []
        self.wait_seconds = 0.0
        files = [TokenFile("a", Path("a.bin"), np.zeros(9, np.uint8), 1, "", 5)]
        me = cast(Any, self)
        config = load_config(FLAGS.split())
        self.milestones = Milestones(config, files, me, me, [me], first)

    def save(self, step: int, state: Any, description: Any, *, validation: float | None) -> None:
        del state
        self.saved.append((step, description["next_row"], validation))

    def by_source(self, params: Any) -> dict[str, float]:
        if self.stopping:
            raise Interrupted
        return {"val/bits_per_byte": 2.5}

    def extrapolation(self, params: Any) -> dict[str, float]:
        return {"extrapolation/2x/success": 1.0}

    def write(self, record: Record) -> None:
        self.written.append(record)

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


def test_a_complete_run_compiles_nothing() -> None:
    told: list[str] = []
    config = load_config(FLAGS.split())
    for step in (12, 20):
        assert compile_step(config, cast(Any, None), STATE, step, told.append) is None
    assert told[1] == "complete at step 20: nothing is left to train; more --steps would go on"


def test_sources_are_prepared_and_weights_normalised(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("one line of text\n" * 40, encoding="utf-8")
    argv = ["--data_paths", ",".join(map(str, paths)), "--data_weights", "3,1", "--seq_len", "16"]
    told: list[str] = []
    alone = Processes(StopSignal())
    config, files = open_sources(load_config(argv), told.append, alone)
    assert [dataset.weight for dataset in config.datasets] == [0.75, 0.25]
    assert [file.name for file in files] == ["a", "b"]
    assert told[0] == "data_weights=3,1 sum to 4: normalised to 0.75,0.25"
    with pytest.raises(ValueError, match="too short"):
        open_sources(
            load_config([*argv, "--seq_len", "4000"]), told.append, Processes(StopSignal())
        )
