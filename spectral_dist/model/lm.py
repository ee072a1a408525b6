"""The language model: bytes in, logits of the next byte out.

Layers repeat a pattern of mixers. Whole repeats are stacked and run by one scan, so that compile
time does not grow with depth; what is left of the pattern follows as single layers. Knows nothing
of data, loss or training. Read `SpectralLM.__call__` first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.array_typing import Array, Float, Float32, Integer
from spectral_dist.mesh import Axes, constrain
from spectral_dist.model.attention import Attention
from spectral_dist.model.layers import RMSNorm, SwiGLU, normal, parameter
from spectral_dist.model.spectral import SpectralMixer
from spectral_dist.settings import Config

VOCAB_SIZE = 256

Params = dict[str, Any]
State = Any
LayerCall = Callable[[jax.Array, State], tuple[jax.Array, State]]

REMAT_POLICIES = {
    # The dense products are dear to compute again; the mixers' own, batched ones are cheap.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def make_checkpoint(remat: str, *, prevent_cse: bool) -> Callable[[LayerCall], LayerCall]:
    """Return what makes the backward pass of a layer compute again what `remat` says."""
    if remat == "none":
        return lambda layer: layer
    policy = REMAT_POLICIES[remat]
    return lambda layer: jax.checkpoint(
        lambda x_BTD, state: layer(x_BTD, state), policy=policy, prevent_cse=prevent_cse
    )


def make_mixer(name: str, config: Config, rngs: nnx.Rngs) -> SpectralMixer | Attention:
    """Build the mixer that a name in the layer pattern stands for."""
    if name == "spectral":
        return SpectralMixer(config, rngs)
    window = config.mixers.window.window if name == "window" else None
    return Attention(config.model, window, rngs)


class Layer(nnx.Module):
    """A mixer along time, then a SwiGLU at every position, each on the normalised residual."""

    def __init__(self, mixer: str, config: Config, rngs: nnx.Rngs) -> None:
        """Declare the two norms, the mixer and the MLP."""
        model = config.model
        assert model.mlp_dim is not None
        self.mixer_norm = RMSNorm(model.hidden_dim, "norm", rngs)
        self.mixer = make_mixer(mixer, config, rngs)
        self.mlp_norm = RMSNorm(model.hidden_dim, "norm", rngs)
        self.mlp = SwiGLU(model.hidden_dim, model.mlp_dim, model.num_layers, rngs)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], state: State
    ) -> tuple[Float[Array, "B T D"], State]:
        """Return the residual stream after this layer, and the mixer's new state."""
        mixed_BTD, state = self.mixer(self.mixer_norm(x_BTD), state)
        x_BTD = constrain(x_BTD + mixed_BTD, "batch", "time", "width")
        x_BTD = constrain(x_BTD + self.mlp(self.mlp_norm(x_BTD)), "batch", "time", "width")
        return x_BTD, state


class Group(nnx.Module):
    """Consecutive layers: one repeat of the pattern, or what is left of it at the end."""

    def __init__(
        self, mixers: tuple[str, ...], config: Config, rngs: nnx.Rngs, *, scanned: bool
    ) -> None:
        """Declare the layers, named by their place in the group.

        Args:
          mixers: of the layers.
          config: the model's.
          rngs: of the initial values.
          scanned: whether a scan runs the group; then nothing need keep the backward pass from
            being merged with the forward pass, which the scan's two loops keep apart.
        """
        self.checkpoint = make_checkpoint(config.model.remat, prevent_cse=not scanned)
        self.names = tuple(f"layer_{i}" for i in range(len(mixers)))
        for name, mixer in zip(self.names, mixers, strict=True):
            setattr(self, name, Layer(mixer, config, rngs))

    def __call__(
        self, x_BTD: Float[Array, "B T D"], state: dict[str, State] | None
    ) -> tuple[Float[Array, "B T D"], dict[str, State]]:
        """Run the layers in order."""
        after = {}
        for name in self.names:
            before = None if state is None else state[name]
            x_BTD, after[name] = self.checkpoint(getattr(self, name))(x_BTD, before)
        return x_BTD, after

    def init_state(self, batch: int, dtype: jnp.dtype) -> dict[str, State]:
        """Return each mixer's state before the first token."""
        return {name: getattr(self, name).mixer.init_state(batch, dtype) for name in self.names}


