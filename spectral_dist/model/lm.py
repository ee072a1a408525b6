"""The language model: tokens in, logits of the next token out; with activation checkpointing.

A block is a run of layers, one for each mixer of the layer pattern. All whole blocks are stacked
and run by one scan, so that compile time does not grow with depth. If num_layers is no multiple of
the pattern, a shorter block follows. Knows nothing of data, loss or training. Read
`SpectralLM.__call__` first.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.array_typing import Array, Float, Float32, Int32, Integer
from spectral_dist.mesh import constrain, platform, shards
from spectral_dist.model.documents import reach_of
from spectral_dist.model.embedding import embed_tokens, padded
from spectral_dist.model.layers import ResidualNorm, RMSNorm, SwiGLU, normal, parameter
from spectral_dist.model.mixers import MIXERS
from spectral_dist.model.ngrams import NGramEmbedding
from spectral_dist.params import ModelSpec, make_spec
from spectral_dist.settings import Config, MixersConfig, ModelConfig

State = Any  # of a layer: what its mixer's init_state returns; of blocks and the model: dicts of it
Reach = Int32[Array, "B T"] | None  # how many tokens before its own each sees; None: all
LayerCall = Callable[[jax.Array, State, Reach], tuple[jax.Array, State]]

# On a CPU a loop over blocks costs copies of their parameters and gradients. Compile time grows
# with the number of layers, so that a deep model keeps the loop.
_UNROLLED_LAYERS = 12
_NEVER = -1e30  # a logit without probability; finite, so that no gradient becomes NaN

# Level 1 on an L4 needs 26.0 GiB of temporaries with "none" and 7.7 with "dots" (docs/log.md).
REMAT_POLICIES = {
    # Keep the dense products, which are expensive to compute again; the batched ones inside the
    # mixers are cheap.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def activation_checkpointing(remat: str, *, prevent_cse: bool) -> Callable[[LayerCall], LayerCall]:
    """Return activation checkpointing of a layer: the backward pass recomputes activations.

    Args:
      remat: none, dots (keep the dense products) or full (keep only the layer's input).
      prevent_cse: whether to keep the compiler from merging the recomputation with the forward
        pass, which would keep the activations after all.
    """
    if remat == "none":
        return lambda layer: layer
    policy = REMAT_POLICIES[remat]
    return lambda layer: jax.checkpoint(
        lambda x_BTD, state, reach_BT: layer(x_BTD, state, reach_BT),
        policy=policy,
        prevent_cse=prevent_cse,
    )


class Layer(nnx.Module):
    """A layer: a mixer along time, then a SwiGLU at every position, both pre-norm and residual."""

    def __init__(
        self, mixer: str, model: ModelConfig, mixers: MixersConfig, rngs: nnx.Rngs
    ) -> None:
        """Declare the two norms, the mixer and the MLP."""
        assert model.mlp_dim is not None
        # Do not reorder, here and below: each parameter draws the next key of `rngs`, so another
        # order would give other initial values for the same seed.
        self.mixer_norm = ResidualNorm(model.hidden_dim, model.kernels, rngs)
        self.mixer = MIXERS[mixer](model, getattr(mixers, mixer), rngs)
        self.mlp_norm = ResidualNorm(model.hidden_dim, model.kernels, rngs)
        self.mlp = SwiGLU(model.hidden_dim, model.mlp_dim, model.num_layers, rngs)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], state: State, reach_BT: Reach
    ) -> tuple[Float[Array, "B T D"], State]:
        """Return the residual stream after this layer, and the mixer's new state."""
        # Each norm returns the residual stream too: on a GPU their gradients meet in one kernel.
        x_BTD, normed_BTD = self.mixer_norm(x_BTD)
        mixed_BTD, state = self.mixer(normed_BTD, state, reach_BT)
        x_BTD, normed_BTD = self.mlp_norm(x_BTD, mixed_BTD)
        return constrain(x_BTD + self.mlp(normed_BTD), "batch", "time", "width"), state


class Block(nnx.Module):
    """A block of layers: one for each mixer of the pattern, or of its beginning for the last."""

    def __init__(
        self,
        pattern: tuple[str, ...],
        model: ModelConfig,
        mixers: MixersConfig,
        rngs: nnx.Rngs,
    ) -> None:
        """Declare the layers, named by their place in the block.

        Args:
          pattern: the name of each layer's mixer.
          model: the settings.
          mixers: the settings of each mixer.
          rngs: of the initial values.
        """
        self.remat, self.pattern = model.remat, pattern
        self.names = tuple(f"layer_{i}" for i in range(len(pattern)))
        for name, mixer in zip(self.names, pattern, strict=True):
            setattr(self, name, Layer(mixer, model, mixers, rngs))

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        state: dict[str, State] | None,
        reach_BT: Reach,
        *,
        in_loop: bool,
    ) -> tuple[Float[Array, "B T D"], dict[str, State]]:
        """Run the layers in order.

        Args:
          x_BTD: the residual stream.
          state: of each layer; None at the start of a sequence.
          reach_BT: how many tokens before its own each sees; None if all.
          in_loop: whether this is the body of a loop over blocks.
        """
        # The forward and backward loops of a scan are apart already; the barriers that prevent_cse
        # inserts would only keep the compiler from fusing.
        checkpoint = activation_checkpointing(self.remat, prevent_cse=not in_loop)
        after = {}
        for name in self.names:
            before = None if state is None else state[name]
            x_BTD, after[name] = checkpoint(getattr(self, name))(x_BTD, before, reach_BT)
        return x_BTD, after

    def init_state(self, batch: int, dtype: jnp.dtype) -> dict[str, State]:
        """Return each mixer's state before the first token."""
        return {name: getattr(self, name).mixer.init_state(batch, dtype) for name in self.names}

    def growing(self, dtype: jnp.dtype) -> set[str]:
        """Return the names of the mixers whose state grows with the sequence."""
        states = jax.eval_shape(lambda: self.init_state(1, dtype))
        return {
            mixer
            for name, mixer in zip(self.names, self.pattern, strict=True)
            if states[name] is None
        }

    def mixing_flops(self, seq_len: int) -> float:
        """Return the forward FLOPs of the mixers for a token, without those of matrices."""
        return float(sum(getattr(self, name).mixer.flops(seq_len) for name in self.names))


