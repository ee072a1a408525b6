"""Sequence parallelism: each device has a shard of the time of its sequences.

A mixer runs on its shard. What it needs from the shards before it is passed on here: the last few
tokens (`before`), and the state of a linear recurrence (`states`). Neither grows with the length of
the sequence. Where time is whole there is one shard, and nothing is passed on. Read `TimeShards`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from spectral_dist.array_typing import Array, Bool, Float, Float32, Num
from spectral_dist.mesh import mesh_axes, shards
from spectral_dist.model.documents import masked


@dataclass(frozen=True)
class TimeShards:
    """The shards of time; the methods are called on each device's own (`mesh.local`).

    Attributes:
      axes: the mesh axes that divide time; none where it is whole.
      count: S, how many shards there are.
    """

    axes: tuple[str, ...]
    count: int

    def index(self) -> jax.Array | int:
        """Return this shard's number, from 0 at the start of the sequences."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def before(self, x: Num[Array, "B T ..."], start: Num[Array, "B J ..."]) -> jax.Array:
        """Return the J tokens before this shard: [B, J, ...] of x's dtype.

        Args:
          x: the shard's own tokens.
          start: the J tokens before the first shard.
        """
        if not self.axes:
            return start
        wanted, time = start.shape[1], x.shape[1]
        reach = -(-wanted // time)  # a window may be longer than a shard
        # Zeros come to the first shards, which take `start` in their place.
        pieces = [self._shifted(x[:, max(0, reach * time - wanted) :], reach)]
        pieces += [self._shifted(x, hops) for hops in range(reach - 1, 0, -1)]
        found = jnp.concatenate(pieces, axis=1)
        inside = jnp.minimum(self.index() * time, wanted)  # of the J, those that are of x
        padded = jnp.concatenate([start, jnp.zeros_like(start)], axis=1)
        early = jax.lax.dynamic_slice_in_dim(padded, inside, wanted, axis=1)
        return jnp.where(self._column(wanted, x.ndim) < wanted - inside, early, found)

    def after(self, x: Float[Array, "B J ..."]) -> jax.Array:
        """Return the same array of the next shard; zeros on the last one."""
        return self._shifted(x, -1) if self.axes else jnp.zeros_like(x)

    def of_last(self, x: jax.Array) -> jax.Array:
        """Return the last shard's array, on every shard."""
        if not self.axes:
            return x
        mine = jnp.where(self.index() == self.count - 1, x, jnp.zeros_like(x))
        return jax.lax.psum(mine, self.axes)

    def states(
        self,
        sums_BND: Float32[Array, "B N D"],
        start_BND: Float32[Array, "B N D"],
        across_NN: Float32[Array, "N N"],
        through_B: Bool[Array, " B"] | None = None,
        *,
        reverse: bool = False,
    ) -> tuple[Float32[Array, "B N D"], Float32[Array, "B N D"]]:
        """Return the state before this shard, and the one after the last.

        Args:
          sums_BND: the state after this shard if it began with none.
          start_BND: the state before the first shard.
          across_NN: what a shard without input makes of a state.
          through_B: whether a state goes through this shard, in which no document begins; if it is
            None, through all.
          reverse: whether the sequence runs from the last shard to the first.
        """

        def step(state: jax.Array, shard: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
            inflow, through = shard
            return masked(jnp.einsum("nm,bmd->bnd", across_NN, state), through) + inflow, state

        if not self.axes:
            return start_BND, step(start_BND, (sums_BND, through_B))[0]
        # S short steps on every device alike: one collective in place of S, one after the other.
        every = jax.lax.all_gather((sums_BND, through_B), self.axes)
        last, before_SBND = jax.lax.scan(step, start_BND, every, reverse=reverse)
        mine = jax.lax.dynamic_index_in_dim(before_SBND, self.index(), keepdims=False)
        return mine, last

    def decayed(
        self,
        sums_BHNE: Float32[Array, "B H N E"],
        start_BHNE: Float32[Array, "B H N E"],
        across_BH: Float32[Array, "B H"],
    ) -> tuple[Float32[Array, "B H N E"], Float32[Array, "B H N E"]]:
        """Return the state before this shard, and the one after the last; decays are of the data.

        Args:
          sums_BHNE: the state after this shard if it began with none.
          start_BHNE: the state before the first shard.
          across_BH: the factor that this shard leaves of a state before it.
        """

        def step(
            state: jax.Array, shard: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            inflow, factor = shard
            return factor[:, :, None, None] * state + inflow, state

        if not self.axes:
            return start_BHNE, step(start_BHNE, (sums_BHNE, across_BH))[0]
        shards_of_time = jax.lax.all_gather((sums_BHNE, across_BH), self.axes)
        last, before_SBHNE = jax.lax.scan(step, start_BHNE, shards_of_time)
        return jax.lax.dynamic_index_in_dim(before_SBHNE, self.index(), keepdims=False), last

    def _shifted(self, x: jax.Array, hops: int) -> jax.Array:
        """Return the array of the shard `hops` before this one; zeros where there is none."""
        pairs = [(i, i + hops) for i in range(self.count) if 0 <= i + hops < self.count]
        return jax.lax.ppermute(x, self.axes, pairs)

    def _column(self, rows: int, rank: int) -> jax.Array:
        return jnp.arange(rows).reshape(1, rows, *(1,) * (rank - 2))


WHOLE = TimeShards((), 1)


def time_shards() -> TimeShards:
    """Return how the mesh in use divides time; to be called outside of `mesh.local`."""
    return TimeShards(mesh_axes("time"), shards("time"))
