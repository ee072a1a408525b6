"""The profile of a few training steps: a trace for xprof and Perfetto, in the run folder.

Wraps the compiled step, so that the loop knows nothing of it. Read `profiled`.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

Step = Callable[[Any, jax.Array], tuple[Any, Any]]


@contextlib.contextmanager
def profiled(
    train_step: Step,
    steps: range | None,
    folder: Path,
    done: int,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> Iterator[Step]:
    """Yield the training step, which writes a trace of some of its calls.

    A trace that cannot be written is a warning; on leaving, one that has begun is written.

    Args:
      train_step: (state, tokens_ABT) -> (state, metrics).
      steps: which are traced, counted from 1; none if None.
      folder: where this process writes.
      done: how many steps the run has completed.
      note: called with the line that says where the trace is.
      warn: called with the line of a warning.
    """
    if steps is None:
        yield train_step
        return
    if done >= steps[0]:
        asked = f"{steps[0]}:{steps[-1]}"
        warn(f"profile={asked}: the run goes on after step {done}; nothing is traced")
        yield train_step
        return
    trace = _Trace(train_step, steps, folder, done, note, warn)
    try:
        yield trace
    finally:
        trace.stop()


class _Trace:
    """A training step that counts its calls, and traces some of them."""

    def __init__(
        self,
        train_step: Step,
        steps: range,
        folder: Path,
        done: int,
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        """Keep the arguments of `profiled`."""
        self._train_step, self._steps, self._folder = train_step, steps, folder
        self._step, self._note, self._warn, self._running = done, note, warn, False

    def __call__(self, state: Any, tokens_ABT: jax.Array) -> tuple[Any, Any]:
        """Run a step; the trace begins before the first of `steps`, and ends with the last."""
        self._step += 1
        if self._step == self._steps[0]:
            # Steps that were dispatched before are still running: they are not to be in the trace.
            jax.block_until_ready(state)
            self._start()
        with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
            result = self._train_step(state, tokens_ABT)
        if self._step == self._steps[-1]:
            jax.block_until_ready(result)
            self.stop()
        return result

    def _start(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        except (OSError, RuntimeError) as error:  # a full disk; a profiler that runs already
            self._warn(f"profile: no trace: {error}")

    def stop(self) -> None:
        """Write the trace, if one has begun."""
        if not self._running:
            return
        self._running = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:
            self._warn(f"profile: the trace could not be written to {self._folder}: {error}")
            return
        last = min(self._step, self._steps[-1])
        self._note(
            f"profile of steps {self._steps[0]} to {last} is in {self._folder}: for xprof, and"
            " perfetto_trace.json.gz for ui.perfetto.dev"
        )
