"""The language model as a whole: depths, patterns, the scan, remat, states and first loss."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_dist.mesh import RULES
from spectral_dist.model.layers import rms_norm
from spectral_dist.model.lm import Block, SpectralLM, describe_model
from spectral_dist.settings import Config, from_flat, resolve, with_values

PATTERN = "spectral,spectral,window"
VOCAB_SIZE = 256
LENGTH = 32  # the training length: time constants up to LENGTH / 4

# Compiled without optimisation: the compiler's time is most of the tests', and it is no part of
# what they show.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _config(num_layers: int = 3, pattern: str = PATTERN, **settings: Any) -> Config:
    tiny: dict[str, Any] = {"hidden_dim": 16, "head_dim": 8, "mlp_dim": 16, "window": 12}
    tiny |= {"num_poles": 4, "chunk_size": 8, "compute_dtype": "float32"}
    tiny |= {"num_layers": num_layers, "layer_pattern": pattern}
    return resolve(from_flat({"seq_len": LENGTH} | tiny | settings))


@functools.cache
def _params(config: Config) -> Any:
    return _jit(describe_model(config, VOCAB_SIZE).init)(jax.random.key(0))


def _shapes(config: Config) -> Any:
    return describe_model(config, VOCAB_SIZE).shapes


def _model(config: Config, params: Any) -> SpectralLM:
    return describe_model(config, VOCAB_SIZE).bind(params)


def _tokens(batch: int, time: int) -> jax.Array:
    return jax.random.randint(jax.random.key(7), (batch, time), 0, VOCAB_SIZE)


def _loss(config: Config, params: Any, tokens_BT: jax.Array) -> jax.Array:
    """Mean nats of each next byte, by the definition."""
    logits_BTV, _ = _model(config, params)(tokens_BT[:, :-1])
    targets_BTV = jax.nn.one_hot(tokens_BT[:, 1:], VOCAB_SIZE)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits_BTV) * targets_BTV, axis=-1))


def _mixers(params: Any) -> list[str]:
    """The kinds of the layers from the first on, told by their parameters."""
    blocks, rest = params.get("groups", {}), params.get("rest", {})
    repeats = jax.tree.leaves(blocks)[0].shape[0] if blocks else 0

    def kinds(block: Any) -> list[str]:
        mixers = [block[f"layer_{i}"]["mixer"] for i in range(len(block))]
        return ["spectral" if "taps" in mixer else "attention" for mixer in mixers]

    return kinds(blocks) * repeats + kinds(rest)


@pytest.mark.parametrize("pattern", [PATTERN, "window", "spectral,attention"])
def test_any_depth_takes_any_pattern(pattern: str) -> None:
    """Also one that is no multiple of the pattern, or shorter than it."""
    for num_layers in (1, 2, 3, 5, 7):
        config = _config(num_layers, pattern)
        shapes = _shapes(config)
        names = (pattern.split(",") * num_layers)[:num_layers]
        assert _mixers(shapes) == ["spectral" if n == "spectral" else "attention" for n in names]
        tokens = jax.ShapeDtypeStruct((2, 9), jnp.int32)
        run = functools.partial(lambda c, p, t: _model(c, p)(t)[0], config)
        logits = jax.eval_shape(run, shapes, tokens)
        assert (logits.shape, logits.dtype) == ((2, 9, VOCAB_SIZE), jnp.float32)


def test_remat_changes_neither_loss_nor_gradients() -> None:
    """Two scanned repeats and a rest of one layer."""
    config, tokens_BT = _config(7), _tokens(2, 20)
    results = {}
    for remat in ("none", "dots", "full"):
        changed = with_values(config, {"remat": remat})
        step = _jit(jax.value_and_grad(functools.partial(_loss, changed)))
        results[remat] = step(_params(config), tokens_BT)
    norms = [float(jnp.linalg.norm(g)) for g in jax.tree.leaves(results["none"][1])]
    assert min(norms) > 0  # every parameter learns
    for remat in ("dots", "full"):
        assert float(results[remat][0]) == pytest.approx(float(results["none"][0]), rel=1e-6)
        for mine, other in zip(
            jax.tree.leaves(results[remat][1]), jax.tree.leaves(results["none"][1]), strict=True
        ):
            scale = float(jnp.max(jnp.abs(other)))
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("remat", "recomputed"), [("none", False), ("dots", True), ("full", True)])
def test_remat_is_in_the_program(remat: str, recomputed: bool) -> None:
    config = _config(3, remat=remat)
    loss = functools.partial(_loss, config)
    program = str(jax.make_jaxpr(jax.grad(loss))(_shapes(config), _tokens(1, 9)))
    assert ("remat" in program or "checkpoint" in program) == recomputed


def test_the_scan_is_the_layers_one_after_another() -> None:
    """Two repeats unrolled by hand, then the rest, then norm and head."""
    config, tokens_BT = _config(7), _tokens(2, 20)
    params = _params(config)

    def unrolled(params: Any, tokens_BT: jax.Array) -> jax.Array:
        x_BTD = params["embed"][tokens_BT]
        pattern = config.model.pattern
        repeats = [jax.tree.map(lambda p, r=r: p[r], params["groups"]) for r in range(2)]
        for names, part in (
            (pattern, repeats[0]),
            (pattern, repeats[1]),
            (pattern[:1], params["rest"]),
        ):
            make = functools.partial(Block, names, config.model, config.mixers)
            block = nnx.eval_shape(lambda make=make: make(nnx.Rngs(params=jax.random.key(0))))
            definition, _ = nnx.split(block, nnx.Param)
            x_BTD, _ = nnx.merge(definition, nnx.State(part))(x_BTD, None, None, in_loop=False)
        return rms_norm(x_BTD) * params["norm"]["scale"][None, None] @ params["head"]

    whole = _jit(lambda p, t: _model(config, p)(t)[0])(params, tokens_BT)
    np.testing.assert_allclose(_jit(unrolled)(params, tokens_BT), whole, rtol=0, atol=1e-5)


def test_stacked_layers_start_differently() -> None:
    """Each repeat draws its own values; the same key draws them again, another one others."""
    config = _config(6)
    w_in = _params(config)["groups"]["layer_0"]["mixer"]["w_in"]
    assert w_in.shape[0] == 2
    assert float(jnp.max(jnp.abs(w_in[0] - w_in[1]))) > 0.1
    again = _jit(describe_model(config, VOCAB_SIZE).init)
    for mine, other in zip(
        jax.tree.leaves(again(jax.random.key(0))), jax.tree.leaves(_params(config)), strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    assert float(jnp.max(jnp.abs(again(jax.random.key(1))["embed"] - _params(config)["embed"]))) > 1


@pytest.mark.parametrize("num_layers", [1, 5, 7])
def test_every_parameter_has_its_axes(num_layers: int) -> None:
    """One for each dimension, all of them known to the mesh's table; float32 throughout."""
    config = _config(num_layers, "spectral,window,attention")
    shapes, axes = _shapes(config), describe_model(config, VOCAB_SIZE).axes
    flat, structure = jax.tree.flatten(shapes)
    flat_axes = structure.flatten_up_to(axes)
    assert len(flat) > 10
    for shape, names in zip(flat, flat_axes, strict=True):
        assert len(shape.shape) == len(names), (shape.shape, names)
        assert set(names) <= set(RULES), names
        assert shape.dtype == jnp.float32
    for names in jax.tree.leaves(axes.get("groups", {}), is_leaf=lambda n: isinstance(n, tuple)):
        assert names[0] == "layers"


