"""The sequence mixers (state space, attention): one table, one file for each.

To add one: a module here with a class like `Mixer`, a line in `MIXERS`, and its section of settings
(settings/mixers.py, which loads no JAX). FLOPs, MFU, the dry run, the bounds of the search,
training, generation and evaluation follow from what the class declares.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.model.mixers.attention import FullAttention
from spectral_dist.model.mixers.spectral import SpectralMixer
from spectral_dist.model.mixers.ssd import SSDMixer
from spectral_dist.model.mixers.window import WindowAttention
from spectral_dist.settings import ModelConfig


class Mixer(Protocol):
    """The interface of a mixer, an nnx.Module built from (model, settings, rngs).

    It declares its parameters with `layers.parameter`. FLOPs of matrices with the logical axis
    "embed" are counted from these declarations.
    """

    def flops(self, seq_len: int) -> float:
        """Return forward FLOPs for a token of a sequence of T tokens, without those matrices."""
        ...

    def init_state(self, batch: int, dtype: jnp.dtype) -> Any:
        """Return the state before the first token, or None if it would grow with the sequence."""
        ...

    def __call__(
        self, x: jax.Array, state: Any, reach: jax.Array | None, /
    ) -> tuple[jax.Array, Any]:
        """Mix x [B, T, D] along time; return the result and the state after the last token.

        reach, int32 [B, T], says how many tokens before its own each one sees, of this call and of
        the state (documents.py); None if all.

        A state of None is the start of a sequence. A sequence in pieces, with the state carried
        from each to the next, gives the same result as the whole.
        """
        ...


# The names are those of the sections in `MixersConfig`. Each class is called with the model's
# settings, its own section, and the random streams of the initial values.
MIXERS: dict[str, Callable[[ModelConfig, Any, nnx.Rngs], Mixer]] = {
    "spectral": SpectralMixer,
    "window": WindowAttention,
    "attention": FullAttention,
    "ssd": SSDMixer,
}
