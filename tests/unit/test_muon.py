"""Muon's direction on one device: against a singular value decomposition, and against optax's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_dist.training.muon import is_residual_matrix, newton_schulz, orthogonalize

# Weights that read and write the residual stream, single and stacked, tall and wide.
SHAPES = {
    ("embed", "branches", "mlp"): (12, 2, 20),
    ("mlp", "embed"): (20, 12),
    ("layers", "embed", "heads"): (3, 12, 8),
    ("layers", "embed", "branches", "kv_heads"): (3, 12, 2, 8),
    ("layers", "channels", "embed"): (3, 12, 12),
}


@pytest.fixture(scope="module")
def updates() -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.float32(rng.normal(size=shape)) for shape in SHAPES.values()]


@pytest.fixture(scope="module")
def directions(updates: list[jax.Array]) -> list[jax.Array]:
    return jax.jit(lambda x: orthogonalize(x, list(SHAPES), 5))(updates)


iterate = jax.jit(lambda x: newton_schulz(x, 5))


def dimension_numbers(axes: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers:
    rows, columns = (i for i, axis in enumerate(axes) if axis not in ("layers", "branches"))
    return optax.contrib.MuonDimensionNumbers(rows, columns)


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_singular_values_go_to_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    left, _, right = np.linalg.svd(x, full_matrices=False)
    turned = left.T @ np.asarray(iterate(x)) @ right.T
    values = np.diag(turned)
    assert 0.6 < values.min() <= values.max() < 1.25
    np.testing.assert_allclose(turned, np.diag(values), atol=1e-4)


def test_no_gradient_gives_no_direction() -> None:
    assert not np.any(iterate(np.zeros((8, 40), np.float32)))


@pytest.mark.usefixtures("mixed_types")
def test_every_matrix_of_a_stack_is_what_optax_makes_of_it(
    updates: list[jax.Array], directions: list[jax.Array]
) -> None:
    # Without momentum and with a rate of -1, optax's Muon is the direction alone.
    reference: Any = optax.contrib.muon(
        -1.0,
        beta=0.0,
        nesterov=False,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=[dimension_numbers(axes) for axes in SHAPES],
    )
    expected, _ = jax.jit(reference.update)(updates, reference.init(updates), updates)
    for mine, theirs in zip(directions, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_an_update_is_as_large_as_adams(directions: list[jax.Array]) -> None:
    for update in directions:
        assert 0.15 < float(jnp.sqrt(jnp.mean(update**2))) < 0.25


def test_which_parameters_are_matrices() -> None:
    assert all(is_residual_matrix(axes) for axes in SHAPES)
    others = [("vocab", "embed"), ("embed", "vocab"), ("norm",), ("layers", "norm")]
    others += [("poles", "thin_channels"), ("taps", "branches", "thin_channels")]
    assert not any(is_residual_matrix(axes) for axes in others)
