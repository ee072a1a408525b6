"""Evaluation on held-out text: bits per byte by dataset, and by context length (extrapolation).

Owns what is measured and what counts as a success. Knows nothing of when an evaluation runs, or of
who reads it. Read `Evaluation` first.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_dist.data.mixture import long_windows, validation_windows
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.data.tokens import TokenFile
from spectral_dist.mesh import RULES
from spectral_dist.params import Params
from spectral_dist.settings import Config, normalise_weights
from spectral_dist.training.step import make_eval_step

# The bootstrap resamples windows: with fewer than this its upper bound is noise.
MIN_WINDOWS = 8
# How much worse (bits per byte) a longer context may be and still count as a success. On real text
# the hybrid got 0.016 better at 4x and full attention 0.25 worse (docs/log.md).
TOLERANCE = 0.002
_RESAMPLES = 2_000  # of the bootstrap


class Interrupted(Exception):
    """A preempted run stopped in the middle of an evaluation."""


class Evaluation:
    """The held-out windows of a run's datasets, and the compiled evaluation step."""

    def __init__(
        self,
        config: Config,
        files: Sequence[TokenFile],
        mesh: Mesh,
        *,
        report: Callable[[str], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Choose the windows; compiles nothing yet.

        Args:
          config: the settings; eval_lengths are the multiples k of seq_len that are compared.
          files: of `validation`, or else of the datasets; only their held-out parts are read.
          mesh: the devices.
          report: takes one line for each measurement that the held-out text is too short for.
          should_stop: called before every batch, with the same answer in all processes; on True
            the measurement raises `Interrupted`.
        """
        settings, seq_len = config.evaluation, config.data.seq_len
        self._config, self._mesh, self._should_stop = config, mesh, should_stop
        self._eval_step = make_eval_step(config, mesh)
        self._token_bytes = find_tokenizer(config).token_bytes
        weights, _ = normalise_weights(config.validation or config.datasets)
        self._weights = {f.name: w for f, w in zip(files, weights, strict=True)}
        self._windows = {
            f.name: validation_windows(f, seq_len, settings.eval_windows) for f in files
        }
        # 1x always: the other lengths are compared with it.
        self.lengths = sorted({1, *settings.eval_lengths})
        longest = self.lengths[-1] * seq_len
        # Windows inside one document: across documents a longer context would not help.
        self._long = {
            f.name: long_windows(f, longest, settings.extrapolation_windows) for f in files
        }
        for name, windows in self._windows.items():
            if not len(windows):
                report(f"{name}: too little held-out text for one window of {seq_len} tokens")
        self.missing = [name for name, windows in self._long.items() if not len(windows)]
        if self.missing and len(self.lengths) > 1:
            report(
                f"no held-out document of {', '.join(self.missing)} is longer than {longest:,}"
                f" tokens ({self.lengths[-1]}x seq_len): left out of the extrapolation table"
            )

    def by_dataset(self, params: Params) -> dict[str, float]:
        """Return the validation metrics: val/<dataset>/bits_per_byte, and their weighted mean."""
        seq_len = self._config.data.seq_len
        bits = {
            name: float(self._score(params, windows, seq_len).mean())
            for name, windows in self._windows.items()
            if len(windows)
        }
        metrics = {f"val/{name}/bits_per_byte": value for name, value in bits.items()}
        # Over the datasets that have windows; the weights of the others are left out.
        weight = sum(self._weights[name] for name in bits)
        if weight > 0:
            mean = sum(self._weights[name] * value for name, value in bits.items()) / weight
            metrics["val/bits_per_byte"] = mean
        return metrics

    def extrapolation(self, params: Params) -> dict[str, float]:
        """Return the extrapolation table: the same targets, with more and more context.

        At each k the last seq_len tokens of the same windows are scored, with k seq_len tokens of
        context. Success at k: the upper 95% bound (paired bootstrap over windows) of the mean
        difference to k = 1 is at most +0.002 bits per byte. Empty if there are fewer than 8 long
        windows.
        """
        windows = {name: w for name, w in self._long.items() if len(w)}
        if len(self.lengths) < 2 or sum(map(len, windows.values())) < MIN_WINDOWS:
            return {}
        seq_len, metrics = self._config.data.seq_len, {}
        bits: dict[int, np.ndarray] = {}
        for k in self.lengths:
            parts = {
                n: self._score(params, w[:, -(k * seq_len + 1) :], seq_len, k)
                for n, w in windows.items()
            }
            bits[k] = np.concatenate(list(parts.values()))
            metrics[f"extrapolation/{k}x/bits_per_byte"] = float(bits[k].mean())
            for name, part in parts.items():
                metrics[f"extrapolation/{k}x/{name}/bits_per_byte"] = float(part.mean())
            if k > 1:
                # Paired by window: how hard a window is cancels, so few windows are enough.
                difference, upper = paired_bound(bits[k] - bits[1])
                metrics[f"extrapolation/{k}x/difference"] = difference
                metrics[f"extrapolation/{k}x/difference_upper"] = upper
                metrics[f"extrapolation/{k}x/success"] = float(upper <= TOLERANCE)
        return metrics

    def _score(self, params: Params, windows: np.ndarray, targets: int, k: int = 1) -> np.ndarray:
        """Return the bits per byte of the last `targets` tokens of each window, float64 [n]."""
        batch_size = sequences_at_once(self._config, self._mesh, k)
        place = NamedSharding(self._mesh, PartitionSpec(RULES["batch"]))
        losses = []
        for start in range(0, len(windows), batch_size):
            if self._should_stop():
                raise Interrupted
            # The last batch is filled with copies of the last window: a smaller batch would be
            # another shape, which the compiler would have to compile as well.
            part = windows[np.minimum(np.arange(start, start + batch_size), len(windows) - 1)]
            tokens = jax.make_array_from_callback(part.shape, place, partial(_pick, part))
            losses.append(np.asarray(self._eval_step(params, tokens, targets), np.float64))
        # Per byte, not per token, so that models with different tokenizers can be compared.
        size = self._token_bytes[windows[:, -targets:]].sum(axis=1)
        return np.concatenate(losses)[: len(windows)] / size / math.log(2)


def sequences_at_once(config: Config, mesh: Mesh, k: int) -> int:
    """Return the batch size of an evaluation: windows of k seq_len tokens, over all devices."""
    shards = math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES["batch"])
    # A context k times longer, k times fewer sequences: it fits in the memory of training.
    return max(shards, config.data.batch_size // k // shards * shards)


def _pick(windows: np.ndarray, index: Any) -> np.ndarray:
    return windows[index]


def paired_bound(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean of paired differences [n] and its upper 95% bound by bootstrap."""
    rng = np.random.default_rng(0)  # fixed: the same differences give the same verdict
    draws = rng.integers(0, len(differences), (_RESAMPLES, len(differences)))
    return float(differences.mean()), float(np.quantile(differences[draws].mean(axis=1), 0.95))
