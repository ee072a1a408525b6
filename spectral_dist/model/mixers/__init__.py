"""The mixers: what moves information along time. One table, one file for each.

To add one: a module here with a class like `Mixer`, a line in `MIXERS`, and its section of settings
with their rules (settings/mixers.py, which loads no JAX). FLOPs, MFU, the dry run, the bounds of
the search, training, generation and evaluation follow from what the class declares.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.model.mixers.attention import FullAttention
from spectral_dist.model.mixers.spectral import SpectralMixer
from spectral_dist.model.mixers.window import WindowAttention
from spectral_dist.settings import ModelConfig


class Mixer(Protocol):
    """What a layer asks of its mixer, an nnx.Module built from (model, settings, rngs).

    It declares its parameters by `layers.parameter`. Products with matrices that have the logical
    axis "embed" are counted from there.
    """

    def flops(self, seq_len: int) -> float:
        """Return forward FLOPs for a token of a sequence of T, beside those matrices."""
        ...

    def init_state(self, batch: int, dtype: jnp.dtype) -> Any:
        """Return the state before the first token, or None where it would grow with the text."""
        ...

    def __call__(self, x: jax.Array, state: Any, /) -> tuple[jax.Array, Any]:
        """Mix x [B, T, D] along time: the result, and the state after the last token.

        A state of None is the start of a sequence. In pieces with the state carried, or at once:
        the results agree.
        """
        ...


# The names are those of the sections in `MixersConfig`. Called with the model's settings, the
# mixer's own section, and the random streams of the initial values.
MIXERS: dict[str, Callable[[ModelConfig, Any, nnx.Rngs], Mixer]] = {
    "spectral": SpectralMixer,
    "window": WindowAttention,
    "attention": FullAttention,
}
