"""The training loop: a generator that runs steps and tells what happened.

Owns the rhythm (batch, step, read the step before) and the stop on non-finite steps. Does not know
who listens: evaluation, checkpoints and outputs are the caller's, between two items.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from spectral_dist.data.mixture import Batch
from spectral_dist.settings import Config
from spectral_dist.training.metrics import Record, Throughput
from spectral_dist.training.state import TrainState

LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Progress:
    """One step of the run.

    Attributes:
      step: completed steps.
      state: after that step; gone as soon as the next item is asked for.
      record: the figures of a step that is due for logging, read one step late, or None.
    """

    step: int
    state: TrainState
    record: Record | None


def train(
    train_step: Any,
    state: TrainState,
    batches: Iterator[Batch],
    config: Config,
    throughput: Throughput,
) -> Iterator[Progress]:
    """Run one step for each batch.

    The figures of a step are read while the next one runs, so that the device never waits for the
    host; the last item carries the last step's.

    Args:
      train_step: compiled; (state, tokens) -> (state, metrics).
      state: before the first batch; donated.
      batches: in order.
      config: the settings.
      throughput: the clock, which the caller pauses while it evaluates.

    Raises:
      ValueError: after max_bad_steps non-finite steps in a row; names the step and the remedy.
    """
    tokens = config.data.batch_size * config.data.accum_steps * config.data.seq_len
    pending: tuple[int, dict[str, jax.Array]] | None = None
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        waited = time.perf_counter() - started
        if batch is None:
            break
        # A value that crosses unasked between host and devices makes every step wait for it.
        with jax.transfer_guard("disallow"):
            state, metrics = train_step(state, batch.tokens)
            record = None if pending is None else _read(*pending, config, tokens, throughput)
        throughput.add(1, tokens, data_wait=waited)
        pending = (batch.step + 1, metrics)
        yield Progress(batch.step + 1, state, record)
    if pending is not None:
        yield Progress(pending[0], state, _read(*pending, config, tokens, throughput, last=True))


def _read(
    step: int,
    on_device: dict[str, jax.Array],
    config: Config,
    tokens: int,
    throughput: Throughput,
    last: bool = False,
) -> Record | None:
    """Wait for a step, stop the run if it must, and return its record if it is due."""
    values = {name: float(value) for name, value in jax.device_get(on_device).items()}
    bad = int(values.pop("bad_in_row"))
    if bad >= config.run.max_bad_steps:
        raise ValueError(
            f"max_bad_steps={config.run.max_bad_steps}: loss or gradient was not finite in the last"
            f" {bad} steps, up to step {step}; none of them changed the parameters and the"
            f" checkpoints are healthy. Lower --lr (now {config.optimizer.lr:g}) or lengthen"
            f" --warmup_steps (now {config.optimizer.warmup_steps})"
        )
    if step % config.run.log_every and not last:
        return None
    loss = values.pop("loss")
    metrics = {
        "train/loss": loss,
        "train/bits_per_byte": loss * (tokens / values.pop("bytes")) / LN2,
        "train/grad_norm": values.pop("grad_norm"),
        "train/skipped_steps": values.pop("skipped"),
        "optimizer/learning_rate": values.pop("learning_rate"),
    }
    # What else the step returns is a figure under the name that it has there: train/..., say.
    return Record(step, metrics | values | throughput.read())
