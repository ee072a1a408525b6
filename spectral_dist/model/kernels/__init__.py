"""GPU kernels of the mixers, in Pallas on Triton; each computes the same as its mixer's XLA form."""

from spectral_dist.mesh import platform

# Below this length a block of queries, or a chunk, would be mostly padding.
_SHORTEST = 64


def kernels_run(time: int) -> bool:
    """Return whether kernels compute a sequence of T tokens on the platform that is compiled for."""
    return platform() == "gpu" and time >= _SHORTEST
