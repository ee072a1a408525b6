"""A plain transformer in flax.nnx, as its documentation would write it: RoPE, causal, SwiGLU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.peers import (
    CLIP_NORM,
    HEAD_DIM,
    LEARNING_RATE,
    VOCABULARY,
    WEIGHT_DECAY,
    Shape,
    Step,
    fit,
)


def _rotate(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-np.arange(half) / half)
    angles = jnp.asarray(np.outer(np.arange(x.shape[1]), frequencies), jnp.float32)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


class _Layer(nnx.Module):
    def __init__(self, dim: int, mlp_dim: int, dtype: Any, rngs: nnx.Rngs) -> None:
        kv = max(1, dim // HEAD_DIM // 2) * HEAD_DIM

        def dense(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, rngs=rngs)

        self.query, self.key, self.value = dense(dim, dim), dense(dim, kv), dense(dim, kv)
        self.out = dense(dim, dim)
        self.gate, self.up, self.down = (
            dense(dim, mlp_dim),
            dense(dim, mlp_dim),
            dense(mlp_dim, dim),
        )
        self.attention_norm = nnx.RMSNorm(dim, dtype=dtype, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = self.attention_norm(x)
        query, key, value = (
            project(normed).reshape(*x.shape[:2], -1, HEAD_DIM)
            for project in (self.query, self.key, self.value)
        )
        # Flash attention where the library has it: its XLA form keeps all scores in memory.
        flash = "cudnn" if _on_gpu() and value.dtype != jnp.float32 else None
        mixed = jax.nn.dot_product_attention(
            _rotate(query), _rotate(key), value, is_causal=True, implementation=flash
        )
        x = x + self.out(mixed.reshape(x.shape))
        normed = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed))


class _Transformer(nnx.Module):
    def __init__(self, shape: Shape, mlp_dim: int, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(shape.dtype)
        self.embed = nnx.Embed(VOCABULARY, shape.hidden_dim, dtype=dtype, rngs=rngs)
        layers = [_Layer(shape.hidden_dim, mlp_dim, dtype, rngs) for _ in range(shape.num_layers)]
        self.layers = nnx.List(layers)
        self.norm = nnx.RMSNorm(shape.hidden_dim, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(shape.hidden_dim, VOCABULARY, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def _parameters(model: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def make_step(shape: Shape) -> tuple[int, Step]:
    """Return the number of parameters, and the training step."""

    def count(mlp_dim: int) -> int:
        return _parameters(nnx.eval_shape(lambda: _Transformer(shape, mlp_dim, nnx.Rngs(0))))

    model = _Transformer(shape, fit(shape.parameters, count, multiple=8), nnx.Rngs(0))
    definition, params = nnx.split(model)
    adamw = optax.adamw(LEARNING_RATE, b2=0.95, weight_decay=WEIGHT_DECAY)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP_NORM), adamw)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits = nnx.merge(definition, params)(tokens[:, :-1])
        logits = logits.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def update(state: tuple[Any, Any], tokens: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        value, grads = jax.value_and_grad(loss)(state[0], tokens)
        updates, opt_state = optimizer.update(grads, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), value

    compiled = jax.jit(update, donate_argnums=0)
    state: Any = (params, optimizer.init(params))

    def step(tokens: np.ndarray) -> float:
        nonlocal state
        state, value = compiled(state, tokens.astype(np.int32))
        jax.block_until_ready(state)  # a call returns before its step is done
        return float(value)

    return _parameters(model), step
