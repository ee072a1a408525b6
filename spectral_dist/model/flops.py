"""Model FLOPs for each token, the basis of model FLOPs utilisation (MFU).

No formula is written twice: matrices are counted from the description of the parameters, and every
mixer declares its own FLOPs beside them. Read `flops_per_token` first.
"""

from spectral_dist.model.lm import SpectralLM
from spectral_dist.params import ModelSpec


def flops_per_token(spec: ModelSpec[SpectralLM], seq_len: int) -> float:
    """Return the model FLOPs of training for a token: forward and backward, without recomputation.

    Args:
      spec: the model.
      seq_len: T, which full attention depends on.
    """
    # 6 for each element of a matrix: a product costs 2 forward, and backward 2 for the gradient of
    # the input and 2 for that of the matrix. The mixers likewise: backward is twice forward.
    return 6.0 * spec.matrix_size + 3 * spec.bind(spec.shapes).mixing_flops(seq_len)


def dense_flops(spec: ModelSpec[SpectralLM], remat: str) -> int:
    """Return FLOPs of the products with matrices for a token, including recomputation.

    Args:
      spec: the model.
      remat: the setting of activation checkpointing: none, dots or full.
    """
    # "dots" keeps the results of exactly these products, so only "full" computes them again: 2 more
    # for each element.
    total = 6 * spec.matrix_size
    if remat != "full":
        return total
    for parameter in spec.parameters:
        # Only in a scan over several blocks, whose two loops keep the passes apart. In a single
        # block the compiler may notice that both passes compute the same, and do it once.
        in_a_loop = parameter.axes[0] == "layers" and parameter.shape[0] > 1
        # Not the last product of the MLP (mlp, embed): no derivative needs its result.
        if in_a_loop and parameter.is_matrix and parameter.axes[-2:] != ("mlp", "embed"):
            total += 2 * parameter.size
    return total