class SpectralLM(nnx.Module):
    """The language model: embedding, blocks of layers, norm, head.

    Sharding: activations [B, T, D] over (data, fsdp) | None | None; parameters as declared.
    """

    def __init__(
        self,
        model: ModelConfig,
        mixers: MixersConfig,
        vocab_size: int,
        document_end: int | None,
        rngs: nnx.Rngs,
    ) -> None:
        """Declare embed [V, D], the stacked blocks, the last block, the norm and head [D, V].

        V is vocab_size, filled up to a multiple of 128; no token and no logit has those rows.
        document_end: the token at which a document begins anew; None if none does.
        """
        dim, pattern = model.hidden_dim, model.pattern
        self.dtype = jnp.dtype(model.compute_dtype)
        self.vocab_size, self.document_end = vocab_size, document_end
        self.unroll, self.num_layers = model.unroll, model.num_layers
        self.num_blocks = model.num_layers // len(pattern)
        rest = pattern[: model.num_layers % len(pattern)]
        self.embed = parameter(rngs, (padded(vocab_size), dim), ("vocab", "embed"), normal(1.0))
        # Attribute names are parameter names, also in checkpoints: "groups" holds the stacked
        # blocks and "rest" the last one. Renamed, old checkpoints could not be read.
        if self.num_blocks:
            make = nnx.vmap(lambda r: Block(pattern, model, mixers, r), in_axes=0, out_axes=0)
            self.groups = make(rngs.split(self.num_blocks))
        if rest:
            self.rest = Block(rest, model, mixers, rngs)
        self.norm = RMSNorm(dim, "norm", rngs)
        # Small, so that the first loss is that of a uniform guess, ln V (Yang et al. 2022,
        # arXiv:2203.03466, table 8: the readout starts at 1 / width).
        shape = (dim, padded(vocab_size))
        self.head = parameter(rngs, shape, ("embed", "vocab"), normal(1.0 / dim))
        if model.ngrams:
            self.ngrams = NGramEmbedding(model.ngrams, model.ngram_rows, dim, rngs)

    def __call__(
        self, tokens_BT: Integer[Array, "B T"], state: State = None
    ) -> tuple[Float32[Array, "B T V"], State]:
        """Return the logits of each next token, and the state after the last one.

        Args:
          tokens_BT: each in [0, V).
          state: what `init_state` or an earlier call returned; None at the start of a sequence.

        Raises:
          ValueError: if the mesh divides time into shards that T is no multiple of.
        """
        hidden_BTD, state = self.hidden(tokens_BT, state)
        return self.logits(hidden_BTD), state

    def hidden(
        self, tokens_BT: Integer[Array, "B T"], state: State = None
    ) -> tuple[Float[Array, "B T D"], State]:
        """Return the normalised residual stream after the last layer; as `__call__` otherwise."""
        if tokens_BT.shape[1] % shards("time"):
            raise ValueError(
                f"tokens: {tokens_BT.shape[1]} of them cannot be divided into {shards('time')}"
                " shards of time; use a mesh without sequence_parallel"
            )
        with jax.default_matmul_precision(self._precision):
            return self._forward(tokens_BT, state)

    def logits(self, hidden_BTD: Float[Array, "B T D"]) -> Float32[Array, "B T V"]:
        """Return the logits of each next token from what `hidden` returned."""
        with jax.default_matmul_precision(self._precision):
            logits_BTV = jnp.einsum(
                "btd,dv->btv",
                hidden_BTD,
                self.head[...].astype(self.dtype),
                # The loss needs float32 logits, whatever the dtype of the operands.
                preferred_element_type=jnp.float32,
            )
        if self.vocab_size == logits_BTV.shape[-1]:
            return logits_BTV
        # The rows that fill the table up are no tokens: they have no probability.
        is_token = jnp.arange(logits_BTV.shape[-1]) < self.vocab_size
        return jnp.where(is_token[None, None], logits_BTV, _NEVER)

    @property
    def _precision(self) -> str | None:
        # compute_dtype float32 means float32: a GPU would otherwise multiply in TF32.
        return "highest" if self.dtype == jnp.float32 else None

    def _forward(self, tokens_BT: jax.Array, state: State) -> tuple[jax.Array, State]:
        x_BTD = embed_tokens(tokens_BT, self.embed[...], self.dtype)
        end = self.document_end
        reach_BT = None if end is None else reach_of(tokens_BT, end)
        after: dict[str, State] = {}
        if hasattr(self, "ngrams"):
            before = None if state is None else state["ngrams"]
            added_BTD, after["ngrams"] = self.ngrams(tokens_BT, before, reach_BT, self.dtype)
            x_BTD += added_BTD
        if self.num_blocks:
            definition, stacked = nnx.split(self.groups)

            unrolled = self._unrolled()

            def block(x: jax.Array, item: tuple[Any, State]) -> tuple[jax.Array, State]:
                return nnx.merge(definition, item[0])(x, item[1], reach_BT, in_loop=not unrolled)

            before = None if state is None else state["groups"]
            blocks = self.num_blocks if unrolled else 1
            x_BTD, after["groups"] = jax.lax.scan(block, x_BTD, (stacked, before), unroll=blocks)
        if hasattr(self, "rest"):
            before = None if state is None else state["rest"]
            x_BTD, after["rest"] = self.rest(x_BTD, before, reach_BT, in_loop=False)
        return self.norm(x_BTD), after

    def _unrolled(self) -> bool:
        """Return whether the blocks are compiled one after another instead of as one loop."""
        if self.unroll == "auto":
            return platform() == "cpu" and self.num_layers <= _UNROLLED_LAYERS
        return self.unroll == "all"

    def init_state(self, batch: int) -> State:
        """Return the state before the first token, for generation; its size is constant.

        Raises:
          ValueError: if the state of a mixer, such as full attention, grows with the sequence.
        """
        if self.growing:
            raise ValueError(
                f"layer_pattern: the state of {', '.join(sorted(self.growing))} grows with the"
                " text; generation needs mixers whose state does not, such as spectral and window"
            )
        state: dict[str, State] = {}
        if self.num_blocks:
            # The stacked blocks are alike, so the initial state of one serves all.
            first = nnx.merge(*_first_of_stack(self.groups))
            one = first.init_state(batch, self.dtype)
            state["groups"] = jax.tree.map(
                lambda s: jnp.broadcast_to(s[None], (self.num_blocks, *s.shape)), one
            )
        if hasattr(self, "rest"):
            state["rest"] = self.rest.init_state(batch, self.dtype)
        if hasattr(self, "ngrams"):
            state["ngrams"] = self.ngrams.init_state(batch)
        return state

    @property
    def growing(self) -> set[str]:
        """Names of the mixers whose state grows with the sequence: they cannot generate."""
        return {name for block, _ in self._blocks() for name in block.growing(self.dtype)}

    def mixing_flops(self, seq_len: int) -> float:
        """Return the forward FLOPs of all mixers for a token, without those of matrices."""
        return float(sum(n * block.mixing_flops(seq_len) for block, n in self._blocks()))

    def _blocks(self) -> list[tuple[Block, int]]:
        """Return each kind of block, and how many there are of it."""
        stacked = [(self.groups, self.num_blocks)] if self.num_blocks else []
        return stacked + ([(self.rest, 1)] if hasattr(self, "rest") else [])


def _first_of_stack(stack: nnx.Module) -> tuple[Any, Any]:
    definition, stacked = nnx.split(stack)
    return definition, jax.tree.map(lambda p: p[0], stacked)


def describe_model(
    config: Config, vocab_size: int, document_end: int | None = None
) -> ModelSpec[SpectralLM]:
    """Return the description of a language model, built once for the same settings.

    Args:
      config: the settings, resolved; those of the model and of the mixers matter, no other.
      vocab_size: V; tokens are in [0, V).
      document_end: the token that ends a document, which `document_mask` needs.
    """
    masks = config.model.document_mask
    assert document_end is not None or not masks
    return _describe(config.model, config.mixers, vocab_size, document_end if masks else None)


@functools.lru_cache
def _describe(
    model: ModelConfig, mixers: MixersConfig, vocab_size: int, document_end: int | None
) -> ModelSpec[SpectralLM]:
    return make_spec(lambda rngs: SpectralLM(model, mixers, vocab_size, document_end, rngs))
