"""Muon's update: the momentum of each weight matrix, orthogonalized by Newton-Schulz.

Newton-Schulz needs whole matrices, and the optimizer state is sharded. One all-to-all for all
matrices of one size gives every device its share of whole matrices; after Newton-Schulz, which has
no collective inside, a second all-to-all brings the results back to their shards. Devices along
`fsdp` and `tensor` share the work. Read `orthogonalize`, then `_exchange`.

Sources: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025,
arXiv:2502.16982.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from spectral_dist.array_typing import Array, Float32
from spectral_dist.mesh import Axes, local, mesh_axes

# a, b, c of a X + b (X X^T) X + c (X X^T)^2 X, chosen by Jordan et al. for the steepest slope at 0:
# five steps bring singular values from 1e-3 up to between 0.7 and 1.2, near enough to 1. The
# iteration does not converge: more steps come no closer.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Logical axes along which a parameter is a stack of matrices; each is orthogonalized by itself.
_STACKED = ("layers", "branches")


def is_residual_matrix(axes: Axes) -> bool:
    """Return whether Muon updates a parameter: a matrix that reads or writes the residual stream.

    The embedding and the head are left to Adam.
    """
    # Their rows and columns stand for tokens: the gradients differ in size by how often each token
    # occurs, which Adam evens out and an orthogonal update would not.
    sides = [axis for axis in axes if axis not in _STACKED]
    return len(sides) == 2 and "embed" in sides and "vocab" not in sides


def newton_schulz(x_RC: Float32[Array, "R C"], steps: int) -> Float32[Array, "R C"]:
    """Newton-Schulz: bring the singular values of a matrix near 1, keep its singular vectors."""
    # Products at JAX's default precision (TF32 on an NVIDIA GPU, bfloat16 on a TPU) are enough:
    # Jordan et al. run all of it in bfloat16.
    a, b, c = COEFFICIENTS
    wide = x_RC.shape[0] <= x_RC.shape[1]
    x = x_RC if wide else x_RC.T  # so that the Gram matrix has the size of the shorter side
    x = x / (jnp.linalg.norm(x) + 1e-8)  # singular values in [0, 1], where the iteration is stable
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def orthogonalize(
    updates: Sequence[jax.Array], axes: Sequence[Axes], steps: int
) -> list[jax.Array]:
    """Orthogonalize each matrix of each array, and scale the updates to the size of Adam's.

    Args:
      updates: float32 arrays of which `is_residual_matrix` holds, [layers, D, branches, C] or less.
      axes: their logical axes.
      steps: of Newton-Schulz.

    Returns:
      Arrays with the shapes and shardings of `updates`.
    """
    # The mesh axes that divide the two sides; none without a mesh.
    divided = [(mesh_axes("embed"), mesh_axes(_other_side(names))) for names in axes]

    def on_shards(shards: Sequence[jax.Array]) -> list[jax.Array]:
        stacks = [_stack(x, names) for x, names in zip(shards, axes, strict=True)]
        # Matrices of one size and layout are stacked, whichever arrays they come from: two sizes
        # make four collectives (left to the compiler, three layers on 1x2x2 made 380), and a longer
        # stack divides more evenly over the devices.
        alike: dict[object, list[int]] = defaultdict(list)
        for i, stack in enumerate(stacks):
            alike[(stack.shape[1:], divided[i])].append(i)
        for members in alike.values():
            whole = jnp.concatenate([stacks[i] for i in members])
            whole = _exchange(whole, *divided[members[0]], lambda x: _direction(x, steps))
            ends = [sum(len(stacks[i]) for i in members[: k + 1]) for k in range(len(members))]
            for i, part in zip(members, jnp.split(whole, ends[:-1]), strict=True):
                stacks[i] = part
        return [
            _unstack(stack, x, names) for stack, x, names in zip(stacks, shards, axes, strict=True)
        ]

    return local(on_shards, (list(axes),), list(axes))(list(updates))


def _direction(x_RC: jax.Array, steps: int) -> jax.Array:
    # An orthogonal r x c matrix has a root mean square of 1 / sqrt(max(r, c)). This makes it 0.2,
    # which is that of Adam's updates in practice, so that one learning rate and one weight decay
    # serve both (Liu et al. 2025, section 2.2).
    return 0.2 * math.sqrt(max(x_RC.shape)) * newton_schulz(x_RC, steps)


def _other_side(axes: Axes) -> str:
    (side,) = (axis for axis in axes if axis not in (*_STACKED, "embed"))
    return side


def _order(axes: Axes) -> tuple[int, ...]:
    """Return the order of dimensions: the stacked ones, then embed, then the other side."""
    # A matrix that reads the residual stream (embed first) and one that writes it (embed last) then
    # go into one stack. It changes no result: the transpose of an orthogonalized matrix is the
    # orthogonalized transpose.
    stacked = [i for i, axis in enumerate(axes) if axis in _STACKED]
    return (*stacked, axes.index("embed"), axes.index(_other_side(axes)))


def _stack(x: jax.Array, axes: Axes) -> jax.Array:
    x = x.transpose(_order(axes))
    return x.reshape(-1, *x.shape[-2:])


def _unstack(stack: jax.Array, like: jax.Array, axes: Axes) -> jax.Array:
    order = _order(axes)
    x = stack.reshape([like.shape[i] for i in order])
    return x.transpose([order.index(i) for i in range(len(order))])


def _exchange(
    shards_Mrc: jax.Array,
    over_rows: tuple[str, ...],
    over_columns: tuple[str, ...],
    function: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Apply a function to whole matrices of which each device holds a shard, by two all-to-alls.

    Args:
      shards_Mrc: this device's shard of M matrices.
      over_rows: the mesh axes that divide the rows.
      over_columns: the mesh axes that divide the columns.
      function: of one matrix, same shape out.

    Returns:
      this device's shard of the M results.
    """
    over = over_rows + over_columns
    count, rows, columns = shards_Mrc.shape
    R, C = (math.prod(map(jax.lax.axis_size, names)) for names in (over_rows, over_columns))
    # `map` takes one matrix at a time: it is enough work for a device, and the temporaries are
    # those of one matrix only.
    if not over:
        return jax.lax.map(function, shards_Mrc)
    # Zeros fill the share of the last devices; they would wait for the others meanwhile anyway.
    share = -(-count // (R * C))
    padded = jnp.pad(shards_Mrc, ((0, share * R * C - count), (0, 0), (0, 0)))
    # Device i receives all shards of the matrices of its share, in the order of the devices ...
    pieces = jax.lax.all_to_all(padded, over, 0, 0, tiled=True)
    pieces = pieces.reshape(R, C, share, rows, columns).transpose(2, 0, 3, 1, 4)
    whole = jax.lax.map(function, pieces.reshape(share, R * rows, C * columns))
    # ... and sends them back the same way.
    pieces = whole.reshape(share, R, rows, C, columns).transpose(1, 3, 0, 2, 4)
    pieces = pieces.reshape(R * C * share, rows, columns)
    return jax.lax.all_to_all(pieces, over, 0, 0, tiled=True)[:count]
