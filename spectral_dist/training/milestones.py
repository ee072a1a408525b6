"""What falls due between two steps: figures are completed, evaluations run, checkpoints are saved.

Owns when each of these happens, and the figures that join a record. The training loop does not know
of it, and the outputs only receive records. Read `Milestones.reach` first.
"""

from collections.abc import Callable, Mapping, Sequence

import jax

from spectral_dist.data.tokens import TokenFile
from spectral_dist.model.flops import flops_per_token
from spectral_dist.outputs import Output
from spectral_dist.params import Params
from spectral_dist.settings import Config
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.evaluation import Evaluation, Interrupted
from spectral_dist.training.loop import Progress
from spectral_dist.training.metrics import Record, Throughput, memory_bytes, mfu
from spectral_dist.training.resume import describe
from spectral_dist.training.state import TrainState, model_spec

Figure = Callable[[Record, TrainState], Mapping[str, float]]
"""Returns metrics to add to the record of a logged step, by group/name_with_unit.

It is given the record so far and the state, which is that of one step later. Called in every
process alike, it may compute on the devices; what it returns is on the host.
"""


def mfu_figure(config: Config) -> Figure:
    """Return the figure perf/mfu, for devices whose peak is known."""
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
    """Return perf/memory_bytes, the peak of this process's devices, where they count it."""
    del record, state
    peak = memory_bytes(jax.local_devices())
    return {} if peak is None else {"perf/memory_bytes": peak}


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
        figures: Sequence[Figure] = (),
    ) -> None:
        """Listen to a run.

        Args:
          config: the settings.
          files: the datasets.
          checkpoints: where states are saved.
          evaluation: what is measured on held-out text.
          outputs: who is told.
          first: the step and the row that this start of the run begins at.
          figures: of the caller, beside the MFU and the memory. A new figure of the program's own
            joins these two; one that is computed inside the training step is returned by it.
        """
        self._config, self._files, self._first = config, files, first
        self._checkpoints, self._evaluation, self._outputs = checkpoints, evaluation, outputs
        self._figures = (mfu_figure(config), memory_figure, *figures)
        self._told_wait = 0.0
        self._reached, self._saved = first[0], first[0]
        self.throughput = Throughput()
        self.measured: dict[str, float] = {}

    def reach(self, progress: Progress) -> None:
        """Do what is due at a step; the run's last one is `finish`'s."""
        run, step = self._config.run, progress.step
        if progress.record is not None:
            self._write(self._completed(progress.record, progress.state))
        # A loop that ends tells of its last step twice, the second time with the figures.
        if step in (run.steps, self._reached):
            return
        self._reached = step
        validation = None
        if step % self._config.evaluation.eval_every == 0:
            validation = self.evaluate(progress)
        if step % run.save_every == 0 and self._healthy(progress):
            self.save(progress, validation)

    def finish(self, progress: Progress) -> None:
        """Evaluate, as far as the run was not asked to stop, and save after the last step."""
        self.save(progress, self.evaluate(progress))

    def evaluate(self, progress: Progress) -> float | None:
        """Measure on held-out text; return bits per byte, the clock of training stopped.

        None where the run is asked to stop before all is measured.
        """
        with self.throughput.excluded():
            try:
                self.measured = self.measure(progress.state.params)
            except Interrupted:
                return None
        self._write(Record(progress.step, self.measured))
        return self.measured.get("val/bits_per_byte")

    def measure(self, params: Params) -> dict[str, float]:
        """Return the metrics of parameters on held-out text.

        Raises:
          Interrupted: where the run is asked to stop before all is measured.
        """
        return self._evaluation.by_dataset(params) | self._evaluation.extrapolation(params)

    def save(self, progress: Progress, validation: float | None = None) -> None:
        """Save a step in the background; what it costs the run is counted.

        Args:
          progress: the step.
          validation: bits per byte on held-out text, where it was measured.
        """
        data, (step, row) = self._config.data, self._first
        next_sequence = row + (progress.step - step) * data.batch_size * data.accum_steps
        description = describe(self._config, self._files, next_sequence)
        self._checkpoints.save(progress.step, progress.state, description, validation=validation)
        self._saved = progress.step
        waited = self._checkpoints.wait_seconds
        self.throughput.add(0, 0, checkpoint_wait=waited - self._told_wait)
        self._told_wait = waited

    def save_what_is_new(self, progress: Progress) -> None:
        """Save a step that no save was tried for yet."""
        if progress.step != self._saved and self._healthy(progress):
            self.save(progress)

    @staticmethod
    def _healthy(progress: Progress) -> bool:
        """Whether the last step was finite: what diverges must not push good checkpoints out."""
        return int(jax.device_get(progress.state.bad_in_row)) == 0

    def _completed(self, record: Record, state: TrainState) -> Record:
        """Add the figures that need more than the step's own result."""
        for figure in self._figures:
            record = Record(record.step, {**record.metrics, **figure(record, state)})
        return record

    def _write(self, record: Record) -> None:
        for output in self._outputs:
            output.write(record)
