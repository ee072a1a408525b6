"""The mixers alone on every mesh: between the two projections no device waits for another.

Allowed are the gather of a mixer's own parameters over fsdp, one sum over tensor after w_out (and
its mirror image in the backward pass), and the sums of the parameters' gradients. Read `forbidden`.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import Mesh

from spectral_dist.mesh import RULES, constrain, local, sharding
from spectral_dist.model.mixers import MIXERS, spectral
from spectral_dist.model.mixers.attention import full_attention
from spectral_dist.model.mixers.spectral import SpectralMixer, SpectralState
from spectral_dist.model.mixers.window import WindowState, window_attention
from spectral_dist.model.sequence import WHOLE
from spectral_dist.params import make_spec
from spectral_dist.settings import Config

ROWS, T, D, HEADS, SIZE, TAPS, POLES = 8, 32, 64, 8, 8, 4, 4
MESHES = ("8x1x1", "1x8x1", "1x1x8", "2x2x2")

# Every mixer and form on the mesh that has all three axes, the spectral ones on the others too.
CASES = [
    *[(name, "chunked", "2x2x2") for name in ("window", "attention", "ssd")],
    *[("spectral", form, mesh) for form in ("chunked", "fft") for mesh in MESHES],
]


def parts_of(name: str, config: Config, mesh: Mesh) -> tuple[Any, Any, jax.ShapeDtypeStruct]:
    """Return a mixer's description, its parameters and its input, described with shardings."""
    settings = getattr(config.mixers, name)
    spec = make_spec(lambda rngs: MIXERS[name](config.model, settings, rngs))
    params = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        spec.shapes,
        spec.shardings(mesh),
    )
    rows = sharding(mesh, "x", ("batch", "time", "width"), (ROWS, T, D))
    return spec, params, jax.ShapeDtypeStruct((ROWS, T, D), jnp.float32, sharding=rows)


def compile_mixer(name: str, config: Config, mesh: Mesh) -> tuple[str, Any]:
    """Compile a mixer and its gradients; return the program's text and the parameters."""
    spec, params, x_BTD = parts_of(name, config, mesh)

    def loss(params: Any, x_BTD: jax.Array) -> jax.Array:
        y_BTD, _ = spec.bind(params)(x_BTD, None)
        return jnp.sum(constrain(y_BTD, "batch", "time", "width") ** 2)

    where = jax.tree.map(lambda s: s.sharding, (params, x_BTD))
    with jax.set_mesh(mesh):
        grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=(None, where))
        text = grads.lower(params, x_BTD).compile().as_text() or ""
    return text, params


