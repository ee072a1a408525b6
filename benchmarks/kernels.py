"""`python -m benchmarks.kernels`: the GPU kernels of the mixers beside the XLA forms they replace.

On an attached GPU, for the inside of one layer: the error of the output and of every gradient
against the XLA form in float32, and the median time of a forward and backward pass. Also the
card's own rates of copies and of bfloat16 products, which bound any kernel. Read `compare`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.rates import measure_rates, seconds
from spectral_dist.command_line import Parser, run_main
from spectral_dist.model.filters import balanced_poles
from spectral_dist.model.kernels.norm import residual_norm_kernel
from spectral_dist.model.kernels.spectral import spectral_kernel
from spectral_dist.model.kernels.spectral_plan import Plan
from spectral_dist.model.kernels.window import Tiles, window_kernel
from spectral_dist.model.layers import causal_convolution, rms_norm
from spectral_dist.model.mixers.attention import rotate
from spectral_dist.model.mixers.spectral_forms import mix_chunked
from spectral_dist.model.mixers.window import window_attention

Function = Callable[..., jax.Array]


@dataclass(frozen=True)
class Case:
    """One comparison: arrays, the XLA form, and the kernel in several cuts by name."""

    name: str
    arrays: tuple[jax.Array, ...]
    xla: Function
    kernels: dict[str, Function]


def _draw(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def window_case(batch: int, time: int, heads: int, size: int, window: int, dtype: Any) -> Case:
    """Return the comparison of window attention, H heads of queries and H / 2 of keys."""
    shapes = [(batch, time, h, size) for h in (heads, heads // 2, heads // 2)]
    arrays = tuple(_draw(i, shape, dtype) for i, shape in enumerate(shapes))

    def kernel(tiles: Any, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return window_kernel(
            rotate(query, 0), rotate(key, 0), value, None, window=window, tiles=tiles
        )

    def xla(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return window_attention(query, key, value, None, window=window, block_size=window)[0]

    cuts: dict[str, Any] = {"default": None}
    if size == 64 and dtype == jnp.bfloat16:
        cuts |= {
            "128x64, 4 warps": (Tiles(128, 64, 4),) * 3,
            "128x64, 8 warps": (Tiles(128, 64, 8),) * 3,
            "3 stages": (Tiles(64, 64, 4, 3),) * 3,
        }
    kernels = {name: partial(kernel, tiles) for name, tiles in cuts.items()}
    name = f"window {batch}x{time}x{heads}x{size} W={window} {jnp.dtype(dtype).name}"
    return Case(name, arrays, xla, kernels)


def spectral_case(batch: int, time: int, dim: int, dtype: Any, chunk: int) -> Case:
    """Return the comparison of the spectral mixer's inside, 16 poles and 4 taps."""
    bank, group = balanced_poles(16, 0.5, time / 4), 64
    arrays = (
        _draw(0, (batch, time, 3, dim), dtype),
        0.3 * _draw(1, (4, 3, dim), jnp.float32),
        _draw(2, (16, dim), jnp.float32) / 4,
        _draw(3, (dim,), jnp.float32),
    )

    def reference(
        p: jax.Array, conv: jax.Array, poles: jax.Array, *weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        q, k, v = (
            causal_convolution(p[:, :, j], conv[:, :, j], weights[0][:, j]) for j in range(3)
        )
        u = k * v
        y, poles = mix_chunked(u, poles, *weights[1:], bank=bank, chunk_size=chunk)
        normed = rms_norm(y.reshape(*y.shape[:2], -1, group)).reshape(y.shape)
        return q * normed, poles

    def xla(p: jax.Array, *weights: jax.Array) -> jax.Array:
        conv = jnp.zeros((batch, 3, 3, dim), dtype)
        return reference(p, conv, jnp.zeros((batch, 16, dim), jnp.float32), *weights)[0]

    def kernel(plan: Plan, p: jax.Array, *weights: jax.Array) -> jax.Array:
        call = partial(spectral_kernel, bank=bank, group=group, reference=reference, plan=plan)
        return call(p, None, *weights)[0]

    cuts = {"default": Plan()}
    if dtype == jnp.bfloat16:
        cuts |= {f"{n} programs": Plan(programs=n) for n in (128, 2048)}
    kernels = {name: partial(kernel, plan) for name, plan in cuts.items()}
    name = f"spectral {batch}x{time}x{dim} {jnp.dtype(dtype).name}"
    return Case(name, arrays, xla, kernels)


def norm_case(batch: int, time: int, dim: int, dtype: Any) -> Case:
    """Return the comparison of the sum into the residual stream and its norm."""
    arrays = (
        _draw(0, (batch, time, dim), dtype),
        _draw(1, (batch, time, dim), dtype),
        1 + 0.3 * _draw(2, (dim,), jnp.float32),
    )

    def xla(x: jax.Array, delta: jax.Array, scale: jax.Array) -> jax.Array:
        total = x + delta
        return jnp.concatenate([total, rms_norm(total) * scale.astype(dtype)[None, None]], -1)

    def kernel(x: jax.Array, delta: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.concatenate(residual_norm_kernel(x, delta, scale), -1)

    name = f"norm {batch}x{time}x{dim} {jnp.dtype(dtype).name}"
    return Case(name, arrays, xla, {"default": kernel})


def _both(function: Function) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a function of (gradient of the output, arrays) -> output and every gradient."""

    def run(dout: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(function, *arrays)
        return out, *pull(dout)

    return run


def _errors(found: Sequence[jax.Array], truth: Sequence[jax.Array]) -> list[float]:
    """Return the relative error of each array, by the norm."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(found, truth, strict=True)
    ]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]


