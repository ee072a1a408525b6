"""How far a run is, in each record: tokens, model FLOPs, hours of training, the last checkpoint.

The axes that curves are drawn over, the same in metrics.jsonl, W&B and the report. Read `Axes`.
"""

from collections.abc import Mapping

from spectral_dist.model.flops import flops_per_token
from spectral_dist.settings import Config
from spectral_dist.training.metrics import Record
from spectral_dist.training.state import model_spec

HOURS = "progress/train_hours"
SAVED = "progress/saved_step"


class Axes:
    """Counts what a run has used up."""

    def __init__(self, config: Config, first: tuple[int, int], hours: float) -> None:
        """Begin to count.

        Args:
          config: the settings.
          first: the step that this start begins at, and the index of its first sequence.
          hours: of training before this start.
        """
        data = config.data
        self._step, self._sequence = first
        self._sequences, self._tokens = data.batch_size * data.accum_steps, data.seq_len
        self._flops = flops_per_token(model_spec(config), data.seq_len)
        self._hours, self._logged = hours, first[0]

    def next_sequence(self, step: int) -> int:
        """Return the index of the first sequence that no step up to `step` has seen."""
        # Counted on from where this start began: an earlier one may have had another batch size.
        return self._sequence + (step - self._step) * self._sequences

    def of(self, record: Record) -> Mapping[str, float]:
        """Return the axes of a record; the time of its steps is added."""
        seconds = record.metrics.get("perf/step_seconds")
        if seconds is not None:
            self._hours += seconds * (record.step - self._logged) / 3600
            self._logged = record.step
        tokens = float(self.next_sequence(record.step) * self._tokens)
        return {
            "progress/tokens": tokens,
            "progress/flops": tokens * self._flops,
            HOURS: self._hours,
        }
