"""A trained model in EleutherAI's lm-evaluation-harness: `evaluate --tasks ...`.

    python -m spectral_dist.harness --model spectral_dist --model_args run_name=demo --tasks ...

is the harness's own command line, with this model among its models. Needs the extra `eval`. Read
`HarnessModel`.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager

from spectral_dist.inference import Generator, LoadedRun, load_run
from spectral_dist.likelihood import Likelihood


@register_model("spectral_dist")
class HarnessModel(LM):
    """One of our models, as the harness asks it: for log-probabilities, and for text."""

    def __init__(
        self,
        run_name: str | LoadedRun,
        checkpoint_dir: str = "checkpoints",
        checkpoint: str = "checkpoint_0",
        batch_size: int | str = 8,
        **_: Any,  # what the harness adds, such as a device
    ) -> None:
        """Load a run.

        Args:
          run_name: a `LoadedRun`; or a name or path, as for `load_run`.
          checkpoint_dir: the folder of all runs, used if `run_name` is a name.
          checkpoint: as for `load_run`.
          batch_size: sequences that are scored at a time.
        """
        super().__init__()
        if not isinstance(run_name, LoadedRun):
            run_name = load_run(run_name, checkpoint_dir=checkpoint_dir, checkpoint=checkpoint)
        self._run = run_name
        wanted = int(batch_size) if str(batch_size).isdigit() else 8
        self._likelihood = Likelihood(run_name, wanted)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, in nats, and whether it is greedy."""
        return self._likelihood.of_continuations([request.args for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-probability of each whole text, in nats, however long it is."""
        return [self._likelihood.of_text(request.args[0]) for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return what follows each context, up to the first of its stop strings."""
        return [self.write(request.args[0], dict(request.args[1])) for request in requests]

    def write(self, context: str, wanted: dict[str, Any]) -> str:
        """Return what the model writes after a context.

        Args:
          context: the text to continue.
          wanted: `until` (stop strings), `max_gen_toks`, `temperature`, `do_sample`.
        """
        until = wanted.get("until") or []
        stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
        sampled = wanted.get("do_sample", float(wanted.get("temperature", 0.0)) > 0)
        return Generator(self._run).text(
            context,
            max_new_tokens=int(wanted.get("max_gen_toks", 256)),
            temperature=float(wanted.get("temperature", 1.0)) if sampled else 0.0,
            stop=stops,
        )


def run_tasks(
    run: LoadedRun,
    tasks: Sequence[str],
    *,
    limit: int | None,
    include_path: str | None,
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """Return {task: {metric: value}} of a trained model.

    Args:
      run: the model.
      tasks: names of the harness's tasks, or of those in `include_path`.
      limit: most examples of each task.
      include_path: folder of further tasks.
      batch_size: sequences that are scored at a time.

    Raises:
      ValueError: if there is no such task.
    """
    manager = TaskManager(include_path=include_path)
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            raise ValueError(
                f"tasks={task!r}: the harness has no such task; --include_path names a folder of"
                " your own"
            )
    found: Any = lm_eval.simple_evaluate(
        HarnessModel(run, batch_size=batch_size),
        tasks=list(tasks),
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=False,
    )
    return {
        task: {
            name.partition(",")[0]: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and "stderr" not in name
        }
        for task, values in found["results"].items()
    }


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(cli_evaluate())