class SpectralLM(nnx.Module):
    """Embedding, layers, norm, head.

    Sharding: activations [B, T, D] over (data, fsdp) | None | None; parameters as they declare.
    """

    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        """Declare embed [V, D], the stacked repeats, the rest, the final norm and head [D, V]."""
        model = config.model
        dim, pattern = model.hidden_dim, model.pattern
        self.dtype = jnp.dtype(model.compute_dtype)
        self.repeats = model.num_layers // len(pattern)
        rest = pattern[: model.num_layers % len(pattern)]
        self.embed = parameter(rngs, (VOCAB_SIZE, dim), ("vocab", "embed"), normal(1.0))
        if self.repeats:
            make = nnx.vmap(
                lambda r: Group(pattern, config, r, scanned=True), in_axes=0, out_axes=0
            )
            self.groups = make(rngs.split(self.repeats))
        if rest:
            self.rest = Group(rest, config, rngs, scanned=False)
        self.norm = RMSNorm(dim, "norm", rngs)
        # Small, so that the first loss is that of even odds: ln 256 (Yang et al. 2022,
        # arXiv:2203.03466, table 8: the readout starts at 1 / width).
        self.head = parameter(rngs, (dim, VOCAB_SIZE), ("embed", "vocab"), normal(1.0 / dim))

    def __call__(
        self, tokens_BT: Integer[Array, "B T"], state: State = None
    ) -> tuple[Float32[Array, "B T V"], State]:
        """Return the logits of each next byte, and the state after the last one.

        Args:
          tokens_BT: bytes.
          state: what `init_state` or an earlier call returned; None at the start of a sequence.
        """
        # float32 means float32: some devices would otherwise multiply in a shorter format.
        precision = "highest" if self.dtype == jnp.float32 else None
        with jax.default_matmul_precision(precision):
            return self._forward(tokens_BT, state)

    def _forward(self, tokens_BT: jax.Array, state: State) -> tuple[jax.Array, State]:
        # A product with one-hot rows, not a gather: with 256 bytes it costs next to nothing, it is
        # partitioned like any product, and its transpose is a product too, not a scatter.
        one_hot = jax.nn.one_hot(tokens_BT, VOCAB_SIZE, dtype=self.dtype)
        x_BTD = constrain(one_hot @ self.embed[...].astype(self.dtype), "batch", "time", "width")
        after: dict[str, State] = {}
        if self.repeats:
            definition, stacked = nnx.split(self.groups)

            def group(x: jax.Array, item: tuple[Any, State]) -> tuple[jax.Array, State]:
                return nnx.merge(definition, item[0])(x, item[1])

            before = None if state is None else state["groups"]
            x_BTD, after["groups"] = jax.lax.scan(group, x_BTD, (stacked, before))
        if hasattr(self, "rest"):
            x_BTD, after["rest"] = self.rest(x_BTD, None if state is None else state["rest"])
        normed = self.norm(x_BTD)
        logits_BTV = jnp.einsum(
            "btd,dv->btv",
            normed,
            self.head[...].astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits_BTV, after

    def init_state(self, batch: int) -> State:
        """Return the state before the first token, for generation: constant in size.

        Raises:
          ValueError: if a layer is full attention, whose state would grow with the text.
        """
        state: dict[str, State] = {}
        if self.repeats:
            first = nnx.merge(*_first_of_stack(self.groups))
            one = first.init_state(batch, self.dtype)
            state["groups"] = jax.tree.map(
                lambda s: jnp.broadcast_to(s[None], (self.repeats, *s.shape)), one
            )
        if hasattr(self, "rest"):
            state["rest"] = self.rest.init_state(batch, self.dtype)
        if any(mixer is None for part in state.values() for mixer in part.values()):
            raise ValueError(
                "layer_pattern: has full attention, whose state grows with the text;"
                " generation needs spectral and window layers only"
            )
        return state


def _first_of_stack(stack: nnx.Module) -> tuple[Any, Any]:
    definition, stacked = nnx.split(stack)
    return definition, jax.tree.map(lambda p: p[0], stacked)


def define(config: Config) -> nnx.GraphDef[SpectralLM]:
    """Return the model's definition: `nnx.merge(definition, nnx.State(params))` is the model."""
    return nnx.split(_abstract(config), nnx.Param)[0]


def init_params(config: Config, key: jax.Array) -> Params:
    """Return the initial parameters, a plain nested dict of float32 arrays.

    Their values depend on (config, key) alone, whatever the mesh.
    """
    _, state = nnx.split(SpectralLM(config, nnx.Rngs(params=key)), nnx.Param)
    return nnx.to_pure_dict(state)


def _abstract(config: Config) -> SpectralLM:
    return nnx.eval_shape(lambda: SpectralLM(config, nnx.Rngs(params=jax.random.key(0))))


def logical_axes(config: Config) -> Params:
    """Return the logical axes of every parameter, in a dict like the parameters'."""
    _, state = nnx.split(_abstract(config), nnx.Param)

    def axes(variable: nnx.Variable[Any]) -> Axes:
        declared: Axes = variable.get_metadata("axes")
        stacked = len(variable.get_value().shape) > len(declared)
        return ("layers", *declared) if stacked else declared

    return nnx.to_pure_dict(
        jax.tree.map(axes, state, is_leaf=lambda node: isinstance(node, nnx.Variable))
    )
