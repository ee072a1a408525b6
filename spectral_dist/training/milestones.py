"""Between two steps: when to log, evaluate and save a checkpoint; also the save on preemption.

Owns when each of these happens, and the figures (MFU, memory) that are added to a record. The
training loop does not know of it, and the outputs only receive records. Read `Milestones.reach`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.data.tokens import TokenFile
from spectral_dist.model.flops import flops_per_token
from spectral_dist.outputs import Output
from spectral_dist.params import Params
from spectral_dist.settings import Config
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.evaluation import Evaluation, Interrupted
from spectral_dist.training.loop import Progress
from spectral_dist.training.metrics import Record, Throughput, memory_bytes, mfu
from spectral_dist.training.progress import SAVED, Axes
from spectral_dist.training.resume import describe
from spectral_dist.training.state import TrainState, model_spec

Figure = Callable[[Record, TrainState], Mapping[str, float]]
"""Returns metrics to add to the record of a logged step, by group/name_with_unit.

Called with the record so far and the current state, which is one step ahead of the record. Every
process calls it, so it may compute on the devices; it returns values on the host.
"""


def mfu_figure(config: Config) -> Figure:
    """Return the figure perf/mfu (model FLOPs utilisation), for devices whose peak is known."""
    # Counted once: the model and seq_len do not change during a run.
    flops, dtype = (
        flops_per_token(model_spec(config), config.data.seq_len),
        config.model.compute_dtype,
    )

    def figure(record: Record, state: TrainState) -> Mapping[str, float]:
        del state
        speed, devices = record.metrics.get("perf/tokens_per_second"), jax.devices()
        if speed is None:
            return {}
        share = mfu(speed, flops, devices[0].device_kind, len(devices), dtype)
        return {} if share is None else {"perf/mfu": share}

    return figure


def memory_figure(record: Record, state: TrainState) -> Mapping[str, float]:
    """Return perf/memory_bytes, the peak memory of this process's devices, if they count it."""
    del record, state
    peak = memory_bytes(jax.local_devices())
    return {} if peak is None else {"perf/memory_bytes": peak}


