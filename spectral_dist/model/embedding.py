"""The embedding: from tokens to vectors, with the table's rows divided over `tensor`.

A small vocabulary is looked up by a product with one-hot vectors, a large one by a gather on each
device's own rows. Read `embed_tokens`.
"""

import jax
import jax.numpy as jnp

from spectral_dist.array_typing import Array, Float, Int
from spectral_dist.mesh import constrain, local, mesh_axes

# Rows are a multiple of this: every mesh divides them, and matrix units take whole tiles.
ROWS = 128
# Up to so many rows the one-hot product is as fast: forward and backward of 65,536 tokens, D = 512,
# on an H200, 0.19 ms and 0.26 for the gather at 256 rows, 0.33 and 0.32 at 512, 0.41 and 0.21 at
# 1,024. The gradient of a gather adds up in memory, where many positions meet in few rows.
_ONE_HOT = 512


def padded(vocab_size: int) -> int:
    """Return the rows of a table for so many tokens: the next multiple of 128."""
    return -(-vocab_size // ROWS) * ROWS


def embed_tokens(
    tokens_BT: Int[Array, "B T"], table_VD: Float[Array, "V D"], dtype: jnp.dtype
) -> Float[Array, "B T D"]:
    """Return each token's row of the table, in `dtype`.

    Sharding: tokens over batch and time, the table's rows over tensor (its columns are gathered
    over fsdp, as any matrix is), the result over batch and time.
    """
    rows = table_VD.shape[0]
    if rows <= _ONE_HOT:
        one_hot = jax.nn.one_hot(tokens_BT, rows, dtype=dtype)
        return constrain(one_hot @ table_VD.astype(dtype), "batch", "time", "width")
    over = mesh_axes("vocab")

    def look_up(tokens_BT: jax.Array, own_VD: jax.Array) -> jax.Array:
        # A row that another device holds is zero here; the sum over devices is the row.
        first = jax.lax.axis_index(over) * own_VD.shape[0] if over else 0
        place = tokens_BT - first
        here = (place >= 0) & (place < own_VD.shape[0])
        # From the float32 table: the gradients of a common token's many places add up in float32.
        found = jnp.take(own_VD, jnp.where(here, place, 0), axis=0, mode="clip")
        found = jnp.where(here[..., None], found, 0).astype(dtype)
        return jax.lax.psum(found, over) if over else found

    stream = ("batch", "time", "width")
    # On shards by hand: the compiler gathers the whole table for a gather from divided columns.
    return local(look_up, (("batch", "time"), ("vocab", "width")), stream)(tokens_BT, table_VD)
