"""The inside of the spectral mixer on a GPU, from its projections to the gated output.

Calls the walks of spectral_walk.py. A program owns one sequence and one group of channels. Where
these are too few to fill a GPU, time is cut into segments that run side by side; their first states
come from a kernel that only sums up each segment, and a scan over segments. Read `spectral_kernel`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.triton as plgpu
import jax.numpy as jnp
from jax.experimental import pallas as pl

from spectral_dist.array_typing import Array, Float, Float32
from spectral_dist.mesh import device_kind
from spectral_dist.model.filters import FilterBank
from spectral_dist.model.kernels import declared
from spectral_dist.model.kernels.spectral_plan import Plan, Walk, plan_for
from spectral_dist.model.kernels.spectral_walk import (
    Sizes,
    backward_kernel,
    constants,
    forward_kernel,
    inflow_kernel,
    reversed_inflow_kernel,
)
from spectral_dist.model.sequence import WHOLE, TimeShards

_NEARLY_EXACT = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3

# The reference: the same function of (p, conv, poles, taps, coefficients, skip) without kernels.
Reference = Callable[..., tuple[jax.Array, jax.Array]]


class _Weights(NamedTuple):
    taps: jax.Array  # [K, 3, D] float32
    coefficients: jax.Array  # [N, D] float32
    skip: jax.Array  # [D] float32


def spectral_kernel(
    p_BT3D: Float[Array, "B T 3 D"],
    before: tuple[Float[Array, "B J 3 D"], Float32[Array, "B N D"]] | None,
    taps_K3D: Float32[Array, "K 3 D"],
    coefficients_ND: Float32[Array, "N D"],
    skip_D: Float32[Array, " D"],
    *,
    bank: FilterBank,
    group: int,
    reference: Reference,
    across: TimeShards = WHOLE,
    plan: Plan | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T D"], Float32[Array, "B N D"]]:
    """Mix along time: q * group_norm(spectral convolution of k * v), on one device's shard.

    Operands in p's dtype; sums, states and the norm in float32.

    Args:
      p_BT3D: the projections of q, k and v, before the short convolution.
      before: the last K - 1 projections and the state of the bank before the first token; None at
        the start of a sequence.
      taps_K3D: of the short convolution; the first one multiplies the current input.
      coefficients_ND: C of the state space.
      skip_D: D of the state space.
      bank: A and B of the state space, fixed.
      group: channels that are normalised together, a power of two, at least 16; divides D.
      reference: computes the same without kernels. It stands in for the gradient where a sequence
        does not begin at its start or its last state is used, and for the last few tokens after
        whole chunks of a sequence that goes on.
      across: how time is divided; T is then that of a shard, in whole chunks. It passes on what
        comes before a shard, and the gradient.
      plan: how the kernels are cut; None for the best one known.
      interpret: whether to run without a GPU, slowly.

    Returns:
      the mixed values in p's dtype, and the state of the bank after the last token.
    """
    plan = plan or plan_for(device_kind())
    weights = _Weights(taps_K3D, coefficients_ND, skip_D)
    mix = partial(_mixer, bank, group, reference, across, plan, interpret)
    if across.axes:
        assert p_BT3D.shape[1] % plan.chunk == 0, "settings/relations.py has a rule for it"
        out, last = mix()(p_BT3D, before, weights)
        return out, across.of_last(last)
    if before is not None:
        return _going_on(mix(), reference, plan.chunk, p_BT3D, before, weights)
    # Zeros in front of the start change neither the state nor the convolution.
    batch, time, _, channels = p_BT3D.shape
    front = -time % (plan.chunk * plan.segments(batch * channels // group, time))
    p = jnp.pad(p_BT3D, ((0, 0), (front, 0), (0, 0), (0, 0)))
    out, last = mix()(p, None, weights)
    return out[:, front:], last


def _going_on(
    mix: Callable[..., tuple[jax.Array, jax.Array]],
    reference: Reference,
    chunk: int,
    p_BT3D: jax.Array,
    before: tuple[jax.Array, jax.Array],
    weights: _Weights,
) -> tuple[jax.Array, jax.Array]:
    """Return the output and the last state of a sequence that goes on: whole chunks by kernels."""
    conv, poles = before
    whole = p_BT3D.shape[1] // chunk * chunk
    if not whole:
        return reference(p_BT3D, conv, poles, *weights)
    out, after = mix(p_BT3D[:, :whole], (conv, poles), weights)
    if whole < p_BT3D.shape[1]:
        joined = jnp.concatenate([conv, p_BT3D], axis=1)
        conv = joined[:, whole : whole + conv.shape[1]]
        more, after = reference(p_BT3D[:, whole:], conv, after, *weights)
        out = jnp.concatenate([out, more], axis=1)
    return out, after


def _mixer(
    bank: FilterBank,
    group: int,
    reference: Reference,
    across: TimeShards,
    plan: Plan,
    interpret: bool,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return mix(p, before, weights), which has a gradient, for whole chunks."""

    def call(p: jax.Array, before: Any, weights: _Weights) -> "_Call":
        if across.axes:
            conv, poles = start(p, weights) if before is None else before
            before = across.before(p, conv), poles
        return _Call(bank, group, across, plan, interpret, p, before, weights)

    def start(p: jax.Array, weights: _Weights) -> tuple[jax.Array, jax.Array]:
        size = (p.shape[0], bank.drive_N.size, p.shape[3])
        conv = jnp.zeros((p.shape[0], weights.taps.shape[0] - 1, *p.shape[2:]), p.dtype)
        return conv, jnp.zeros(size, jnp.float32)

    @jax.custom_vjp
    def mix(p: jax.Array, before: Any, weights: _Weights) -> tuple[jax.Array, jax.Array]:
        out, last, _ = call(p, before, weights).forward(keep=False)
        return out, last

    def forward(*primals: Any) -> tuple[Any, Any]:
        p, before, weights = jax.tree.map(
            lambda x: x.value, primals, is_leaf=lambda x: hasattr(x, "perturbed")
        )
        out, last, y = call(p, before, weights).forward(keep=before is None)
        return (out, last), (p, before, weights, y)

    def plain(p: jax.Array, before: Any, weights: _Weights) -> tuple[jax.Array, jax.Array]:
        return reference(p, *(start(p, weights) if before is None else before), *weights)

    def backward(saved: Any, gradients: Any) -> tuple[Any, Any, Any]:
        p, before, weights, y = saved
        dout, dlast = gradients
        unused = isinstance(dlast, jax.custom_derivatives.SymbolicZero)
        if before is None and unused and not _is_zero(dout):  # the first shard's start
            return call(p, before, weights).backward(y, dout)
        _, pull = jax.vjp(plain, p, before, weights)
        return pull(tuple(_dense(g) for g in gradients))

    mix.defvjp(forward, backward, symbolic_zeros=True)
    return mix


