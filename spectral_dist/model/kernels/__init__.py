"""GPU kernels of the mixers, in Pallas on Triton; each computes what its mixer's XLA form does."""

from typing import Any

import jax.numpy as jnp

from spectral_dist.mesh import platform

# Below this length a block of queries, or a chunk, would be mostly padding.
_SHORTEST = 64


def kernels_run(time: int) -> bool:
    """Return whether kernels compute T tokens on the platform that is compiled for."""
    return platform() == "gpu" and time >= _SHORTEST


def declared(flops: int, dtype: Any) -> dict[str, str]:
    """Return a kernel's metadata, which the dry run counts FLOPs by (planning/hlo/costs.py).

    Args:
      flops: of its matrix products, one call.
      dtype: of their operands.
    """
    return {"flops": str(flops), "operands": "bf16" if dtype == jnp.bfloat16 else "f32"}
