"""A trained model in EleutherAI's lm-evaluation-harness: `evaluate --tasks ...`.

    python -m spectral_dist.harness --model spectral_dist --model_args run_name=demo --tasks ...

is the harness's own command line, with this model among its models. Needs the extra `eval`. Read
`HarnessModel`.
"""

import functools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lm_eval
import numpy as np
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.inference import Generator, LoadedRun, load_run
from spectral_dist.params import ModelSpec
from spectral_dist.training.state import model_spec

_SHORTEST = 64  # tokens of the shortest compiled shape; others are twice as long as the one before
_PIECE = 1024  # tokens of a long text that are scored at a time: a compiled shape, filled whole


@functools.cache
def _scorer(spec: ModelSpec[Any]) -> Any:
    """Return the compiled scoring of a model, which every later call shares.

    (params, tokens_BT, state) -> log-probability in nats of each next token [B, T - 1] float32,
    whether it is the likeliest, and the state after all but the last token.
    """

    @jax.jit
    def score(params: Any, tokens_BT: jax.Array, state: Any) -> tuple[jax.Array, jax.Array, Any]:
        logits_BTV, state = spec.bind(params)(tokens_BT[:, :-1], state)
        targets = tokens_BT[:, 1:]
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets[..., None], -1)[..., 0]
        return logp, jnp.argmax(logits_BTV, -1) == targets, state

    return score


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
        self._run = run = run_name
        shards = math.prod(run.mesh.devices.shape[:2])
        wanted = int(batch_size) if str(batch_size).isdigit() else 8
        self._batch = -(-wanted // shards) * shards
        self._tokenizer = find_tokenizer(run.config)
        spec = model_spec(run.config)
        self._score, self._growing = _scorer(spec), bool(spec.bind(spec.shapes).growing)

    # ---- what the harness calls

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, in nats, and whether it is greedy."""
        return self.score_pairs([request.args for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-probability of each whole text, in nats, however long it is."""
        return [self.score_text(request.args[0]) for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return what follows each context, up to the first of its stop strings."""
        return [self.write(request.args[0], dict(request.args[1])) for request in requests]

    # ---- scoring

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Score continuations, several at a time; sequences are filled up to few lengths.

        Args:
          pairs: (context, continuation).
        """
        sequences = [self._sequence(context, continuation) for context, continuation in pairs]
        found: dict[int, tuple[float, bool]] = {}
        # By length, so that a batch holds little that only fills it.
        order = sorted(range(len(pairs)), key=lambda i: len(sequences[i][0]))
        for start in range(0, len(order), self._batch):
            batch = order[start : start + self._batch]
            length = _shape(max(len(sequences[i][0]) for i in batch) - 1) + 1
            tokens = np.zeros((self._batch, length), np.int32)
            for row, i in enumerate(batch):
                tokens[row, : len(sequences[i][0])] = sequences[i][0]
            logp, greedy = self._scored(tokens)
            for row, i in enumerate(batch):
                first, last = sequences[i][1] - 1, len(sequences[i][0]) - 1
                part = logp[row, first:last].astype(np.float64)
                found[i] = float(part.sum()), bool(greedy[row, first:last].all())
        return [found[i] for i in range(len(pairs))]

    def score_text(self, text: str) -> float:
        """Return the log-probability of a text from its start, in nats, with all of its context."""
        tokens, _ = self._sequence("", text)
        state, total = None, 0.0
        for start, stop in self._pieces(len(tokens)):
            piece = np.zeros((self._batch, _shape(stop - start - 1) + 1), np.int32)
            piece[:, : stop - start] = tokens[start:stop]
            with jax.set_mesh(self._run.mesh):
                logp, _, state = self._score(self._run.params, jnp.asarray(piece), state)
            total += float(np.asarray(logp)[0, : stop - start - 1].astype(np.float64).sum())
        return total

    def write(self, context: str, wanted: dict[str, Any]) -> str:
        """Return what the model writes after a context.

        Args:
          context: the text to continue.
          wanted: `until` (stop strings), `max_gen_toks`, `temperature`, `do_sample`.
        """
        until = wanted.get("until") or []
        stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
        sampled = wanted.get("do_sample", float(wanted.get("temperature", 0.0)) > 0)
        text = ""
        for piece in Generator(self._run).stream(
            context,
            max_new_tokens=int(wanted.get("max_gen_toks", 256)),
            temperature=float(wanted.get("temperature", 1.0)) if sampled else 0.0,
        ):
            text += piece
            if any(stop in text for stop in stops):
                break
        return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]

    def _sequence(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Return the tokens of both after the end of a document, and where the second begins."""
        # Both are one text: what a token of the vocabulary joins may not be cut, and blanks before
        # the continuation are part of its first word.
        kept = context if self._tokenizer.joins else context.rstrip(" ")
        continuation = context[len(kept) :] + continuation
        both, before = (
            self._tokenizer.encode(t.encode(errors="replace")).tolist()
            for t in (kept + continuation, kept)
        )
        return [self._tokenizer.end, *both], 1 + len(before)

    def _scored(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.set_mesh(self._run.mesh):
            logp, greedy, _ = self._score(self._run.params, jnp.asarray(tokens), None)
        return np.asarray(logp), np.asarray(greedy)

    def _pieces(self, length: int) -> Iterator[tuple[int, int]]:
        """Yield the pieces of a text: the last token of one is the first of the next."""
        if self._growing:  # full attention has no state to carry: all at once
            yield 0, length
            return
        for start in range(0, max(length - 1, 1), _PIECE):
            yield start, min(start + _PIECE + 1, length)


def _shape(length: int) -> int:
    """Return the length of a compiled shape that holds so many tokens."""
    return max(_SHORTEST, 1 << max(length - 1, 0).bit_length())


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
