"""N-gram embeddings: a row for the last n tokens, from hashed tables, added to the embedding.

A byte says little; the last three or five name a syllable or a word, which costs the layers several
steps to find out. The table of each n has a fixed number of rows, which n-grams share by a hash.
Huang et al. 2025, arXiv:2501.16975; Pagnoni et al. 2024 (BLT), arXiv:2412.09871, section 3.2.1.
Read `NGramEmbedding.__call__`, then `look_up`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from spectral_dist.array_typing import Array, Float, Float32, Int32, Integer
from spectral_dist.mesh import constrain, local, mesh_axes
from spectral_dist.model.embedding import padded
from spectral_dist.model.layers import parameter
from spectral_dist.model.sequence import time_shards

_NOTHING = -1  # stands for a token before the first one
# Odd, and its bits are spread evenly: 2^32 over the golden ratio (Knuth, TAOCP 3, section 6.4).
_FACTOR = 0x9E3779B1


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Initial values of 0: an n-gram that training never saw adds nothing."""
    del key
    return jnp.zeros(shape, jnp.float32)


def hashed(tokens: Integer[Array, "B T n"], rows: int) -> Int32[Array, "B T"]:
    """Return the row of each n-gram, in [0, rows): the same on every machine and mesh."""
    size = tokens.shape[-1]
    mixed = jnp.full(tokens.shape[:-1], size, jnp.uint32)
    for i in range(size):
        mixed = (mixed ^ tokens[..., i].astype(jnp.uint32)) * jnp.uint32(_FACTOR)
        # The product carries only upwards; the shift brings the high bits down again.
        mixed = mixed ^ (mixed >> 15)
    return (mixed % jnp.uint32(rows)).astype(jnp.int32)


class NGramEmbedding(nnx.Module):
    """Hashed embeddings of the last n tokens, for each n of `sizes`.

    Sharding: rows over tensor and columns over fsdp (and sequence), and they stay there: what
    moves between devices are the tokens and the rows that were asked for (`look_up`).
    """

    def __init__(self, sizes: tuple[int, ...], rows: int, dim: int, rngs: nnx.Rngs) -> None:
        """Declare a table [R, D] for each n, named size_<n>; R is filled up to a multiple of 128.

        Args:
          sizes: each n, at least 2.
          rows: R of each table.
          dim: D.
          rngs: of the initial values.
        """
        self.sizes, self.rows = sizes, padded(rows)
        for n in sizes:
            table = parameter(rngs, (self.rows, dim), ("vocab", "embed"), zeros)
            setattr(self, f"size_{n}", table)

    def __call__(
        self,
        tokens_BT: Integer[Array, "B T"],
        before_BJ: Int32[Array, "B J"] | None,
        reach_BT: Int32[Array, "B T"] | None,
        dtype: jnp.dtype,
    ) -> tuple[Float[Array, "B T D"], Int32[Array, "B J"]]:
        """Return the sum of the rows of the n-grams that end at each token, and the last tokens.

        An n-gram that reaches back before the sequence, or before its document, adds nothing.

        Args:
          tokens_BT: the tokens.
          before_BJ: the J tokens before them, J the longest n less 1; None at the start.
          reach_BT: how many tokens before its own each sees; None if all.
          dtype: of the result; sums are float32.
        """
        tables = tuple(getattr(self, f"size_{n}")[...] for n in self.sizes)
        start_BJ = self.init_state(tokens_BT.shape[0]) if before_BJ is None else before_BJ
        tokens_BT = tokens_BT.astype(jnp.int32)
        shard = time_shards()

        def rows_of(
            tokens_BT: jax.Array, start_BJ: jax.Array, reach_BT: jax.Array | None
        ) -> tuple[jax.Array, jax.Array]:
            """Return the row of each n-gram, [B, T, n], -1 for none; and the last J tokens."""
            joined = jnp.concatenate([shard.before(tokens_BT, start_BJ), tokens_BT], axis=1)
            first, here = joined.shape[1] - tokens_BT.shape[1], tokens_BT.shape[1]
            found = []
            for n in self.sizes:
                back = [joined[:, first - k : first - k + here] for k in range(n - 1, -1, -1)]
                there = back[0] != _NOTHING
                if reach_BT is not None:
                    there &= reach_BT >= n - 1
                found.append(jnp.where(there, hashed(jnp.stack(back, -1), self.rows), -1))
            return jnp.stack(found, axis=-1), shard.of_last(joined[:, here:])

        places = ("batch", "time")
        kept, whole = ("batch", "tokens"), (*places, "branches")
        of_reach = None if reach_BT is None else places
        rows_BTn, last_BJ = local(rows_of, (places, kept, of_reach), (whole, kept))(
            tokens_BT, start_BJ, reach_BT
        )
        stream, table = (*places, "width"), ("vocab", "embed")
        find = partial(look_up, columns=mesh_axes("embed"), over=mesh_axes("vocab"))
        found = local(find, (whole, (table,) * len(tables)), stream)(rows_BTn, tables)
        return constrain(found, *stream).astype(dtype), last_BJ

    def init_state(self, batch: int) -> Int32[Array, "B J"]:
        """Return the tokens before the first one: none."""
        return jnp.full((batch, max(self.sizes) - 1), _NOTHING, jnp.int32)


def look_up(
    rows_BTn: Int32[Array, "B T n"],
    tables: tuple[Float32[Array, "R C"], ...],
    *,
    columns: tuple[str, ...],
    over: tuple[str, ...],
) -> Float32[Array, "B T D"]:
    """Return the sum over n of the rows of each table; -1 is no row. Runs on local shards.

    A device holds R / tensor rows and D / fsdp columns of each table. Every one looks up its own
    columns for the tokens of all that share the columns out, and gives each its part: so a table,
    which may be larger than the model, is never gathered.

    Args:
      rows_BTn: of this device's tokens.
      tables: this device's shard of each.
      columns: the mesh axes that divide the columns.
      over: the mesh axes that divide the rows.
    """
    # [S, B, T, n]: the rows that each of the S devices along `columns` asks for.
    asked = jax.lax.all_gather(rows_BTn, columns) if columns else rows_BTn[None]
    first = jax.lax.axis_index(over) * tables[0].shape[0] if over else 0
    total = jnp.zeros((), jnp.float32)
    for i, table in enumerate(tables):
        place = asked[..., i] - first
        # A row that another device holds, and -1, are zero here.
        here = (asked[..., i] >= 0) & (place >= 0) & (place < table.shape[0])
        found = jnp.take(table, jnp.where(here, place, 0), axis=0, mode="clip")
        total = jnp.where(here[..., None], found, 0) + total
    total = jax.lax.psum(total, over) if over else total
    if columns:
        total = jax.lax.all_to_all(total, columns, split_axis=0, concat_axis=3, tiled=True)
    return total[0]
