"""A curve through runs of several sizes and lengths: what a larger or longer one may come to.

Bits per byte = E + A / N^a + B / D^b, with N the parameters that a token is multiplied by and D the
bytes of training: Hoffmann et al. 2022, arXiv:2203.15556, equation 2. Knows nothing of GPUs. Read
`Curve`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Exponents that are tried; those of Hoffmann et al. are 0.34 and 0.28.
_EXPONENTS = np.geomspace(0.05, 1.5, 48)
# Two runs that differ in their seed alone differ by about this much, in bits per byte; so a curve
# that goes through few points exactly is not taken for exact.
_NOISE = 0.01
_COEFFICIENTS = 5  # E, A, B, a, b
MIN_RUNS, MIN_SIZES = _COEFFICIENTS + 2, 3
# How far a repeated text is worth new text: after so many passes more it has given 1 - 1/e of all
# that it can (Muennighoff et al. 2023, arXiv:2305.16264, equation 5, R*_D = 15.4).
_PASSES = 15.4
# Student's t, two-sided 95%, at some degrees of freedom, most first.
_FREEDOM = (60, 20, 10, 5, 3, 2)
_T = (2.000, 2.086, 2.228, 2.571, 3.182, 4.303)


@dataclass(frozen=True)
class Point:
    """A run that has ended.

    Attributes:
      name: what to call it.
      parameters: N: training FLOPs of a token divided by 6.
      bytes: D, of text.
      bits: per byte, held out.
    """

    name: str
    parameters: float
    bytes: float
    bits: float


@dataclass(frozen=True)
class Expected:
    """What a run may come to: bits per byte, and the ends of its 95% interval."""

    bits: float
    low: float
    high: float


@dataclass(frozen=True)
class _Solution:
    """The best E, A, B for two exponents: squared error, and what their uncertainty follows from.

    Attributes:
      a: exponent of N.
      b: exponent of D.
      weights: E, A, B, none below 0.
      error: sum of squares.
      covariance: of the weights above 0 for residuals of 1; 0 for those at 0.
    """

    a: float
    b: float
    weights: np.ndarray
    error: float
    covariance: np.ndarray


class Curve:
    """The curve through some runs, and every other one that agrees with them as well."""

    def __init__(self, points: Sequence[Point]) -> None:
        """Fit the curve, by least squares over a grid of exponents.

        Raises:
          ValueError: if the runs are too few, or too alike.
        """
        sizes, lengths = (
            {round(float(np.log(x)), 1) for x in values}
            for values in ([p.parameters for p in points], [p.bytes for p in points])
        )
        if len(points) < MIN_RUNS or min(len(sizes), len(lengths)) < MIN_SIZES:
            raise ValueError(
                f"fit: {len(points)} runs of {len(sizes)} sizes and {len(lengths)} lengths; a curve"
                f" needs {MIN_RUNS} of {MIN_SIZES} sizes and {MIN_SIZES} lengths that have ended"
            )
        self.points = tuple(points)
        # Around 1, so that the three columns are of like size.
        self._n0 = float(np.exp(np.mean([np.log(p.parameters) for p in points])))
        self._d0 = float(np.exp(np.mean([np.log(p.bytes) for p in points])))
        solutions = [self._solve(a, b) for a, b in itertools.product(_EXPONENTS, _EXPONENTS)]
        self.best = min(solutions, key=lambda s: s.error)
        freedom = len(points) - _COEFFICIENTS
        self.deviation = max(np.sqrt(self.best.error / freedom), _NOISE)
        self._t = float(np.interp(1 / freedom, 1 / np.array(_FREEDOM), _T))
        # The profile of the likelihood: exponents as good as the best, as far as can be told.
        limit = self.best.error + (self._t * self.deviation) ** 2
        self._alike = [s for s in solutions if s.error <= limit]

    def expect(self, parameters: float, bytes: float) -> Expected:
        """Return what a run of N parameters and D bytes comes to.

        The interval is that of all curves that agree with the runs; it grows with the distance to
        them. It knows nothing of what changes with scale beside N and D.
        """
        best, low, high = self._value(self.best, parameters, bytes), np.inf, -np.inf
        for solution in self._alike:
            x = self._row(solution.a, solution.b, parameters, bytes)
            spread = self._t * self.deviation * float(np.sqrt(x @ solution.covariance @ x))
            value = float(x @ solution.weights)
            low, high = min(low, value - spread), max(high, value + spread)
        return Expected(best, max(low, 0.0), high)

    def _value(self, solution: _Solution, parameters: float, bytes: float) -> float:
        return float(self._row(solution.a, solution.b, parameters, bytes) @ solution.weights)

    def _row(self, a: float, b: float, parameters: float, bytes: float) -> np.ndarray:
        return np.array([1.0, (parameters / self._n0) ** -a, (bytes / self._d0) ** -b])

    def _solve(self, a: float, b: float) -> _Solution:
        """Return the weights of least squares, none of them below 0."""
        x = np.array([self._row(a, b, p.parameters, p.bytes) for p in self.points])
        y = np.array([p.bits for p in self.points])
        found = None
        # Three weights: every choice of those above 0 is tried, which no solver does more exactly.
        for size in (3, 2, 1):
            if found is not None and size == 2:
                break  # the best of all three has none below 0
            for kept in itertools.combinations(range(3), size):
                some = x[:, kept]
                part, *_ = np.linalg.lstsq(some, y, rcond=None)
                error = float(np.sum((some @ part - y) ** 2))
                if part.min() >= 0 and (found is None or error < found.error):
                    weights, covariance = np.zeros(3), np.zeros((3, 3))
                    weights[list(kept)] = part
                    covariance[np.ix_(kept, kept)] = np.linalg.pinv(some.T @ some)
                    found = _Solution(float(a), float(b), weights, error, covariance)
        assert found is not None  # the constant alone is above 0
        return found


def worth(read: float, text: float) -> float:
    """Return how many bytes of new text some bytes are worth that are read from a smaller text.

    Args:
      read: bytes of training.
      text: bytes of the text, which is read again and again.
    """
    if read <= text:
        return read
    return text + text * _PASSES * (1 - float(np.exp(-(read / text - 1) / _PASSES)))
