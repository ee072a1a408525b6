"""What falls due between two steps: figures are completed, evaluations run, checkpoints are saved.

Owns when each of these happens. The training loop does not know of it, and the outputs only receive
records. Read `Milestones.reach` first.
"""

from collections.abc import Sequence

import jax

from spectral_dist.data.tokens import TokenFile
from spectral_dist.model.flops import flops_per_token
from spectral_dist.outputs import Output
from spectral_dist.settings import Config
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.evaluation import Evaluation, Interrupted
from spectral_dist.training.loop import Progress
from spectral_dist.training.metrics import Record, Throughput, memory_bytes, mfu
from spectral_dist.training.resume import describe
from spectral_dist.training.state import model_spec


class Milestones:
    """What happens between two steps: records go out, evaluations and checkpoints fall due."""

    def __init__(
        self,
        config: Config,
        files: list[TokenFile],
        checkpoints: Checkpoints,
        evaluation: Evaluation,
        outputs: Sequence[Output],
        first: tuple[int, int],
    ) -> None:
        """Listen to a run.

        Args:
          config: the settings.
          files: the sources.
          checkpoints: where states are saved.
          evaluation: what is measured on held-out text.
          outputs: who is told.
          first: the step and the row that this start of the run begins at.
        """
        self._config, self._files, self._first = config, files, first
        self._checkpoints, self._evaluation, self._outputs = checkpoints, evaluation, outputs
        self._flops = flops_per_token(model_spec(config), config.data.seq_len)
        self._told_wait = 0.0
        self.throughput = Throughput()
        self.measured: dict[str, float] = {}

    def reach(self, progress: Progress) -> None:
        """Do what is due at a step; the run's last one is `finish`'s."""
        run, step = self._config.run, progress.step
        if progress.record is not None:
            self._write(self._completed(progress.record))
        if step == run.steps:
            return
        validation = None
        if step % self._config.evaluation.eval_every == 0:
            validation = self.evaluate(progress)
        # A run that diverges must not push its healthy checkpoints out.
        if step % run.save_every == 0 and int(progress.state.bad_in_row) == 0:
            self._save(progress, validation)

    def finish(self, progress: Progress) -> None:
        """Evaluate, as far as the run was not asked to stop, and save after the last step."""
        self._save(progress, self.evaluate(progress))

    def evaluate(self, progress: Progress) -> float | None:
        """Measure on held-out text; return bits per byte, the clock of training stopped.

        None where the run is asked to stop before all is measured.
        """
        self.throughput.pause()
        params = progress.state.params
        try:
            found = self._evaluation.by_source(params) | self._evaluation.extrapolation(params)
        except Interrupted:
            return None
        finally:
            self.throughput.resume()
        self.measured = found
        self._write(Record(progress.step, self.measured))
        return self.measured.get("val/bits_per_byte")

    def _save(self, progress: Progress, validation: float | None) -> None:
        data, (step, row) = self._config.data, self._first
        next_row = row + (progress.step - step) * data.batch_size * data.accum_steps
        description = describe(self._config, self._files, next_row)
        self._checkpoints.save(progress.step, progress.state, description, validation=validation)
        waited = self._checkpoints.wait_seconds
        self.throughput.add(0, 0, checkpoint_wait=waited - self._told_wait)
        self._told_wait = waited

    def _completed(self, record: Record) -> Record:
        """Add the figures that need the devices."""
        metrics, devices = dict(record.metrics), jax.devices()
        speed = metrics.get("perf/tokens_per_second")
        dtype = self._config.model.compute_dtype
        if speed is not None:
            share = mfu(speed, self._flops, devices[0].device_kind, len(devices), dtype)
            metrics |= {} if share is None else {"perf/mfu": share}
        peak = memory_bytes(jax.local_devices())
        metrics |= {} if peak is None else {"perf/memory_bytes": peak}
        return Record(record.step, metrics)

    def _write(self, record: Record) -> None:
        for output in self._outputs:
            output.write(record)
