"""Log-probabilities of texts under a trained model: of continuations, and of whole texts.

What scores text that is not in windows: the harness's tasks, minimal pairs. Read `Likelihood`.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.inference import LoadedRun
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


class Likelihood:
    """The log-probability of texts under a model, each read as the start of a document."""

    def __init__(self, run: LoadedRun, batch_size: int = 8) -> None:
        """Compile nothing yet.

        Args:
          run: the model.
          batch_size: sequences that are scored at a time; rounded up to the shards of the mesh.
        """
        self._run = run
        shards = math.prod(run.mesh.devices.shape[:2])
        self._batch = -(-batch_size // shards) * shards
        self._tokenizer = find_tokenizer(run.config)
        spec = model_spec(run.config)
        self._score, self._growing = _scorer(spec), bool(spec.bind(spec.shapes).growing)

    def of_continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Score continuations, several at a time; sequences are filled up to few lengths.

        Args:
          pairs: (context, continuation).

        Returns:
          of each the log-probability in nats, and whether each of its tokens is the likeliest.
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

    def of_text(self, text: str) -> float:
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
