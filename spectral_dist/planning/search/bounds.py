"""What a step needs at the least, known before anything is compiled.

Owns the lower bounds that let the search leave a candidate out unseen, and says for each why it
holds. Memory and time are those of the planner's own account: the compiler's plan of a device, and
the roofline model. Read `memory_bound` and `time_bound`.
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
# How often a micro-batch passes over all weights at most: forward, again, twice backward; copies.
_WEIGHT_PASSES = 8
# The same for a device's own part of them: sums and casts of a micro-batch, norms of a step.
_SUM_PASSES, _NORM_PASSES = 4, 4


@dataclass(frozen=True)
class Shapes:
    """The arrays of a run's state, whatever the mesh.

    Attributes:
      model: the description of the parameters.
      copies: arrays like the parameters in the state: the parameters and the optimizer's.
    """

    model: ModelSpec[SpectralLM]
    copies: int

    @property
    def size(self) -> int:
        """The elements of all parameters together."""
        return self.model.size

    def local_bytes(self, mesh_shape: dict[str, int]) -> int:
        """Return the bytes of the parameters on one device.

        Raises:
          ValueError: names a parameter that the mesh cannot divide.
        """
        return _local_bytes(self, tuple(mesh_shape.items()))


@functools.lru_cache
def _local_bytes(shapes: Shapes, mesh: tuple[tuple[str, int], ...]) -> int:
    return _FLOAT32 * shapes.model.local_size(dict(mesh))


def find_shapes(config: Config) -> Shapes:
    """Return the arrays of a run's state; no device is asked for anything."""
    spec = model_spec(config)
    opt_state = jax.eval_shape(make_optimizer(config.optimizer, spec.axes).init, spec.shapes)
    # By elements: an optimizer may keep one array beside some parameters and two beside others.
    elements = sum(leaf.size for leaf in jax.tree.leaves(opt_state))
    return Shapes(spec, 1 + elements // spec.size)


def memory_bound(config: Config, shapes: Shapes) -> int:
    """Return bytes that the training step needs on a device, whatever the compiler does.

    The arguments are there from start to end: state, the step's tokens, and the batches that wait.
    To them add what the step must keep by itself. With several micro-batches the running sum of the
    gradient (float32) lies beside what the forward pass keeps for the backward pass. With one, all
    gradients are there at once before the update, because clipping needs the norm of all (but not
    as float32, and not while the forward pass runs): the larger of both.

    Raises:
      ValueError: names an array that the mesh cannot divide.
    """
    data, sizes = config.data, mesh_sizes(config)
    local = shapes.local_bytes(sizes)
    sequences = data.accum_steps * (data.batch_size // (sizes["data"] * sizes["fsdp"]))
    tokens = sequences * (data.seq_len + 1) * find_tokenizer(config).dtype.itemsize
    arguments = shapes.copies * local + tokens * (1 + data.prefetch_steps)
    saved = saved_bytes(config)
    kept = local + saved if data.accum_steps > 1 else max(local // 2, saved)
    return arguments + kept


def saved_bytes(config: Config) -> int:
    """Return bytes that the forward pass must keep on a device for the backward pass.

    What JAX hands from one to the other, all of it activations: the layers run in a loop, and no
    compiler looks across the two loops. Each layer's input [B, T, D] lies whole on every tensor
    shard; of the others at best each has its part.
    """
    model, data, sizes = config.model, config.data, mesh_sizes(config)
    sequences = data.batch_size // (sizes["data"] * sizes["fsdp"])
    width = 2 if model.compute_dtype == "bfloat16" else _FLOAT32
    inputs = model.num_layers * data.seq_len * model.hidden_dim * width
    everything = _saved_by_a_sequence(model_spec(config), data.seq_len, config.optimizer.z_loss)
    return sequences * (inputs + max(0, everything - inputs) // sizes["tensor"])


@functools.lru_cache
def _saved_by_a_sequence(spec: ModelSpec[SpectralLM], seq_len: int, z_loss: float) -> int:
    """Return the bytes that one more sequence adds to what the backward pass gets, undivided."""

    def loss(params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BTV, _ = spec.bind(params)(tokens_BT[:, :-1])
        return loss_sums(logits_BTV, tokens_BT[:, 1:], z_loss)

    def kept(sequences: int) -> int:
        tokens_BT = jax.ShapeDtypeStruct((sequences, seq_len + 1), jnp.int32)
        backward = jax.eval_shape(
            lambda p, t: jax.vjp(lambda q: loss(q, t), p, has_aux=True)[1], spec.shapes, tokens_BT
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    return kept(2) - kept(1)


@dataclass(frozen=True)
class TimeBound:
    """What a step takes at the least by the roofline model, in two parts.

    Attributes:
      kernel_seconds: of the kernels.
      communication_seconds: of the collectives, were none hidden behind the kernels.
    """

    kernel_seconds: float
    communication_seconds: float

    def seconds(self, exposed: float) -> float:
        """Return the whole, if at least this share of the communication is exposed, in [0, 1].

        However well it hides, a step is no shorter than its communication: collectives run one
        after another.
        """
        together = self.kernel_seconds + exposed * self.communication_seconds
        return max(together, self.communication_seconds)


def time_bound(config: Config, shapes: Shapes, rates: Rates, per_host: int) -> TimeBound:
    """Return what a training step takes at the least by the roofline model.

    Its dense products at the peak of their type: the work of a step is the same on every mesh, and
    at best it is divided evenly. The update, whose kernels have no product in them: parameters,
    gradients and the optimizer's state read, all but the gradients written.
    """
    sizes = mesh_sizes(config)
    devices = math.prod(sizes.values())
    data, dtype = config.data, "bf16" if config.model.compute_dtype == "bfloat16" else "f32"
    tokens = data.batch_size * data.accum_steps * data.seq_len
    peak = rates.flops.get(dtype, rates.flops["f32"])
    products = tokens * dense_flops(model_spec(config), config.model.remat) / devices / peak
    update = (2 * shapes.copies + 1) * shapes.local_bytes(sizes) / rates.memory
    needed = lower_bound(config, per_host, shapes.size)
    traffic = sum(traffic_seconds(t, sizes, rates, per_host) for t in needed)
    return TimeBound(products + update, traffic)


def traffic_seconds(traffic: Traffic, sizes: dict[str, int], rates: Rates, per_host: int) -> float:
    """Return what collectives along one mesh axis take, their fixed delays left out."""
    link = rates.inside
    if traffic.crosses_hosts:
        link = min(link, rates.between / rings_per_host(axis_groups(sizes, traffic.axes), per_host))
    return traffic.moved_bytes / link


def kernel_floor(measured: float, of: Config, other: Config, shapes: Shapes, rates: Rates) -> float:
    """Return what another candidate's kernels take at the least, from those of a compiled one.

    It is 0 where nothing follows: if something else is computed again, if the other one splits
    channels less, or if its micro-batches are larger. Else it follows from how the model counts.
    A kernel takes the longest of three times, and each of them falls at most as its share of the
    work does, so that more and smaller pieces take no less in all. Two things do become less, and
    are taken off: tensor divides the reading of the weights, and a larger fsdp x tensor divides
    the update and the sum of the gradients.

    The compiler must have been free to do the same for both: one that is short of memory computes
    more again than it was told to.

    Args:
      measured: seconds of the kernels of `of`.
      of: the compiled candidate.
      other: the one to bound.
      shapes: of the state.
      rates: of the device.
    """
    sizes, others = mesh_sizes(of), mesh_sizes(other)
    micro = of.data.accum_steps
    covers = (
        of.model.remat == other.model.remat
        and others["tensor"] % sizes["tensor"] == 0
        and other.data.accum_steps >= micro
    )
    if not covers:
        return 0.0
    less = 0.0
    if others["tensor"] > sizes["tensor"]:
        width = 2 if of.model.compute_dtype == "bfloat16" else _FLOAT32
        less += micro * _WEIGHT_PASSES * shapes.size / sizes["tensor"] * width
    divided = max(0, shapes.local_bytes(sizes) - shapes.local_bytes(others))
    less += (micro * _SUM_PASSES + 2 * shapes.copies + _NORM_PASSES) * divided
    return max(0.0, measured - less / rates.memory)
