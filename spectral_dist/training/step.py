"""The training step: gradient accumulation, the optimizer's update, and skipped steps.

One function, jitted once, its state donated. It also owns the all-reduce of the gradient over
`data`. Activation checkpointing is in model/lm.py (`remat`). The same function is compiled for the
attached devices and, in a dry run, for a described cluster. Read `make_train_step` first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spectral_dist.array_typing import Array, Integer
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.mesh import RULES, constrain_like, sharding
from spectral_dist.params import Params
from spectral_dist.settings import Config
from spectral_dist.training.compiler import compiler_options
from spectral_dist.training.loss import loss_sums, token_cross_entropy
from spectral_dist.training.optimizers import make_optimizer
from spectral_dist.training.schedule import learning_rate
from spectral_dist.training.state import TrainState, abstract_state, model_spec

Metrics = dict[str, jax.Array]
CountBytes = Callable[[jax.Array], jax.Array]


def batch_sharding(config: Config, mesh: Mesh) -> NamedSharding:
    """Return the sharding of the tokens of a step, [A, B, T + 1]: sequences over data, fsdp."""
    # Over fsdp too: that mesh axis divides the batch as data does, and the parameters as well.
    data = config.data
    shape = (data.accum_steps, data.batch_size, data.seq_len + 1)
    return sharding(mesh, "the batch", ("layers", "batch", "tokens"), shape)


def make_train_step(config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """Return train_step(state, tokens_ABT) -> (state, metrics).

    tokens_ABT: the tokenizer's dtype, [A, B, T + 1], placed by `batch_sharding`. Metrics, float32
    scalars: loss (nats per token), bytes (that the targets stand for), grad_norm (before clipping),
    learning_rate, skipped (so far), bad_in_row.

    Sharding: the state as `abstract_state` says; the gradient is all-reduced over data once a step,
    after the accumulation. Trace it with the mesh in use (`jax.set_mesh`).
    """
    optimizer = make_optimizer(config.optimizer, model_spec(config).axes)
    schedule = learning_rate(config)
    accumulate = make_accumulate(config, mesh)
    count_bytes = make_count_bytes(find_tokenizer(config).token_bytes)

    def train_step(
        state: TrainState, tokens_ABT: Integer[Array, "A B T1"]
    ) -> tuple[TrainState, Metrics]:
        loss, grads = accumulate(state.params, tokens_ABT)
        norm = optax.tree.norm(grads)
        # Optax mixes its integer counts with floats; our own arithmetic also holds under "strict".
        with jax.numpy_dtype_promotion("standard"):
            rate = schedule(state.step)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        # The rate is applied here and not by optax, so that a skipped step does not delay the
        # schedule and a resumed run may change it.
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        # Decided on the device: the host would have to wait for the loss at every step. The new
        # params are checked too, since a finite gradient may still overflow in the update.
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(params))
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        bad_in_row = jnp.where(good, 0, state.bad_in_row + 1)
        skipped = state.skipped + jnp.where(good, 0, 1)
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        metrics |= {"bytes": count_bytes(tokens_ABT[:, :, 1:])}
        metrics |= {"skipped": skipped, "bad_in_row": bad_in_row}
        metrics = {name: value.astype(jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, params, opt_state, skipped, bad_in_row), metrics

    at_state = jax.tree.map(lambda s: s.sharding, abstract_state(config, mesh))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        train_step,
        in_shardings=(at_state, batch_sharding(config, mesh)),
        out_shardings=(at_state, everywhere),
        donate_argnums=0,  # the new state takes the old one's memory
        compiler_options=compiler_options(mesh),
    )


def make_accumulate(
    config: Config, mesh: Mesh
) -> Callable[[Params, jax.Array], tuple[jax.Array, Params]]:
    """Return gradient accumulation: (params, tokens_ABT) -> mean loss in nats per token, gradient.

    One running sum in float32 over the micro-batches, divided by the number of tokens at the end:
    the gradient of one batch of A B sequences, in the memory of B.
    """
    spec = model_spec(config)
    at_params = jax.tree.map(lambda s: s.spec, spec.shardings(mesh))

    def objective(params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens_BT = tokens_BT.astype(jnp.int32)
        return loss_sums(spec.bind(params), tokens_BT, config.optimizer.z_loss)

    def one(params: Params, tokens_BT: jax.Array) -> Any:
        (_, loss), grads = jax.value_and_grad(objective, has_aux=True)(params, tokens_BT)
        count = jnp.float32(tokens_BT.shape[0] * (tokens_BT.shape[1] - 1))
        # Without this constraint the compiler may replicate the carry of a scan on every device.
        return loss, count, constrain_like(grads, at_params)

    def sums(params: Params, tokens_ABT: jax.Array) -> Any:
        if tokens_ABT.shape[0] == 1:
            return one(params, tokens_ABT[0])

        def add(total: Any, tokens_BT: jax.Array) -> tuple[Any, None]:
            loss, count, grads = jax.tree.map(jnp.add, total, one(params, tokens_BT))
            return (loss, count, constrain_like(grads, at_params)), None

        zeros = constrain_like(jax.tree.map(jnp.zeros_like, params), at_params)
        start = (jnp.float32(0), jnp.float32(0), zeros)
        return jax.lax.scan(add, start, tokens_ABT)[0]

    # Manual over the mesh axis `data`, automatic over the others: left to itself, the compiler
    # all-reduces over `data` inside the layer loop of every micro-batch instead of once a step.
    if mesh.shape["data"] > 1:  # XLA's partitioner rejects a sum over a manual mesh axis of size 1
        sums = jax.shard_map(
            lambda params, tokens_ABT, sums=sums: jax.lax.psum(sums(params, tokens_ABT), "data"),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(None, "data")),
            out_specs=PartitionSpec(),
            axis_names={"data"},
            # With it JAX would sum the gradient over `data` itself, in every micro-batch.
            check_vma=False,
        )

    def accumulate(params: Params, tokens_ABT: jax.Array) -> tuple[jax.Array, Params]:
        loss, count, grads = sums(params, tokens_ABT)
        return loss / count, jax.tree.map(lambda g: g / count, grads)

    return accumulate


def make_count_bytes(token_bytes: np.ndarray) -> CountBytes:
    """Return count_bytes(targets) -> how many bytes of text they stand for, a float32 scalar.

    Args:
      token_bytes: bytes of each token, integers [V].
    """
    # The byte tokenizer, say: then it is a constant of the compiled program, without a lookup.
    if (token_bytes == token_bytes[0]).all():
        return lambda targets: jnp.float32(targets.size * int(token_bytes[0]))
    bytes_V = np.asarray(token_bytes, np.int32)
    return lambda targets: jnp.sum(jnp.take(bytes_V, targets), dtype=jnp.float32)


def make_eval_step(config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the evaluation step: (params, tokens_BT, targets) -> loss of the last targets.

    The result is the sum for each sequence, in nats, [B] float32. tokens_BT: the tokenizer's dtype,
    [B, T + 1], sequences over data and fsdp; any T, each length is compiled once.
    """
    spec = model_spec(config)

    def eval_step(params: Params, tokens_BT: jax.Array, targets: int) -> jax.Array:
        tokens_BT = tokens_BT.astype(jnp.int32)
        model = spec.bind(params)
        hidden_BTD, _ = model.hidden(tokens_BT[:, :-1])
        # The tokens before the last `targets` are context only.
        loss_BT, _ = token_cross_entropy(model, hidden_BTD[:, -targets:], tokens_BT[:, -targets:])
        return jnp.sum(loss_BT, axis=1)

    sequences = NamedSharding(mesh, PartitionSpec(RULES["batch"]))
    return jax.jit(
        eval_step,
        static_argnums=2,
        in_shardings=(spec.shardings(mesh), sequences),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(mesh),
    )