def kind_of_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the order of its dimensions, which the compiler may change."""
    return tuple(sorted(n for n in shape if n > 1))


def forbidden(found: list[Any], params: Any, mesh: Mesh) -> list[str]:
    """Return the collectives that a mixer may not have, as text."""
    whole: set[tuple[int, ...]] = set()
    sums: set[tuple[int, ...]] = {()}
    for leaf in jax.tree.leaves(params):
        parts = [p if isinstance(p, tuple) else (p,) for p in leaf.sharding.spec]
        ways = [mesh.shape["tensor"] if "tensor" in part else 1 for part in parts]
        over_tensor = [n // way for n, way in zip(leaf.shape, ways, strict=True)]
        whole.add(kind_of_shape(tuple(over_tensor)))
        sums |= {kind_of_shape(tuple(over_tensor)), kind_of_shape(leaf.shape)}
        sums.add(kind_of_shape(leaf.sharding.shard_shape(leaf.shape)))
    rows = ROWS // math.prod(mesh.shape[axis] for axis in RULES["batch"])
    allowed = {
        "all-gather": whole,
        "all-reduce": sums | ({kind_of_shape((rows, T, D))} if mesh.shape["tensor"] > 1 else set()),
        "reduce-scatter": sums,
    }
    return [
        c.line
        for c in found
        # From inside the mixer comes nothing but the sums of what its shards share.
        if set(re.findall(r"shard_map/([\w/]+)", c.origin)) - {"psum"}
        or not {kind_of_shape(shape) for shape in c.shapes} <= allowed.get(c.kind, set())
    ]


@pytest.mark.parametrize(("name", "form", "mesh_text"), CASES)
def test_a_mixer_has_only_the_allowed_collectives(
    model: Callable[..., Config],
    mesh_of: Callable[[Config], Mesh],
    collectives: Callable[[str], list[Any]],
    name: str,
    form: str,
    mesh_text: str,
) -> None:
    config = model(mesh_text, spectral_form=form)
    mesh = mesh_of(config)
    text, params = compile_mixer(name, config, mesh)
    found = collectives(text)
    assert found  # at least the gradients are summed
    assert forbidden(found, params, mesh) == []


@pytest.mark.parametrize("mesh_text", ["8x1x1", "2x2x2"])
def test_without_local_shards_the_fft_gathers_the_batch(
    monkeypatch: pytest.MonkeyPatch,
    model: Callable[..., Config],
    mesh_of: Callable[[Config], Mesh],
    collectives: Callable[[str], list[Any]],
    mesh_text: str,
) -> None:
    """What `local` is for, and that the test above would see it missing."""
    monkeypatch.setattr(spectral, "local", lambda function, in_axes, out_axes: function)
    config = model(mesh_text, spectral_form="fft")
    mesh = mesh_of(config)
    text, params = compile_mixer("spectral", config, mesh)
    wrong = forbidden(collectives(text), params, mesh)
    assert any("all-gather" in line for line in wrong)


def core(name: str, config: Config) -> tuple[Any, Any, Any, Any]:
    """Return what a mixer runs on local shards: function, arguments, their axes, result axes."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    if name in ("window", "attention"):
        heads = ("batch", "time", "heads", "head")
        qkv = (array(ROWS, T, HEADS, SIZE),) * 3
        if name == "attention":
            return full_attention, qkv, (heads,) * 3, heads
        past: Any = array(ROWS, config.mixers.window.window, HEADS, SIZE)
        filled: Any = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
        state = WindowState(past, past, filled)
        at_state = WindowState(heads, heads, ("batch",))  # type: ignore[arg-type]
        windowed = partial(window_attention, window=config.mixers.window.window, block_size=T)
        return windowed, (*qkv, state), (*(heads,) * 3, at_state), (heads, at_state)
    mixer = SpectralMixer(config.model, config.mixers.spectral, nnx.Rngs(params=jax.random.key(0)))
    inner = ("batch", "time", "branches", "channels")
    at_poles = ("batch", "poles", "channels")
    at_state = SpectralState(inner, at_poles)  # type: ignore[arg-type]
    state = SpectralState(array(ROWS, TAPS - 1, 3, D), array(ROWS, POLES, D))  # type: ignore[arg-type]
    weights = (array(TAPS, 3, D), array(POLES, D), array(D))
    at_weights = (("taps", "branches", "channels"), ("poles", "channels"), ("channels",))
    return (
        partial(mixer._mix, WHOLE),
        (array(ROWS, T, 3, D), state, *weights),
        (inner, at_state, *at_weights),
        (("batch", "time", "channels"), at_state),
    )


@pytest.mark.parametrize("case", ["chunked", "fft", "recurrent", "window", "attention"])
def test_the_core_of_a_mixer_has_no_collective_at_all(
    model: Callable[..., Config],
    mesh_of: Callable[[Config], Mesh],
    collectives: Callable[[str], list[Any]],
    case: str,
) -> None:
    is_attention = case in ("window", "attention")
    config = model("2x2x2", **({} if is_attention else {"spectral_form": case}))
    mesh = mesh_of(config)
    function, arguments, in_axes, out_axes = core(case, config)

    def place(axes: tuple[str, ...], array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = sharding(mesh, "argument", axes, array.shape)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)

    def is_axes(node: Any) -> bool:
        return isinstance(node, tuple) and all(isinstance(n, str) for n in node)

    placed = jax.tree.map(place, in_axes, arguments, is_leaf=is_axes)
    with jax.set_mesh(mesh):
        lowered = jax.jit(local(function, in_axes, out_axes)).lower(*placed)
        text = lowered.compile().as_text() or ""
    assert [c.line for c in collectives(text)] == []
