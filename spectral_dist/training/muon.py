"""Muon's direction: the momentum of each weight matrix, made orthogonal by Newton-Schulz.

A matrix is orthogonalized whole, and the state is sharded. So the shards of all matrices of one
size travel together: one all-to-all gives every device whole matrices, its share of them, and one
brings the results back to their shards. Newton-Schulz itself has no collective inside and no device
repeats another's work. Read `orthogonalize`, then `_exchange`.

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
# five steps bring singular values from 1e-3 up to between 0.7 and 1.2, which is near enough to 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Axes along which a weight is a stack of matrices, each of them orthogonalized by itself.
_STACKED = ("layers", "branches")


def is_residual_matrix(axes: Axes) -> bool:
    """Say whether Muon updates a parameter: a matrix that reads or writes the residual stream.

    The embedding and the head are not, though they are matrices: their rows and columns stand for
    tokens, whose gradients differ in size by how often they occur, and Adam serves them better.
    """
    sides = [axis for axis in axes if axis not in _STACKED]
    return len(sides) == 2 and "embed" in sides and "vocab" not in sides


def newton_schulz(x_RC: Float32[Array, "R C"], steps: int) -> Float32[Array, "R C"]:
    """Return the matrix with its singular values brought near 1, its singular vectors kept.

    float32 with the precision that JAX takes by default: TF32 on an NVIDIA GPU, bfloat16 operands
    on a TPU, which are enough (Jordan et al. run it in bfloat16).
    """
    a, b, c = COEFFICIENTS
    wide = x_RC.shape[0] <= x_RC.shape[1]
    x = x_RC if wide else x_RC.T  # the products below are of the shorter side
    x = x / (jnp.linalg.norm(x) + 1e-8)  # singular values in [0, 1], where the iteration is stable
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def orthogonalize(
    updates: Sequence[jax.Array], axes: Sequence[Axes], steps: int
) -> list[jax.Array]:
    """Orthogonalize each matrix of each array, and give all updates the size of Adam's.

    An orthogonal matrix of r x c has a root mean square of 1 / sqrt(max(r, c)); times
    0.2 sqrt(max(r, c)) it is 0.2, as Adam's is in practice, so that one learning rate and one
    weight decay serve both (Liu et al. 2025, section 2.2).

    Args:
      updates: float32 arrays of which `is_residual_matrix` holds, [layers, D, branches, C] or less.
      axes: their logical axes.
      steps: of Newton-Schulz.

    Returns:
      Arrays with the shapes and shardings of `updates`.
    """
    # Which mesh axes divide the two sides; none of them when there is no mesh.
    divided = [(mesh_axes("embed"), mesh_axes(_other_side(names))) for names in axes]

    def on_shards(shards: Sequence[jax.Array]) -> list[jax.Array]:
        stacks = [_stack(x, names) for x, names in zip(shards, axes, strict=True)]
        # All matrices of one size and layout make one stack, from whichever arrays: few large
        # transfers, and a stack that divides more evenly over the devices.
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
    return 0.2 * math.sqrt(max(x_RC.shape)) * newton_schulz(x_RC, steps)


def _other_side(axes: Axes) -> str:
    (side,) = (axis for axis in axes if axis not in (*_STACKED, "embed"))
    return side


def _order(axes: Axes) -> tuple[int, ...]:
    """Return the dimensions with the stacked ones first, then embed, then the other side.

    Whether a weight reads the residual stream (embed first) or writes it (embed last) is then the
    same: an orthogonalized transpose is the transpose of the orthogonalized.
    """
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
    """Apply a function to whole matrices of which each device holds a shard.

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
    # One at a time: the temporaries are those of one matrix, which fills a device by itself.
    if not over:
        return jax.lax.map(function, shards_Mrc)
    # Matrices of zeros fill the last device's share; they cost what waiting for the others would.
    share = -(-count // (R * C))
    padded = jnp.pad(shards_Mrc, ((0, share * R * C - count), (0, 0), (0, 0)))
    # Device i gets its share's shards from all devices, in the order of the devices ...
    pieces = jax.lax.all_to_all(padded, over, 0, 0, tiled=True)
    pieces = pieces.reshape(R, C, share, rows, columns).transpose(2, 0, 3, 1, 4)
    whole = jax.lax.map(function, pieces.reshape(share, R * rows, C * columns))
    # ... and sends them back the same way.
    pieces = whole.reshape(share, R, rows, C, columns).transpose(1, 3, 0, 2, 4)
    pieces = pieces.reshape(R * C * share, rows, columns)
    return jax.lax.all_to_all(pieces, over, 0, 0, tiled=True)[:count]
