"""The state space (A, B, C, D) of the spectral mixer: orthonormal decaying exponentials.

A (transition) and B (drive) are here, fixed and shared by all channels. C (coefficients) and D
(skip) are learned for each channel, in spectral.py. Computed once, on the host, in float64. Nothing
here is learned and nothing here knows JAX. Read `balanced_poles` first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The Gram matrix of exponentials this close has a condition number of 1e6 and more: float32 would
# lose the last of them.
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)  # it holds arrays
class FilterBank:
    """A linear state space model with N states and orthonormal impulse responses.

    x[t] = A x[t-1] + B u[t], all float64.

    Attributes:
      transition_NN: A, with ||A||_2 = 1 and A A^T + B B^T = I.
      drive_N: B, one column.
      cholesky_NN: R, lower triangular; row n holds the coefficients of the n-th exponential,
        b_n a_n^t = sum_m R[n, m] response[t, m].
      taus_N: time constants in tokens, ascending.
    """

    transition_NN: Float64
    drive_N: Float64
    cholesky_NN: Float64
    taus_N: Float64

    def responses(self, length: int) -> Float64:
        """Return the impulse responses A^t b for t = 0 .. length - 1: [length, N]."""
        # Step by step: ||A||_2 = 1, so that rounding errors do not grow with t.
        out_TN = np.empty((length, self.drive_N.size))
        state_N = self.drive_N
        for t in range(length):
            out_TN[t] = state_N
            state_N = self.transition_NN @ state_N
        return out_TN

    def powers(self, length: int) -> Float64:
        """Return the powers A^1 .. A^length: [length, N, N]."""
        size = self.drive_N.size
        out = np.empty((length, size, size))
        power_NN = self.transition_NN
        for t in range(length):
            out[t] = power_NN
            power_NN = power_NN @ self.transition_NN
        return out

    def power(self, length: int) -> Float64:
        """Return A^length, [N, N]: what that many steps without input make of a state."""
        return np.linalg.matrix_power(self.transition_NN, length)


def balanced_poles(num_poles: int, tau_min: float, tau_max: float) -> FilterBank:
    """Return the input-balanced state space of N exponentials with log-spaced time constants.

    a_n = exp(-1 / tau_n), b_n = sqrt(1 - a_n^2); the Gram matrix of the normalised exponentials is
    P_ij = b_i b_j / (1 - a_i a_j) = R R^T, and A = R^-1 diag(a) R, b = R^-1 b. The responses are
    then orthonormal over t, and white input of unit variance gives a state of unit covariance.

    Args:
      num_poles: N, at least 1.
      tau_min: shortest time constant, in tokens, above 0.
      tau_max: longest time constant, in tokens, above tau_min.

    Source: Takenaka-Malmquist orthonormalisation of exponentials; the bank stands for the Hankel
    filters of Agarwal et al. 2023, arXiv:2312.06837, which are mixtures of decaying exponentials.
    """
    taus_N = np.geomspace(tau_min, tau_max, num_poles)
    a_N = np.exp(-1.0 / taus_N)
    b_N = np.sqrt(-np.expm1(-2.0 / taus_N))  # sqrt(1 - a^2) without cancellation at a near 1
    rate_N = 1.0 / taus_N
    transition_NN = np.zeros((num_poles, num_poles))
    drive_N = np.zeros(num_poles)
    cholesky_NN = np.zeros((num_poles, num_poles))
    # In closed form, as a cascade of all-pass filters: A A^T + b b^T = I then holds to 4e-15 up to
    # N = 64. By the Cholesky factor of P it was off by 1e-4 at N = 32, and failed at N = 64.
    # Section m low-passes its input v_m, and passes on v_(m+1), which is v_m all-passed by a_m.
    # v_m is a mixture of the previous states (v_from_N) and of the input (v_from_input); passed_N
    # is the product of the all-passes so far at each pole, that is at z^-1 = a_n.
    v_from_N, v_from_input, passed_N = np.zeros(num_poles), 1.0, np.ones(num_poles)
    for m in range(num_poles):
        # 1 - a_n a_m by expm1: for long time constants both are nearly equal, and would cancel.
        one_less_N = -np.expm1(-(rate_N + rate_N[m]))
        cholesky_NN[m:, m] = (b_N * b_N[m] / one_less_N * passed_N)[m:]
        transition_NN[m] = b_N[m] * v_from_N
        transition_NN[m, m] += a_N[m]
        drive_N[m] = b_N[m] * v_from_input
        v_from_N *= -a_N[m]
        v_from_N[m] += b_N[m]
        v_from_input *= -a_N[m]
        passed_N = passed_N * (-a_N * np.expm1(rate_N - rate_N[m])) / one_less_N
    return FilterBank(transition_NN, drive_N, cholesky_NN, taus_N)
