"""Training steps of other projects' models, to time ours beside; the table `PEERS`.

A peer is a module with `make_step`. It loads its libraries when it is loaded itself, which happens
in a process of its own (process.py). To add one: a module and a line here. Read `Shape`, then
`PEERS`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# One update of the parameters, on tokens [B, T + 1], uint8. Returns the loss, in nats a token.
Step = Callable[[np.ndarray], float]

# Of bytes.
VOCABULARY = 256
# The same for every peer: AdamW at its usual betas, after clipping the gradient's norm.
LEARNING_RATE, CLIP_NORM, WEIGHT_DECAY = 1e-3, 1.0, 0.1
HEAD_DIM = 64
# How far a peer's parameters may be from ours.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Shape:
    """What all models of one comparison have in common.

    Attributes:
      seq_len: T, in tokens.
      batch_size: sequences of a step.
      hidden_dim: width of the residual stream.
      num_layers: depth, in layers of a mixer and an MLP.
      parameters: of our model; the others come within `TOLERANCE` of it.
      dtype: "float32", or "bfloat16" for the operands of products while parameters stay float32.
    """

    seq_len: int
    batch_size: int
    hidden_dim: int
    num_layers: int
    parameters: int
    dtype: str = "float32"


# name -> (module, the distributions that it needs beside ours)
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "llama": ("benchmarks.peers.llama", ("torch", "transformers")),
    "mamba2": ("benchmarks.peers.mamba2", ("torch", "transformers")),
    "flax": ("benchmarks.peers.flax_transformer", ()),
}


def missing_libraries(name: str) -> list[str]:
    """Return the libraries that a peer needs and that are not installed here."""
    return [module for module in PEERS[name][1] if importlib.util.find_spec(module) is None]


def check_peers(names: list[str]) -> None:
    """Check that peers are known and their libraries installed.

    Raises:
      ValueError: names the peer, and what to install.
    """
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peers={name}: must be among {', '.join(PEERS)}")
        if missing := missing_libraries(name):
            raise ValueError(
                f"peers={name}: needs {' and '.join(missing)}, not installed here;"
                " pip install -e '.[bench]' installs every peer's libraries"
            )


def fit(target: int, count: Callable[[int], int], multiple: int) -> int:
    """Return the size that brings a model nearest to a number of parameters.

    Args:
      target: parameters.
      count: parameters of the model by size; grows linearly with it.
      multiple: what the size is a multiple of; may come out as zero or less.
    """
    first, second = count(multiple), count(2 * multiple)
    return multiple * (1 + round((target - first) / (second - first)))
