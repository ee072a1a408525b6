"""`python -m benchmarks.mixer`: ways to mix along time, alone, forward and backward, by length.

The bank of exponentials in chunks (ours), by one FFT and by an associative scan: the same kind of
function of the same input. Causal attention of as many channels is what they stand in for. On a
GPU the kernel of the spectral layer's inside runs too. Read `forms`, then `measure`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.figures import OURS, Figure, compared, in_turn, part_parser, report, single
from spectral_dist.command_line import run_main
from spectral_dist.model.filters import FilterBank, balanced_poles
from spectral_dist.model.mixers.spectral_forms import mix_chunked, mix_fft

PART = "mixer"
POLES, HEAD_DIM = 16, 64
Mix = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def mix_associative(
    u_BTD: jax.Array, coefficients_ND: jax.Array, skip_D: jax.Array, *, bank: FilterBank
) -> jax.Array:
    """Mix by an associative scan over time, as diagonal state space models do.

    Of the plain exponentials b_n a_n^t and not of their orthonormal mixtures, so that an element
    is one number for each state and not a matrix: `mix_chunked` computes the same with R^T
    coefficients (`FilterBank.cholesky_NN`). Its states are [B, T, N, D], float32.

    Args:
      u_BTD: input, [B, T, D].
      coefficients_ND: [N, D], of the plain exponentials.
      skip_D: [D].
      bank: its time constants.

    Returns:
      [B, T, D], in u's dtype.
    """
    decay_N = jnp.asarray(np.exp(-1 / bank.taus_N), jnp.float32)
    drive_N = jnp.asarray(np.sqrt(-np.expm1(-2 / bank.taus_N)), jnp.float32)
    wide_BTD = u_BTD.astype(jnp.float32)
    inflow_BTND = drive_N[None, None, :, None] * wide_BTD[:, :, None, :]
    decay_BTND = jnp.broadcast_to(decay_N[None, None, :, None], inflow_BTND.shape)

    def join(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], left[1] * right[0] + right[1]

    _, states_BTND = jax.lax.associative_scan(join, (decay_BTND, inflow_BTND), axis=1)
    y_BTD = jnp.einsum("btnd,nd->btd", states_BTND, coefficients_ND)
    return (y_BTD + skip_D[None, None] * wide_BTD).astype(u_BTD.dtype)


def attention(u_BTD: jax.Array, coefficients_ND: jax.Array, skip_D: jax.Array) -> jax.Array:
    """Mix by causal attention with heads of 64, the input as queries, keys and values."""
    del coefficients_ND
    heads = u_BTD.reshape(*u_BTD.shape[:2], -1, HEAD_DIM)
    mixed = jax.nn.dot_product_attention(heads, heads, heads, is_causal=True)
    return mixed.reshape(u_BTD.shape) * skip_D.astype(u_BTD.dtype)[None, None]


def by_kernel(
    u_BTD: jax.Array, coefficients_ND: jax.Array, skip_D: jax.Array, *, bank: FilterBank
) -> jax.Array:
    """Mix by the GPU kernel of the spectral mixer, the input as q, k and v.

    It does more than the others: short convolution, product, group norm and gate.
    """
    from spectral_dist.model.kernels.spectral import spectral_kernel  # loads Pallas

    def reference(*_: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError("second derivatives are not measured")

    taps = jnp.zeros((4, 3, u_BTD.shape[2])).at[0].set(1.0)
    thrice = jnp.broadcast_to(u_BTD[:, :, None], (*u_BTD.shape[:2], 3, u_BTD.shape[2]))
    run = partial(spectral_kernel, bank=bank, group=HEAD_DIM, reference=reference)
    return run(thrice, None, taps, coefficients_ND, skip_D)[0]


def forms(bank: FilterBank, chunk_size: int) -> dict[str, Mix]:
    """Return the ways to mix, by name."""

    def start(u_BTD: jax.Array) -> jax.Array:
        return jnp.zeros((u_BTD.shape[0], POLES, u_BTD.shape[2]), jnp.float32)

    def chunked(u: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
        return mix_chunked(u, start(u), c, d, bank=bank, chunk_size=chunk_size)[0]

    def fft(u: jax.Array, c: jax.Array, d: jax.Array) -> jax.Array:
        return mix_fft(u, start(u), c, d, bank=bank)[0]

    kernel = {"ours, GPU kernel": partial(by_kernel, bank=bank)}
    return {
        OURS: chunked,
        **(kernel if jax.default_backend() == "gpu" else {}),
        "FFT": fft,
        "associative scan": partial(mix_associative, bank=bank),
        "attention": attention,
    }


def needed_bytes(name: str, time: int, dim: int) -> int:
    """Return what a form keeps of one sequence, roughly: what could be too much for a machine."""
    if name == "attention":  # the XLA form keeps its scores, and their gradient
        return 4 * (dim // HEAD_DIM) * time * time * 4
    if name == "associative scan":  # decays and states, by levels, and their gradients
        return 12 * time * POLES * dim * 4
    return 16 * time * dim * 4


def free_bytes() -> int:
    """Return the memory that a benchmark may take: half of what the device has free."""
    stats = jax.devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats["bytes_in_use"]) // 2
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def measure(time: int, dim: int, rounds: int) -> list[Figure]:
    """Time forward and backward passes of one sequence, the forms in turn.

    Args:
      time: T.
      dim: channels D, a multiple of 64.
      rounds: of each form, at least 2.

    Returns:
      figures in microseconds a token; a form that would need more memory than there is free has
      none, but a note with ours.
    """
    on_gpu = jax.default_backend() == "gpu"
    bank = balanced_poles(POLES, 0.5, time / 4)
    dtype = jnp.bfloat16 if on_gpu else jnp.float32
    keys = jax.random.split(jax.random.key(0), 4)
    u, dout = (jax.random.normal(key, (1, time, dim), dtype) for key in keys[:2])
    coefficients = jax.random.normal(keys[2], (POLES, dim)) / POLES**0.5
    skip = jnp.ones((dim,))
    calls: dict[str, Callable[[], object]] = {}
    left_out = []
    for name, form in forms(bank, 128 if on_gpu else 32).items():
        if needed_bytes(name, time, dim) > free_bytes():
            left_out.append(f"{name}: needs some {needed_bytes(name, time, dim) / 1e9:.0f} GB")
            continue

        def both(
            u: jax.Array, c: jax.Array, d: jax.Array, dout: jax.Array, form: Mix = form
        ) -> tuple[jax.Array, ...]:
            y, pull = jax.vjp(form, u, c, d)
            return y, *pull(dout.astype(y.dtype))

        compiled = jax.jit(both).lower(u, coefficients, skip, dout).compile()

        def call(compiled: Callable[..., object] = compiled) -> None:
            jax.block_until_ready(compiled(u, coefficients, skip, dout))

        call()  # the first one loads
        calls[name] = call
    seconds = in_turn(calls, rounds)
    note = "; ".join(left_out)
    case = f"T={time:,}, {dim} channels, {jnp.dtype(dtype).name}"
    return compared(
        PART, case, "us a token", seconds, scale=1e6 / time, notes={OURS: note}, at=time
    )


def _by_length(lengths: Sequence[int], dim: int, rounds: int) -> Iterator[Figure]:
    """Yield the figures of each length, and at the end how the cost of a token of ours grew."""
    own = []
    for time in lengths:
        found = measure(time, dim, rounds)
        own += [f.value for f in found if f.name == OURS]
        yield from found
    case = f"a token at T={lengths[-1]:,} over one at T={lengths[0]:,}"
    yield single(PART, case, OURS, "times", [own[-1] / own[0]])


def main(argv: Sequence[str]) -> int:
    """Time ways to mix along time, by length; return 0."""
    parser = part_parser("benchmarks.mixer", main.__doc__)
    flags = parser.read(argv)
    lengths = (512, 4_096) if flags.quick else (512, 2_048, 8_192, 32_768, 65_536)
    dim = 512 if jax.default_backend() == "gpu" else 128
    report(_by_length(lengths, dim, 3 if flags.quick else 7), flags.json)
    return 0


if __name__ == "__main__":
    run_main(main)
