"""The training step: exact accumulation, constant memory, and no bad number in the state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.mesh import make_mesh
from spectral_dist.params import Params
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training import step as step_module
from spectral_dist.training.schedule import learning_rate
from spectral_dist.training.state import TrainState, abstract_state, init_state
from spectral_dist.training.step import (
    batch_sharding,
    make_accumulate,
    make_count_bytes,
    make_eval_step,
    make_train_step,
)

ROWS, T = 8, 32
MESH = make_mesh((1, 1, 1), jax.devices()[:1])
TOKENS = np.random.default_rng(0).integers(97, 110, (ROWS, T + 1)).astype(np.uint8)


def config(accum_steps: int, **settings: Any) -> Config:
    """Return a model of one spectral layer; ROWS sequences in `accum_steps` micro-batches."""
    values = {"hidden_dim": 32, "head_dim": 8, "num_layers": 1, "layer_pattern": "spectral"}
    values |= {"seq_len": T, "chunk_size": 8, "compute_dtype": "float32", "num_poles": 4}
    values |= {"batch_size": ROWS // accum_steps, "accum_steps": accum_steps}
    return resolve(from_flat(values | {"steps": 40, "warmup_steps": 10} | settings))


class Compiled(NamedTuple):
    """A compiled step, its settings and its initial state, on the host."""

    config: Config
    run: Any
    start: TrainState

    def state(self) -> TrainState:
        """Return a fresh copy of the initial state on the device."""
        shardings = jax.tree.map(lambda s: s.sharding, abstract_state(self.config, MESH))
        return jax.device_put(self.start, shardings)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    made = config(2)
    with jax.set_mesh(MESH):
        start = jax.tree.map(np.array, init_state(made, MESH))
        run = make_train_step(made, MESH)
    return Compiled(made, run, start)


def run(compiled: Compiled, state: TrainState) -> tuple[TrainState, dict[str, float]]:
    """Run one step on TOKENS."""
    with jax.set_mesh(MESH):
        state, metrics = compiled.run(state, TOKENS.reshape(2, ROWS // 2, T + 1))
    return state, {name: float(value) for name, value in metrics.items()}


def test_micro_batches_add_up_to_one_batch(compiled: Compiled) -> None:
    sums = []
    for accum_steps in (4, 1):
        made = config(accum_steps)
        with jax.set_mesh(MESH):
            accumulate = jax.jit(make_accumulate(made, MESH))
            tokens = jnp.asarray(TOKENS.reshape(accum_steps, -1, T + 1))
            sums.append(jax.device_get(accumulate(compiled.start.params, tokens)))
    (loss_4, grads_4), (loss_1, grads_1) = sums
    assert loss_4 == pytest.approx(loss_1, rel=1e-6)
    for one, other in zip(jax.tree.leaves(grads_4), jax.tree.leaves(grads_1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * np.abs(other).max())
        assert np.abs(other).max() > 0


def test_memory_does_not_grow_with_accumulation() -> None:
    sizes = []
    for accum_steps in (2, 8):
        made = config(accum_steps, batch_size=1)
        place = batch_sharding(made, MESH)
        tokens = jax.ShapeDtypeStruct((accum_steps, 1, T + 1), jnp.uint8, sharding=place)
        with jax.set_mesh(MESH):
            lowered = make_train_step(made, MESH).lower(abstract_state(made, MESH), tokens)
        memory: Any = lowered.compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
    assert sizes[1] < 1.03 * sizes[0]


def test_a_step_changes_every_parameter_and_counts(compiled: Compiled) -> None:
    state, metrics = run(compiled, compiled.state())
    assert int(state.step) == 1
    assert metrics["skipped"] == metrics["bad_in_row"] == 0
    assert metrics["loss"] == pytest.approx(np.log(256), rel=0.1)
    assert metrics["learning_rate"] == pytest.approx(float(learning_rate(compiled.config)(0)))
    same = jax.tree.map(np.array_equal, state.params, compiled.start.params)
    assert not any(jax.tree.leaves(same))


def test_the_state_is_donated(compiled: Compiled) -> None:
    state = compiled.state()
    jax.block_until_ready(run(compiled, state)[0])
    big = [x for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim]
    assert all(x.is_deleted() for x in big)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_in_a_parameter_changes_nothing(compiled: Compiled, bad: float) -> None:
    good, _ = run(compiled, compiled.state())  # so that the moments are not zero
    before = jax.tree.map(np.array, good)
    before.params["head"][3, 5] = bad
    state, metrics = run(compiled, compiled._replace(start=before).state())
    assert not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["grad_norm"])
    jax.tree.map(
        lambda new, old: np.testing.assert_array_equal(
            np.asarray(new).view(np.uint8), old.view(np.uint8)
        ),
        *[jax.tree.map(np.atleast_1d, (s.params, s.opt_state)) for s in (state, before)],
    )
    assert int(state.step) == 2
    assert int(state.skipped) == metrics["skipped"] == 1
    assert int(state.bad_in_row) == metrics["bad_in_row"] == 1


# ---- with gradients made up: what a step decides and counts ----


@pytest.fixture(scope="module")
def decide(compiled: Compiled) -> Any:
    """Return a step whose tokens say what is wrong: 0 nothing, 1 the loss, 2 one gradient."""

    def fake(config: Config, mesh: Any) -> Any:
        def accumulate(params: Params, tokens_ABT: jax.Array) -> tuple[jax.Array, Params]:
            wrong = tokens_ABT[0, 0, 0]
            grads = jax.tree.map(jnp.ones_like, params)
            grads["norm"]["scale"] = jnp.where(wrong == 2, jnp.inf, grads["norm"]["scale"])
            return jnp.where(wrong == 1, jnp.nan, 1.0), grads

        return accumulate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "make_accumulate", fake)
        step = make_train_step(compiled.config, MESH)

    def one(state: TrainState, wrong: int) -> tuple[TrainState, dict[str, float]]:
        with jax.set_mesh(MESH):
            state, metrics = step(state, np.full((2, ROWS // 2, T + 1), wrong, np.uint8))
        return state, {name: float(value) for name, value in metrics.items()}

    return one


def test_bad_steps_are_counted_and_a_good_one_ends_the_row(compiled: Compiled, decide: Any) -> None:
    state, counts = compiled.state(), []
    for wrong in (0, 1, 2, 0, 2, 0):
        state, metrics = decide(state, wrong)
        counts.append((metrics["skipped"], metrics["bad_in_row"]))
    assert counts == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1), (3, 0)]
    assert int(state.step) == 6


@pytest.mark.parametrize("wrong", [1, 2])
def test_a_bad_loss_or_a_bad_gradient_alone_is_enough(
    compiled: Compiled, decide: Any, wrong: int
) -> None:
    before, _ = decide(compiled.state(), 0)
    kept = jax.tree.map(np.array, (before.params, before.opt_state))
    after, metrics = decide(before, wrong)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), kept)
    assert np.isfinite(metrics["loss"]) == (wrong == 2)
    assert np.isfinite(metrics["grad_norm"]) == (wrong == 1)


def test_parameters_that_would_overflow_are_not_kept(compiled: Compiled, decide: Any) -> None:
    """Loss and gradient are finite, but the norm of the new parameters is not."""
    start = jax.tree.map(np.array, compiled.start)
    start.params["head"][0, 0] = 1e20
    state, metrics = decide(compiled._replace(start=start).state(), 0)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, start.params)


def test_a_skipped_step_does_not_delay_the_learning_rate(compiled: Compiled, decide: Any) -> None:
    schedule = learning_rate(compiled.config)
    for pattern in ([0] * 15, [0, 1, 1, 0, 2, 1, 0, 0, 1, 2, 2, 0, 1, 0, 0]):
        state, rates = compiled.state(), []
        for wrong in pattern:
            state, metrics = decide(state, wrong)
            rates.append(metrics["learning_rate"])
        np.testing.assert_allclose(rates, [float(schedule(s)) for s in range(15)], rtol=1e-6)


def test_the_rate_scales_the_update(compiled: Compiled, decide: Any) -> None:
    """The first update of Adam is lr in size where nothing decays, whatever the gradient."""
    state, metrics = decide(compiled.state(), 0)
    moved = compiled.start.params["embed"] - np.asarray(state.params["embed"])
    np.testing.assert_allclose(moved, metrics["learning_rate"], rtol=1e-2)


def test_the_bytes_of_the_targets_are_counted(compiled: Compiled) -> None:
    """Bytes: as many as tokens, a constant; else looked up, token by token."""
    _, metrics = run(compiled, compiled.state())
    assert metrics["bytes"] == ROWS * T
    targets = jnp.asarray([[[0, 2, 1], [2, 2, 2]]], jnp.uint8)
    assert float(make_count_bytes(np.array([1, 3, 5]))(targets)) == 1 + 5 + 3 + 15
    assert float(make_count_bytes(np.full(3, 2))(targets)) == 12
    program = jax.make_jaxpr(make_count_bytes(np.ones(256, np.int32)))(targets)
    assert program.eqns == [], "a constant costs nothing"


def test_evaluation_scores_the_last_targets(compiled: Compiled) -> None:
    with jax.set_mesh(MESH):
        eval_step = make_eval_step(compiled.config, MESH)
        params = compiled.state().params
        all_of_them = np.asarray(eval_step(params, jnp.asarray(TOKENS), T))
        last = np.asarray(eval_step(params, jnp.asarray(TOKENS), 5))
    assert all_of_them.shape == last.shape == (ROWS,)
    assert (last < all_of_them).all()
    _, metrics = run(compiled, compiled.state())
    assert all_of_them.sum() / (ROWS * T) == pytest.approx(metrics["loss"], rel=1e-6)
