"""GPU kernels of the mixers, in Pallas on Triton; each computes what its mixer's XLA form does."""

from spectral_dist.mesh import platform

# Below this length a block of queries, or a chunk, would be mostly padding.
_SHORTEST = 64


def kernels_run(time: int) -> bool:
    """Return whether kernels compute T tokens on the platform that is compiled for."""
    return platform() == "gpu" and time >= _SHORTEST