def _is_zero(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.SymbolicZero)


def _dense(x: Any) -> jax.Array:
    return jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x


class _Call:
    """One call of the kernels: its sizes, constants, and where each program finds its blocks."""

    def __init__(
        self,
        bank: FilterBank,
        group: int,
        across: TimeShards,
        plan: Plan,
        interpret: bool,
        p: jax.Array,
        before: Any,
        weights: _Weights,
    ) -> None:
        """Find the sizes of a call of [B, T, 3, D]; T is whole segments."""
        self.across = across
        self.batch, self.time, _, self.dim = p.shape
        self.taps, self.poles = weights.taps.shape[0], bank.drive_N.size
        self.plan, self.interpret, self.group = plan, interpret, group
        groups = self.dim // group
        segments = plan.segments(self.batch * groups, self.time)
        # Of a segment, whole chunks: a sequence that goes on is cut at a power of two of them.
        while self.time % (plan.chunk * segments):
            segments //= 2
        self.grid = (self.batch, groups, segments)
        rows = 0 if before is None else before[0].shape[1]
        # Where operands are bfloat16, only the carried state is float32: three passes in TF32 are
        # nearly exact, and on tensor cores.
        exact = interpret or p.dtype == jnp.float32
        precision = jax.lax.Precision.HIGHEST if exact else _NEARLY_EXACT
        length = self.time // segments
        self.length = length
        sizes = partial(Sizes, poles=self.poles, taps=self.taps, before=rows, length=length)
        self.sizes = {
            walk: sizes(chunk=walk.chunk, held=min(walk.held, self.poles), precision=precision)
            for walk in (plan.forward, plan.backward)
        }
        self.bank = bank
        self.segment_NN = jnp.asarray(bank.power(length), jnp.float32)
        self.shard_NN = jnp.asarray(bank.power(self.time), jnp.float32)
        self.own = p
        self.p = p if before is None else jnp.concatenate([before[0], p], axis=1)
        zero = jnp.zeros((self.batch, self.poles, self.dim), jnp.float32)
        self.before = zero if before is None else before[1]
        self.weights = weights

    def _run(
        self, kernel: Any, name: str, inputs: list[Any], outputs: list[Any], walk: Walk, flops: int
    ) -> Any:
        """Run a kernel; an input or output is (array or shape, its BlockSpec), or a constant."""
        pairs = [x if isinstance(x, tuple) else (x, _whole(x)) for x in inputs]
        arrays = [array for array, _ in pairs]
        return pl.pallas_call(
            partial(kernel, at=self.sizes[walk]),
            name=name,
            grid=self.grid,
            in_specs=[spec for _, spec in pairs],
            out_shape=[shape for shape, _ in outputs],
            out_specs=[spec for _, spec in outputs],
            interpret=self.interpret,
            compiler_params=plgpu.CompilerParams(num_warps=walk.warps, num_stages=1),
            metadata=declared(flops * self.batch * self.time * self.dim, self.p.dtype),
        )(*arrays)

    def _bank_flops(self, walk: Walk) -> int:
        """Return FLOPs of an element of the output, in the states at all times of a chunk."""
        return 2 * self.poles * (walk.chunk + self.poles)

    def _constants(self, walk: Walk) -> dict[str, jax.Array]:
        return constants(self.bank, walk.chunk, self.taps, self.p.dtype)

    def _of(self, x: jax.Array, *block: int | None) -> tuple[jax.Array, pl.BlockSpec]:
        """Return an array with the block of its last dimension, channels; else it is whole."""
        shape = (*x.shape[:-1], self.group)
        return x, pl.BlockSpec(shape, lambda b, g, m: (0,) * (x.ndim - 1) + (g,))

    def _rows(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Return an array [B, T, ..., D] of which a program sees its sequence and its channels."""
        shape = (None, *x.shape[1:-1], self.group)
        return x, pl.BlockSpec(shape, lambda b, g, m: (b,) + (0,) * (x.ndim - 2) + (g,))

    def _segment(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Return an array [B, M, ..., D] of which a program sees its segment and its channels."""
        shape = (None, None, *x.shape[2:-1], self.group)
        return x, pl.BlockSpec(shape, lambda b, g, m: (b, m) + (0,) * (x.ndim - 3) + (g,))

    def _states(self) -> tuple[Any, pl.BlockSpec]:
        shape = (self.batch, self.grid[2], self.poles, self.dim)
        return self._segment(jax.ShapeDtypeStruct(shape, jnp.float32))

    def _first_states(
        self, sums: Callable[[], jax.Array], start: jax.Array, *, reverse: bool
    ) -> jax.Array:
        """Return the state before each segment [B, M, N, D], from the sum of each and a scan.

        Args:
          sums: returns the state after each segment that begins with none.
          start: the state before the first one, of the first shard.
          reverse: whether the sequence runs from the last segment to the first.
        """
        if self.grid[2] == 1 and not self.across.axes:
            return start[:, None]
        sums_MBND = sums().swapaxes(0, 1)

        def step(state: jax.Array, inflow: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.einsum("nm,bmd->bnd", self.segment_NN, state) + inflow, state

        if self.across.axes:
            own = jax.lax.scan(step, jnp.zeros_like(start), sums_MBND, reverse=reverse)[0]
            start, _ = self.across.states(own, start, self.shard_NN, reverse=reverse)
        return jax.lax.scan(step, start, sums_MBND, reverse=reverse)[1].swapaxes(0, 1)

    def forward(self, *, keep: bool) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Return the output, the state after the last token, and y [B, T, D] if it is kept."""
        walk = self.plan.forward
        c = self._constants(walk)
        p, taps = self._rows(self.p), self._of(self.weights.taps)

        def sums() -> jax.Array:
            inputs = [p, taps, c["decay"], c["inflow"]]
            name, flops = "spectral_inflow", 2 * self.poles
            return self._run(inflow_kernel, name, inputs, [self._states()], walk, flops)[0]

        first = self._first_states(sums, self.before, reverse=False)
        shape = jax.ShapeDtypeStruct((self.batch, self.time, self.dim), self.p.dtype)
        out = self._rows(shape)
        names = ("states", "carry", "decay", "inflow")
        inputs = [
            p,
            taps,
            self._of(self.weights.coefficients),
            self._of(self.weights.skip),
            self._segment(first),
            *(c[name] for name in names),
        ]
        outputs = [out, self._states(), *([out] if keep else [])]
        mixed, last, *kept = self._run(
            forward_kernel, "spectral_forward", inputs, outputs, walk, self._bank_flops(walk)
        )
        return mixed, last[:, -1], kept[0] if keep else None

    def backward(self, y: jax.Array, dout: jax.Array) -> tuple[jax.Array, None, _Weights]:
        """Return the gradients of p and of the weights, for a sequence from its start."""
        walk, segments = self.plan.backward, self.grid[2]
        c = self._constants(walk)
        p, taps = self._rows(self.p), self._of(self.weights.taps)
        y_rows, dout_rows = self._rows(y), self._rows(dout)

        def sums() -> jax.Array:
            inputs = [p, taps, c["decay"], c["reversed_inflow"], y_rows, dout_rows]
            name, flops = "spectral_reversed_inflow", 2 * self.poles
            outputs = [self._states()]
            return self._run(reversed_inflow_kernel, name, inputs, outputs, walk, flops)[0]

        first = self._first_states(sums, jnp.zeros_like(self.before), reverse=True)
        names = ("reversed_states", "reversed_carry", "decay", "reversed_inflow", "up", "after")
        inputs = [
            p,
            taps,
            self._of(self.weights.coefficients),
            self._of(self.weights.skip),
            self._segment(first),
            *(c[name] for name in names),
            y_rows,
            dout_rows,
        ]

        def sums_of(*shape: int) -> tuple[Any, pl.BlockSpec]:
            size = (self.batch, segments, *shape, self.dim)
            return self._segment(jax.ShapeDtypeStruct(size, jnp.float32))

        edge = (self.batch, segments, walk.chunk, 3, self.dim)
        outputs = [
            self._rows(jax.ShapeDtypeStruct(self.own.shape, self.p.dtype)),
            sums_of(self.taps, 3),
            sums_of(self.poles),
            sums_of(),
            self._segment(jax.ShapeDtypeStruct(edge, self.p.dtype)),
        ]
        # The short convolution's gradient is two products of each chunk, for q, k and v.
        flops = self._bank_flops(walk) + 3 * 2 * 2 * walk.chunk * self.taps
        dp, dtaps, dcoefficients, dskip, edge = self._run(
            backward_kernel, "spectral_backward", inputs, outputs, walk, flops
        )
        dtaps = dtaps.sum((0, 1))
        if segments > 1 or self.across.axes:
            dp, more = self._across_edges(dp, edge)
            dtaps += more
        return dp, None, _Weights(dtaps, dcoefficients.sum((0, 1)), dskip.sum((0, 1)))

    def _across_edges(self, dp: jax.Array, edge: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Add what the first tokens of a segment or shard owe to the last inputs of the one before.

        Returns:
          dp, and what is missing in the gradient of the taps.
        """
        f32, rows = jnp.float32, self.taps - 1
        taps = self.weights.taps.astype(dp.dtype).astype(f32)
        # The last segment's follower is the next shard's first; after the last shard, zeros.
        follower = self.across.after(edge[:, :1, :rows])
        first = jnp.concatenate([edge[:, 1:, :rows], follower], axis=1).astype(f32)
        shape = (self.batch, self.grid[2], self.length, 3, self.dim)
        last = self.own.reshape(shape)[:, :, -rows:].astype(f32)
        missing, dtaps = [jnp.zeros_like(first[:, :, 0])] * rows, [jnp.zeros(taps.shape[1:], f32)]
        for k in range(1, self.taps):
            # Token i of a segment takes input rows + i - k of the last ones of the one before.
            reached = range(min(k, rows))
            for i in reached:
                missing[rows + i - k] += first[:, :, i] * taps[None, None, k]
            pairs = (first[:, :, i] * last[:, :, rows + i - k] for i in reached)
            dtaps.append(jnp.sum(sum(pairs), axis=(0, 1)))
        late = dp.reshape(shape)[:, :, -rows:].astype(f32) + jnp.stack(missing, axis=2)
        dp = dp.reshape(shape).at[:, :, -rows:].set(late.astype(dp.dtype)).reshape(dp.shape)
        return dp, jnp.stack(dtaps)


def _whole(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda b, g, m: (0,) * x.ndim)
