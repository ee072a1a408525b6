"""How much arithmetic the model is: the figure that model FLOPs utilisation (MFU) stands on.

Nothing is written down twice: the matrices are counted from the description of the parameters, and
every mixer declares what it costs beside them. Read `flops_per_token` first.
"""

from spectral_dist.model.lm import SpectralLM
from spectral_dist.params import ModelSpec


def flops_per_token(spec: ModelSpec[SpectralLM], seq_len: int) -> float:
    """Return FLOPs for a token of training, forward and backward, nothing computed twice.

    6 for each element of a matrix that the token is multiplied by (2 forward, 4 backward), and 3
    times what the mixers do forward beside that.

    Args:
      spec: the model.
      seq_len: T, which full attention depends on.
    """
    return 6.0 * spec.matrix_size + 3 * spec.bind(spec.shapes).mixing_flops(seq_len)


def dense_flops(spec: ModelSpec[SpectralLM], remat: str) -> int:
    """Return FLOPs of the products with matrices for a token, those done again included.

    6 for each element. Where activation checkpointing keeps nothing, 2 more for those of the
    layers, but for the MLP's last product: its result feeds no derivative.

    Args:
      spec: the model.
      remat: what the backward pass computes again.
    """
    total = 6 * spec.matrix_size
    if remat != "full":
        return total
    for parameter in spec.parameters:
        # Only where a loop keeps the two passes apart: for a single block, which is no loop, the
        # compiler may find that both compute the same.
        in_a_loop = parameter.axes[0] == "layers" and parameter.shape[0] > 1
        if in_a_loop and parameter.is_matrix and parameter.axes[-2:] != ("mlp", "embed"):
            total += 2 * parameter.size
    return total
