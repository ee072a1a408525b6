"""The optimizers against ones written out by hand, what decays, and the schedule at its corners."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_dist.settings import (
    AdamWConfig,
    Config,
    LionConfig,
    MuonConfig,
    from_flat,
    resolve,
)
from spectral_dist.settings.optimizers import OPTIMIZER_KINDS
from spectral_dist.training.optimizers import OPTIMIZERS, decays, make_optimizer
from spectral_dist.training.schedule import learning_rate
from spectral_dist.training.state import model_spec

pytestmark = pytest.mark.usefixtures("mixed_types")

PEAK = 2e-3


def schedule(**settings: Any) -> Any:
    """Return the schedule of a run, as step -> float."""
    values = {"lr": PEAK, "final_lr_fraction": 0.25} | settings
    rate = learning_rate(resolve(from_flat(values)))
    return lambda step: float(rate(jnp.int32(step)))


# ---- the schedule ----


@pytest.mark.parametrize("name", ["cosine", "wsd"])
def test_warm_up_rises_in_equal_steps_to_the_peak(name: str) -> None:
    rate = schedule(steps=100, warmup_steps=10, schedule=name)
    rates = [rate(step) for step in range(10)]
    np.testing.assert_allclose(rates, PEAK * np.arange(1, 11) / 10, rtol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_step_has_the_peak(name: str, warmup: int) -> None:
    rate = schedule(steps=100, warmup_steps=warmup, schedule=name)
    assert rate(0) == pytest.approx(PEAK, rel=1e-6)
    assert rate(100) == pytest.approx(PEAK / 4, rel=1e-6)


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_run_that_is_all_warm_up_ends_at_the_peak(name: str, steps: int) -> None:
    rate = schedule(steps=steps, warmup_steps=steps, schedule=name)
    rates = [rate(step) for step in range(steps)]
    np.testing.assert_allclose(rates, PEAK * np.arange(1, steps + 1) / steps, rtol=1e-6)


def test_the_cosine_is_half_way_in_the_middle_and_ends_at_its_fraction() -> None:
    rate = schedule(steps=111, warmup_steps=10)
    assert rate(10) == pytest.approx(PEAK, rel=1e-6)
    assert rate(60) == pytest.approx(PEAK * (1 + 0.25) / 2, rel=1e-6)
    assert rate(109) > PEAK / 4 * 1.0001
    assert rate(110) == pytest.approx(PEAK / 4, rel=1e-6)  # of the last step
    rates = [rate(step) for step in range(10, 111, 5)]
    assert rates == sorted(rates, reverse=True)


def test_a_phase_multiplies_the_rate() -> None:
    """each_phase: from its first step to its last, whatever the schedule."""
    phases = [
        {"steps": 30, "weights": {"a": 1}},
        {"steps": 50, "weights": {"a": 1}, "lr_factor": 0.5},
        {"steps": 20, "weights": {"a": 1}, "lr_factor": 2},
    ]
    for name in ("cosine", "wsd"):
        settings = {"steps": 100, "warmup_steps": 10, "schedule": name}
        plain = schedule(**settings)
        rate = schedule(**settings, phases=phases, datasets=[{"paths": "a"}])
        for step, factor in ((0, 1), (29, 1), (30, 0.5), (79, 0.5), (80, 2), (99, 2)):
            assert rate(step) == pytest.approx(factor * plain(step), rel=1e-6), step


def test_a_ramp_leads_to_the_rate_of_a_phase() -> None:
    phases = [
        {"steps": 30, "weights": {"a": 1}, "lr_factor": 1.5},
        {"steps": 70, "weights": {"a": 1}, "lr_factor": 0.5, "ramp": 20},
    ]
    settings = {"steps": 100, "warmup_steps": 1}
    plain, rate = (
        schedule(**settings),
        schedule(**settings, phases=phases, datasets=[{"paths": "a"}]),
    )
    for step, factor in ((29, 1.5), (30, 1.5), (35, 1.25), (40, 1.0), (50, 0.5), (99, 0.5)):
        assert rate(step) == pytest.approx(factor * plain(step), rel=1e-6), step


def test_wsd_holds_the_peak_and_then_falls_in_a_line() -> None:
    rate = schedule(steps=100, warmup_steps=10, schedule="wsd", decay_fraction=0.2)
    np.testing.assert_allclose([rate(step) for step in range(10, 80)], PEAK, rtol=1e-6)
    falling = [rate(step) for step in range(79, 100)]
    expected = PEAK * (1 - 0.75 * np.arange(21) / 20)
    np.testing.assert_allclose(falling, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [3, 10, 1000])
def test_the_last_step_has_the_last_rate(name: str, steps: int) -> None:
    rate = schedule(steps=steps, warmup_steps=1, schedule=name)
    assert rate(steps - 1) == pytest.approx(PEAK / 4, rel=1e-6)
    held = schedule(steps=steps, warmup_steps=1, schedule=name, final_lr_fraction=1)
    assert held(steps - 1) == pytest.approx(PEAK, rel=1e-6)


def test_wsd_decay_never_begins_within_the_warm_up() -> None:
    rate = schedule(steps=20, warmup_steps=15, schedule="wsd", decay_fraction=0.9)
    rising = [rate(step) for step in range(15)]
    assert rising == sorted(rising)
    assert rate(14) == pytest.approx(PEAK, rel=1e-6)
    assert rate(20) == pytest.approx(PEAK / 4, rel=1e-6)


# ---- the update ----

SETTINGS = AdamWConfig(weight_decay=0.3, beta1=0.8, beta2=0.9, adam_eps=1e-3, clip_norm=1.5, lr=0.1)
AXES = {"matrix": ("embed", "mlp"), "norm": ("norm",), "embedding": ("vocab", "embed")}
SHAPES = {"matrix": (3, 4), "norm": (5,), "embedding": (2, 3)}


def by_hand(params: dict[str, np.ndarray], grads: list[dict[str, np.ndarray]]) -> Any:
    """AdamW of five lines a step, in float64 (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    s = SETTINGS
    first = {name: np.zeros(SHAPES[name]) for name in params}
    second = {name: np.zeros(SHAPES[name]) for name in params}
    for step, grad in enumerate(grads, 1):
        norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
        scale = min(1.0, s.clip_norm / norm)
        for name, g in grad.items():
            first[name] = s.beta1 * first[name] + (1 - s.beta1) * g * scale
            second[name] = s.beta2 * second[name] + (1 - s.beta2) * (g * scale) ** 2
            update = (first[name] / (1 - s.beta1**step)) / (
                np.sqrt(second[name] / (1 - s.beta2**step)) + s.adam_eps
            )
            decay = s.weight_decay if name == "matrix" else 0.0
            params[name] = params[name] - s.lr * (update + decay * params[name])
    return params


@pytest.mark.parametrize("size", [0.05, 10.0])  # below the clipping norm, and above it
def test_five_steps_of_adamw_with_clipping_and_decay(size: float) -> None:
    rng = np.random.default_rng(1)
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    grads = [
        {name: size * rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(5)
    ]
    optimizer = make_optimizer(SETTINGS, AXES)
    params = jax.tree.map(jnp.float32, start)
    opt_state = optimizer.init(params)
    for grad in grads:
        updates, opt_state = optimizer.update(jax.tree.map(jnp.float32, grad), opt_state, params)
        params = jax.tree.map(lambda p, u: p - SETTINGS.lr * u, params, updates)
    expected = by_hand(start, grads)
    for name in SHAPES:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-6, atol=2e-6)


def test_two_steps_of_lion() -> None:
    """Chen et al. 2023, algorithm 2, in float64."""
    settings = LionConfig(momentum=0.8, interpolation=0.6, weight_decay=0.3, clip_norm=1e9)
    lion = make_optimizer(settings, AXES)
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    momentum = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    single = jax.tree.map(jnp.float32, params)
    opt_state = lion.init(single)
    for _ in range(2):
        grads = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
        updates, opt_state = lion.update(jax.tree.map(jnp.float32, grads), opt_state, single)
        for name, grad in grads.items():
            expected = np.sign(0.6 * momentum[name] + 0.4 * grad)
            expected += (0.3 if name == "matrix" else 0.0) * params[name]
            np.testing.assert_allclose(updates[name], expected, rtol=1e-5, atol=1e-6)
            momentum[name] = 0.8 * momentum[name] + 0.2 * grad


def test_muon_gives_adam_its_own_rate() -> None:
    """Of the rest Muon makes what AdamW does, times adam_lr / lr, decay and all."""
    shapes = {"norm": (5,), "head": (3, 2)}
    axes = {"norm": ("norm",), "head": ("embed", "vocab")}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    grads = {name: jnp.linspace(-1, 2, 6)[: np.prod(s)].reshape(s) for name, s in shapes.items()}
    updates = []
    for settings in (AdamWConfig(), MuonConfig(lr=0.5, adam_lr=0.1)):
        optimizer = make_optimizer(settings, axes)
        updates.append(optimizer.update(grads, optimizer.init(params), params)[0])
    for name in shapes:
        np.testing.assert_allclose(0.2 * updates[0][name], updates[1][name], rtol=1e-6)


def test_every_optimizer_has_settings_and_every_settings_an_optimizer() -> None:
    assert OPTIMIZERS.keys() == OPTIMIZER_KINDS.keys()


# ---- what decays ----

DECAYED = {"mixer/w_in", "mixer/w_out", "mixer/w_query", "mixer/w_key_value"}
DECAYED |= {"mlp/w_in", "mlp/w_out", "head"}
NOT_DECAYED = {"mixer/coefficients", "mixer/skip", "mixer/taps", "mixer_norm/scale"}
NOT_DECAYED |= {"mixer/key_norm/scale", "mixer/query_norm/scale", "mlp_norm/scale"}
NOT_DECAYED |= {"embed", "norm/scale"}


def all_mixers() -> Config:
    """Return a model with every mixer, stacked and single layers."""
    pattern = "spectral,window,attention"
    return resolve(
        from_flat({"hidden_dim": 32, "head_dim": 8, "num_layers": 4, "layer_pattern": pattern})
    )


def test_which_parameters_decay() -> None:
    found: dict[str, bool] = {}
    tree = model_spec(all_mixers()).axes
    for path, axes in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, tuple)
    ):
        names = [str(key.key) for key in path]
        name = "/".join(names[2:] if names[0] in ("groups", "rest") else names)
        # The stacked and the single layers agree.
        assert found.setdefault(name, decays(axes)) == decays(axes), names
    assert {name for name, decayed in found.items() if decayed} == DECAYED
    assert {name for name, decayed in found.items() if not decayed} == NOT_DECAYED
