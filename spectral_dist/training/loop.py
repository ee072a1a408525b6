"""The training loop: a generator that runs one step at a time and yields its metrics.

Owns the order (next batch, run the step, read the metrics of the previous step) and the stop after
several non-finite steps. Evaluation, checkpoints and outputs are the caller's, between two items.
Read `train`.
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

LN2 = 0.6931471805599453  # nats in a bit


@dataclass(frozen=True)
class Progress:
    """One step of the run.

    Attributes:
      step: completed steps.
      state: after that step; its buffers are donated to the next step, so use it before the next
        item.
      record: metrics of a logged step, or None. They are read one step late.
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
    """Run the training loop: one step for each batch.

    The metrics of a step are read while the next step runs. After the last batch one more item
    brings the metrics of the last step.

    Args:
      train_step: compiled; (state, tokens) -> (state, metrics).
      state: before the first batch; donated.
      batches: in order.
      config: the settings.
      throughput: the clock, which the caller pauses while it evaluates.

    Raises:
      ValueError: after max_bad_steps non-finite steps in a row; names the step and the remedy.
    """
    tokens = config.data.step_tokens
    pending: tuple[int, dict[str, jax.Array]] | None = None
    first: int | None = None  # the step that this start begins after
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        waited = time.perf_counter() - started
        if batch is None:
            break
        first = batch.step if first is None else first
        # An implicit copy between host and device (a float() somewhere, say) would make every step
        # wait for it. The guard makes it an error; `device_get` below is explicit and allowed.
        with jax.transfer_guard("disallow"):
            # Returns at once: JAX dispatches asynchronously, and the device works on.
            state, metrics = train_step(state, batch.tokens)
            # Read the step before: waiting for this one would leave the device idle meanwhile.
            record = None if pending is None else _read(*pending, first, config, throughput)
        throughput.add(1, tokens, data_wait=waited)
        pending = (batch.step + 1, metrics)
        yield Progress(batch.step + 1, state, record)
    if pending is not None:
        assert first is not None
        yield Progress(pending[0], state, _read(*pending, first, config, throughput, last=True))


def _read(
    step: int,
    on_device: dict[str, jax.Array],
    first: int,
    config: Config,
    throughput: Throughput,
    last: bool = False,
) -> Record | None:
    """Wait for a step's metrics; return its record, or None between two logged steps.

    Raises:
      ValueError: after max_bad_steps non-finite steps in a row.
    """
    values = {name: float(value) for name, value in jax.device_get(on_device).items()}
    # Checked at every step, logged or not: each one more would be wasted.
    bad = int(values.pop("bad_in_row"))
    if bad >= config.run.max_bad_steps:
        # A state can be beyond hope although the step that made it was finite.
        cause = (
            f"none was finite since the checkpoint of step {first}, which may be at fault: move its"
            " folder away to go on from the one before, or lower"
            if 0 < first >= step - bad
            else "none of them changed the parameters, and no checkpoint holds one. Lower"
        )
        raise ValueError(
            f"max_bad_steps={config.run.max_bad_steps}: loss or gradient was not finite in the last"
            f" {bad} steps, up to step {step}; {cause} --lr (now {config.optimizer.lr:g}) or"
            f" lengthen --warmup_steps (now {config.optimizer.warmup_steps})"
        )
    tokens = config.data.step_tokens
    if step % config.run.log_every and not last:
        return None
    loss = values.pop("loss")
    metrics = {
        "train/loss": loss,
        # nats per token * tokens per byte: the same unit for every tokenizer.
        "train/bits_per_byte": loss * (tokens / values.pop("bytes")) / LN2,
        "train/grad_norm": values.pop("grad_norm"),
        "train/skipped_steps": values.pop("skipped"),
        "optimizer/learning_rate": values.pop("learning_rate"),
    }
    # Any other metric that the step returns keeps its name, such as train/...
    return Record(step, metrics | values | throughput.read())