class Milestones:
    """Logs records, runs evaluations and saves checkpoints at the steps that the settings name."""

    def __init__(
        self,
        config: Config,
        files: list[TokenFile],
        checkpoints: Checkpoints,
        evaluation: Evaluation,
        outputs: Sequence[Output],
        first: tuple[int, int],
        figures: Sequence[Figure] = (),
        processes: Processes | None = None,
        hours: float = 0.0,
    ) -> None:
        """Start at a step; does nothing yet.

        Args:
          config: the settings.
          files: the datasets.
          checkpoints: where states are saved.
          evaluation: what is measured on held-out text.
          outputs: receive every record.
          first: the step that this start of the run begins at, and the index of its first sequence.
          figures: the caller's own, in addition to MFU and memory. (A new figure of this program is
            added to those two; one of the training step is a metric that the step returns.)
          processes: the processes of the run, which agree when to save by the clock.
          hours: of training before this start.
        """
        self._config, self._files, self._first = config, files, first[0]
        self._axes = Axes(config, first, hours)
        self._checkpoints, self._evaluation, self._outputs = checkpoints, evaluation, outputs
        self._figures = (mfu_figure(config), memory_figure, *figures)
        self._counted_wait = 0.0  # seconds of checkpoint waiting that throughput has counted
        self._reached, self._saved = first[0], first[0]
        self._processes, self._saved_at = processes or Processes(StopSignal()), time.monotonic()
        self.throughput = Throughput()
        self.measured: dict[str, float] = {}

    def reach(self, progress: Progress) -> None:
        """Log, evaluate and save, as the settings say for this step; the last is `finish`'s."""
        run, step = self._config.run, progress.step
        if progress.record is not None:
            self._write(self._completed(progress.record, progress.state))
        # The loop yields its last step twice, the second time with the metrics: not twice saved.
        if step in (run.steps, self._reached):
            return
        self._reached = step
        validation = None
        if step % self._config.evaluation.eval_every == 0:
            validation = self.evaluate(progress)
        # Evaluated before it is saved: the value decides which checkpoint is kept as the best.
        if self._save_is_due(step) and self._healthy(progress):
            self.save(progress, validation)

    def _save_is_due(self, step: int) -> bool:
        """Return whether a step is saved: by its number, or because the minutes are over."""
        run = self._config.run
        minutes = (time.monotonic() - self._saved_at) / 60
        timed = self._processes.should_save(0 < run.save_minutes <= minutes)
        return timed or any(
            every and step % every == 0 for every in (run.save_every, run.keep_every)
        )

    def finish(self, progress: Progress) -> None:
        """Evaluate and save after the last step; a preempted evaluation is left out.

        Where no step was left to train and the last one is evaluated, it is measured again for the
        caller, and not recorded a second time.
        """
        known = self._checkpoints.validation(progress.step) is not None
        if progress.step == self._first and known:
            with contextlib.suppress(Interrupted):
                self.measured = self.measure(progress.state.params)
            return
        self.save(progress, self.evaluate(progress))

    def evaluate(self, progress: Progress) -> float | None:
        """Evaluate and log; return bits per byte, or None if the run is preempted meanwhile.

        The time does not count as training time.

        Raises:
          ValueError: if the loss on held-out text is not finite: the parameters are of no use.
        """
        with self.untimed(progress), self._processes.phase("evaluating"):
            try:
                self.measured = self.measure(progress.state.params)
            except Interrupted:
                # Part of an evaluation is no result. The caller goes on, sees the stop and saves.
                return None
        self._write(Record(progress.step, self.measured))
        validation = self.measured.get("val/bits_per_byte")
        if validation is not None and not math.isfinite(validation):
            raise ValueError(self._diverged(progress.step, validation))
        return validation

    @contextlib.contextmanager
    def untimed(self, progress: Progress) -> Iterator[None]:
        """Stop the throughput's clock, once the step has ended on the devices."""
        jax.block_until_ready(progress.state)
        with self.throughput.excluded():
            yield

    def _diverged(self, step: int, validation: float) -> str:
        """Return what to say of parameters without a finite loss, which are never saved."""
        optimizer, saved = self._config.optimizer, self._checkpoints.steps()
        best = self._checkpoints.best()
        there = "there is no checkpoint yet"
        if saved:
            there = f"checkpoints are there of steps {', '.join(map(str, saved))}"
            if best is not None and best != saved[-1]:
                there += f", the best by validation is {best}: without those after it the run goes"
                there += " on from there"
        return (
            f"val/bits_per_byte={validation} after step {step}: the parameters give no finite loss"
            f" any more. They are not saved; {there}. Lower --lr (now {optimizer.lr:g}) or"
            f" --clip_norm (now {optimizer.clip_norm:g}), or lengthen --warmup_steps (now"
            f" {optimizer.warmup_steps})"
        )

    def measure(self, params: Params) -> dict[str, float]:
        """Return the validation and extrapolation metrics of parameters on held-out text.

        Raises:
          Interrupted: if the run is preempted before all is measured.
        """
        return self._evaluation.by_dataset(params) | self._evaluation.extrapolation(params)

    def save(self, progress: Progress, validation: float | None = None) -> None:
        """Save a checkpoint in the background; count the time that it blocks.

        Args:
          progress: the step.
          validation: bits per byte on held-out text, if it was measured.
        """
        next_sequence = self._axes.next_sequence(progress.step)
        description = describe(self._config, self._files, next_sequence)
        with self._processes.phase("saving a checkpoint"):
            self._checkpoints.save(
                progress.step, progress.state, description, validation=validation
            )
        self._saved, self._saved_at = progress.step, time.monotonic()
        waited = self._checkpoints.wait_seconds
        self.throughput.add(0, 0, checkpoint_wait=waited - self._counted_wait)
        self._counted_wait = waited

    def save_if_unsaved(self, progress: Progress) -> None:
        """Save the last step of a preempted run, unless a save of it was tried already."""
        if progress.step != self._saved and self._healthy(progress):
            self.save(progress)

    @staticmethod
    def _healthy(progress: Progress) -> bool:
        """Return whether the last step was finite."""
        # Otherwise a run that diverges would push its good checkpoints out, `keep` of them.
        return int(jax.device_get(progress.state.bad_in_row)) == 0

    def _completed(self, record: Record, state: TrainState) -> Record:
        """Add the figures that need more than the step's own metrics; each sees those before it."""
        for figure in self._figures:
            record = Record(record.step, {**record.metrics, **figure(record, state)})
        return record

    def _write(self, record: Record) -> None:
        saved = {SAVED: float(self._saved)} if self._saved else {}
        record = Record(record.step, {**record.metrics, **self._axes.of(record), **saved})
        for output in self._outputs:
            output.write(record)
