"""Lower bounds on a training step's memory and time, known before anything is compiled.

Owns the bounds that let the search leave out a candidate without compiling it, and says for each
why it holds. They bound what the planner itself predicts: the compiler's peak memory and the
roofline model's time. Read `memory_bound` and `time_bound`.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.model.flops import dense_flops
from spectral_dist.model.lm import SpectralLM
from spectral_dist.params import ModelSpec, Params
from spectral_dist.planning.hlo.collectives import (
    Traffic,
    axis_groups,
    lower_bound,
    mesh_sizes,
    rings_per_host,
)
from spectral_dist.planning.roofline import Rates
from spectral_dist.settings import Config
from spectral_dist.training.loss import loss_sums
from spectral_dist.training.optimizers import make_optimizer
from spectral_dist.training.state import model_spec

_FLOAT32 = 4
# The most often that a micro-batch reads or writes all weights: forward, recomputed, two products
# of the backward pass, and as many copies of them.
_WEIGHT_PASSES = 8
# The same for a device's own shard: sums and casts of a micro-batch, gradient norms of a step.
_SUM_PASSES, _NORM_PASSES = 4, 4


@dataclass(frozen=True)
class Shapes:
    """Shapes of a run's params and optimizer state, which are the same on every mesh.

    Attributes:
      model: the description of the parameters.
      copies: size of params and opt_state together, in multiples of params; 3 for AdamW.
    """

    model: ModelSpec[SpectralLM]
    copies: int

    @property
    def size(self) -> int:
        """The number of elements in params."""
        return self.model.size

    def local_bytes(self, mesh_shape: dict[str, int]) -> int:
        """Return the bytes of one device's shard of params, in float32.

        Raises:
          ValueError: names a parameter that the mesh cannot divide.
        """
        return _local_bytes(self, tuple(mesh_shape.items()))


# The search asks for hundreds of candidates, but these have few meshes.
@functools.lru_cache
def _local_bytes(shapes: Shapes, mesh: tuple[tuple[str, int], ...]) -> int:
    return _FLOAT32 * shapes.model.local_size(dict(mesh))


def find_shapes(config: Config) -> Shapes:
    """Return the shapes of a run's params and optimizer state; allocates nothing."""
    spec = model_spec(config)
    opt_state = jax.eval_shape(make_optimizer(config.optimizer, spec.axes).init, spec.shapes)
    # By elements, and not by arrays: an optimizer may keep two arrays for some parameters and one
    # for others. Rounded down, so that memory_bound stays a lower bound.
    elements = sum(leaf.size for leaf in jax.tree.leaves(opt_state))
    return Shapes(spec, 1 + elements // spec.size)


def memory_bound(config: Config, shapes: Shapes) -> int:
    """Return a lower bound on the bytes that a training step needs on a device.

    It holds whatever the compiler does: the arguments, which stay from start to end, and what the
    step must keep of its own.

    Raises:
      ValueError: names an array that the mesh cannot divide.
    """
    data, sizes = config.data, mesh_sizes(config)
    local = shapes.local_bytes(sizes)
    sequences = data.accum_steps * (data.batch_size // (sizes["data"] * sizes["fsdp"]))
    # Beside the step's own tokens: the prefetched batches.
    tokens = sequences * (data.seq_len + 1) * find_tokenizer(config).dtype.itemsize
    arguments = shapes.copies * local + tokens * (1 + data.prefetch_steps)
    saved = saved_bytes(config)
    # Gradient accumulation adds up in float32, while a micro-batch's activations are saved. Without
    # it all gradients exist at once before the update, because clipping needs their global norm;
    # but maybe in bfloat16, and not during the forward pass: the larger of both.
    kept = local + saved if data.accum_steps > 1 else max(local // 2, saved)
    return arguments + kept


def saved_bytes(config: Config) -> int:
    """Return a lower bound on the activations that a device saves for the backward pass, in bytes.

    These are the residuals that JAX passes from the forward to the backward pass, traced and not
    estimated. The sizes of the dense products alone gave 18 GiB where the compiler needed 107;
    residuals give 87 (level 3 without activation checkpointing; docs/log.md).
    """
    model, data, sizes = config.model, config.data, mesh_sizes(config)
    sequences = data.batch_size // (sizes["data"] * sizes["fsdp"])
    width = 2 if model.compute_dtype == "bfloat16" else _FLOAT32
    # The layers run in a loop, and no compiler looks across the loops of both passes: what JAX
    # saves stays saved. Each layer's input [B, T, D] is whole on every shard of tensor, the rest is
    # at best divided.
    inputs = model.num_layers * data.seq_len * model.hidden_dim * width
    everything = _saved_per_sequence(model_spec(config), data.seq_len, config.optimizer.z_loss)
    divided = inputs + max(0, everything - inputs) // sizes.get("tensor", 1)
    return sequences * divided // sizes.get("sequence", 1)


@functools.lru_cache
def _saved_per_sequence(spec: ModelSpec[SpectralLM], seq_len: int, z_loss: float) -> int:
    """Return the bytes of residuals that one more sequence adds on an undivided model."""

    def loss(params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss_sums(spec.bind(params), tokens_BT, z_loss)

    def kept(sequences: int) -> int:
        tokens_BT = jax.ShapeDtypeStruct((sequences, seq_len + 1), jnp.int32)
        # A vjp function is a pytree whose leaves are its residuals.
        backward = jax.eval_shape(
            lambda p, t: jax.vjp(lambda q: loss(q, t), p, has_aux=True)[1], spec.shapes, tokens_BT
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    # The difference leaves out the weights, which are residuals too but grow with no sequence.
    return kept(2) - kept(1)


@dataclass(frozen=True)
class TimeBound:
    """Lower bound on the time of a step by the roofline model, in two parts.

    Attributes:
      kernel_seconds: of the kernels.
      communication_seconds: of the collectives, hidden and exposed.
    """

    kernel_seconds: float
    communication_seconds: float

    def seconds(self, exposed: float) -> float:
        """Return the bound on the step, with a lower bound in [0, 1] on the exposed share."""
        # However well it hides, a step is no shorter than its collectives, one after another.
        together = self.kernel_seconds + exposed * self.communication_seconds
        return max(together, self.communication_seconds)


def time_bound(config: Config, shapes: Shapes, rates: Rates, per_host: int) -> TimeBound:
    """Return a lower bound on the time of a training step by the roofline model.

    It is the dense products at peak FLOP/s, the optimizer's update at peak memory bandwidth, and
    the least traffic that the mesh needs.
    """
    sizes = mesh_sizes(config)
    devices = math.prod(sizes.values())
    data, dtype = config.data, "bf16" if config.model.compute_dtype == "bfloat16" else "f32"
    tokens = data.step_tokens
    peak = rates.flops.get(dtype, rates.flops["f32"])
    # The products of a step are the same on every mesh, and at best they are divided evenly.
    products = tokens * dense_flops(model_spec(config), config.model.remat) / devices / peak
    # No product runs in the update's kernels, so its time adds. It reads params, grads and
    # opt_state and writes all but the grads.
    update = (2 * shapes.copies + 1) * shapes.local_bytes(sizes) / rates.memory
    needed = lower_bound(config, per_host, shapes.size)
    traffic = sum(traffic_seconds(t, sizes, rates, per_host) for t in needed)
    return TimeBound(products + update, traffic)


def traffic_seconds(traffic: Traffic, sizes: dict[str, int], rates: Rates, per_host: int) -> float:
    """Return the time of the collectives along one mesh axis, without their latencies."""
    link = rates.inside
    if traffic.crosses_hosts:
        link = min(link, rates.between / rings_per_host(axis_groups(sizes, traffic.axes), per_host))
    return traffic.moved_bytes / link


def kernel_floor(measured: float, of: Config, other: Config, shapes: Shapes, rates: Rates) -> float:
    """Return a lower bound on a candidate's kernel time, from that of a compiled candidate.

    It follows from the roofline model. A kernel takes the longest of three times, and none of them
    falls faster than the kernel's share of the work, so more and smaller kernels take no less in
    all. The result is 0 where this says nothing.

    The compiler must have had enough memory for `of`: else XLA recomputes more than activation
    checkpointing says, and the bound would be too high.

    Args:
      measured: seconds of the kernels of `of`.
      of: the compiled candidate.
      other: the candidate to bound.
      shapes: of params and optimizer state.
      rates: of the device.
    """
    sizes, others = mesh_sizes(of), mesh_sizes(other)
    micro = of.data.accum_steps
    # Nothing follows for another remat or unroll, for channels that are divided less, or for larger
    # micro-batches: there the work itself is less, or in fewer pieces.
    covers = (
        of.model.remat == other.model.remat
        and of.model.unroll == other.model.unroll
        and others.get("tensor", 1) % sizes.get("tensor", 1) == 0
        and other.data.accum_steps >= micro
    )
    if not covers:
        return 0.0
    # Two things become less all the same, and are subtracted. First, tensor divides the reads of
    # the weights, which on other mesh axes every device reads whole.
    less = 0.0
    if others.get("tensor", 1) > sizes.get("tensor", 1):
        width = 2 if of.model.compute_dtype == "bfloat16" else _FLOAT32
        less += micro * _WEIGHT_PASSES * shapes.size / sizes.get("tensor", 1) * width
    # Second, a larger fsdp x tensor divides the update and the sums of the gradients.
    divided = max(0, shapes.local_bytes(sizes) - shapes.local_bytes(others))
    less += (micro * _SUM_PASSES + 2 * shapes.copies + _NORM_PASSES) * divided
    return max(0.0, measured - less / rates.memory)