def compare(case: Case) -> Iterator[tuple[str, str, float, float, str]]:
    """Yield for the XLA form and each kernel: name, cut, forward and whole seconds, errors."""
    dtype = case.arrays[0].dtype
    wide = [x.astype(jnp.float32) for x in case.arrays]
    precision = "highest" if dtype == jnp.float32 else None
    with jax.default_matmul_precision("highest"):
        shape = jax.eval_shape(case.xla, *case.arrays)
        dout = _draw(9, shape.shape, dtype)
        truth = jax.jit(_both(lambda *a: case.xla(*a)))(dout.astype(jnp.float32), *wide)
    for cut, function in {"XLA": case.xla, **case.kernels}.items():
        with jax.default_matmul_precision(precision):
            try:
                both, forward = jax.jit(_both(function)), jax.jit(function)
                errors = _errors(both(dout, *case.arrays), truth)
                once = seconds(partial(forward, *case.arrays))
                whole = seconds(partial(both, dout, *case.arrays))
            except jax.errors.JaxRuntimeError as error:
                yield case.name, cut, float("nan"), float("nan"), str(error).splitlines()[0][:60]
                continue
        yield case.name, cut, once, whole, " ".join(f"{e:.1e}" for e in errors)


def cases() -> Iterator[Case]:
    """Yield the comparisons: the presets' shapes in bfloat16, then exact ones in float32."""
    f32, bf16 = jnp.float32, jnp.bfloat16
    yield norm_case(16, 2048, 512, bf16)
    yield norm_case(32, 2048, 1024, bf16)
    yield spectral_case(16, 2048, 512, bf16, 128)
    yield window_case(16, 2048, 8, 64, 512, bf16)
    yield spectral_case(32, 2048, 1024, bf16, 64)
    yield spectral_case(1, 65536, 512, bf16, 128)
    yield norm_case(2, 512, 512, f32)
    yield spectral_case(2, 520, 128, f32, 64)
    yield window_case(2, 640, 4, 64, 200, f32)
    yield window_case(2, 512, 4, 128, 128, f32)


def main(argv: Sequence[str]) -> int:
    """Print the comparisons, and return 0."""
    parser = Parser(prog="python -m benchmarks.kernels", allow_abbrev=False)
    parser.read(argv)
    if jax.default_backend() != "gpu":
        raise ValueError(f"platform={jax.default_backend()}: the kernels need an attached GPU")
    rates = measure_rates()
    console = Console(width=150)
    console.print(
        f"{rates['device_kind']}: copies {rates['copy'] / 1e9:,.0f} GB/s, {rates['dtype']}"
        f" products {rates['product'] / 1e12:,.0f} TFLOP/s"
    )
    table = Table(box=rich.box.SIMPLE)
    for heading in ("case", "form", "forward ms", "both ms", "errors of output and gradients"):
        table.add_column(heading)
    for case in cases():
        for name, cut, once, whole, errors in compare(case):
            row = (name, cut, f"{once * 1e3:.3f}", f"{whole * 1e3:.3f}", errors)
            console.print(*row)  # at once: a whole run takes minutes
            table.add_row(*row)
    console.print(table)
    return 0


if __name__ == "__main__":
    run_main(main)