def test_parameters_are_twelve_squares_a_layer() -> None:
    """The sizes that the three levels are named by: 38M, 302M, 2.4B."""
    for dim, layers, millions in ((512, 12, 38), (1024, 24, 302), (2048, 48, 2400)):
        shapes = _shapes(resolve(from_flat({"hidden_dim": dim, "num_layers": layers})))
        total = sum(math.prod(p.shape) for p in jax.tree.leaves(shapes))
        assert total == pytest.approx(12 * dim**2 * layers, rel=0.03)
        assert total == pytest.approx(millions * 1e6, rel=0.03)


def test_generation_needs_a_state_that_does_not_grow() -> None:
    model = _model(_config(2, "spectral,window"), _params(_config(2, "spectral,window")))
    assert all(leaf.shape[1] == 3 for leaf in jax.tree.leaves(model.init_state(3)["groups"]))
    for pattern, num_layers in (("spectral,attention", 2), ("attention,spectral", 1)):
        full = _config(num_layers, pattern)
        with pytest.raises(ValueError, match="layer_pattern"):
            _model(full, _params(full)).init_state(1)


def test_the_first_loss_is_that_of_even_odds() -> None:
    config = _config(3, hidden_dim=64)
    step = _jit(functools.partial(_loss, config))
    assert float(step(_params(config), _tokens(8, 65))) == pytest.approx(math.log(256), abs=0.03)


def test_the_three_forms_give_the_same_logits() -> None:
    """Also from chunks of another size: how it is computed is no part of the model."""
    config, tokens_BT = _config(5), _tokens(2, 29)
    logits = {}
    for form, chunk_size in (("chunked", 8), ("chunked", 64), ("fft", 8), ("recurrent", 8)):
        changed = with_values(config, {"spectral_form": form, "chunk_size": chunk_size})
        run = _jit(functools.partial(lambda c, p, t: _model(c, p)(t)[0], changed))
        logits[form, chunk_size] = np.asarray(run(_params(config), tokens_BT))
    expected = logits.pop(("recurrent", 8))
    for value in logits.values():
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5 * scale)


def test_pieces_give_the_whole_at_64_times_the_training_length() -> None:
    """Uneven pieces; the last logits as exact as the first, and no state that grows."""
    config = _config(5, window=64)
    tokens_BT = _tokens(2, 64 * LENGTH)
    model = _model(config, _params(config))
    run = _jit(lambda tokens, state: model(tokens, state))
    whole, last = run(tokens_BT, None)
    state, pieces, start = model.init_state(2), [], 0
    for length in (681, 1, 1, 684, 681):
        logits, state = run(tokens_BT[:, start : start + length], state)
        pieces.append(logits)
        start += length
    assert start == 64 * LENGTH
    scale = float(jnp.max(jnp.abs(whole)))
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=0, atol=1e-4 * scale)
    for mine, other in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_unrolled_blocks_are_the_loop(remat: str) -> None:
    """The loss and its gradients; also where activations are computed again."""
    tokens_BT = _tokens(2, 20)

    def results(unroll: str) -> Any:
        config = _config(7, unroll=unroll, remat=remat)

        def loss(params: Any, tokens_BT: jax.Array) -> jax.Array:
            return jnp.sum(jax.nn.logsumexp(_model(config, params)(tokens_BT)[0], axis=-1))

        return _jit(jax.value_and_grad(loss))(_params(_config(7)), tokens_BT)

    loop, unrolled = results("none"), results("all")
    for a, b in zip(jax.tree.leaves(loop), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
