"""Sequence parallelism: the same losses and gradients, and traffic that does not grow with time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from spectral_dist.model.sampling import Rules, sample
from spectral_dist.settings import Config
from spectral_dist.training.state import init_state, model_spec
from spectral_dist.training.step import make_accumulate, make_eval_step

MakeConfig = Callable[..., Config]
MESHES = ("1x1x8", "2x2x2")


@pytest.fixture(scope="module")
def long_model(model: MakeConfig) -> MakeConfig:
    """Return (mesh, **changes) -> settings; a window is longer than a shard of eight."""

    def make(mesh: str, **changes: Any) -> Config:
        values = {"layer_pattern": "spectral,window", "seq_len": 256, "window": 40, "batch_size": 4}
        values |= {"num_layers": 4, "accum_steps": 1}
        return model(mesh, sequence_parallel=True, **values | changes)

    return make


def gradients(config: Config, mesh: Mesh) -> tuple[Any, Any]:
    """Return the loss of a batch and its gradient, on the host."""
    shape = (1, config.data.batch_size, config.data.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        found = jax.jit(make_accumulate(config, mesh))(params, tokens)
        return jax.tree.map(np.asarray, found)


@pytest.fixture(scope="module")
def truth(long_model: MakeConfig, mesh_of: Callable[[Config], Mesh]) -> tuple[Any, Any]:
    """Return the loss and gradient on one device."""
    config = long_model("1x1x1")
    return gradients(config, mesh_of(config))


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_and_gradients_are_those_of_one_device(
    mesh: str, long_model: MakeConfig, mesh_of: Callable[[Config], Mesh], truth: tuple[Any, Any]
) -> None:
    config = long_model(mesh)
    loss, grads = gradients(config, mesh_of(config))
    assert loss == pytest.approx(truth[0], rel=3e-7)
    for found, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(truth[1]), strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=3e-6 * np.abs(exact).max())


def test_ssd_can_be_divided(long_model: MakeConfig, mesh_of: Callable[[Config], Mesh]) -> None:
    found = [
        gradients(config, mesh_of(config))
        for config in (
            long_model(mesh, layer_pattern="ssd,window", ssd_chunk_size=16)
            for mesh in ("1x1x1", "1x1x4")
        )
    ]
    assert found[1][0] == pytest.approx(found[0][0], rel=3e-7)
    # Its norm of queries and keys amplifies rounding: chunks of 16 and of 64 tokens on one device
    # differ by 5e-5.
    for mine, exact in zip(*(jax.tree.leaves(grads) for _, grads in found), strict=True):
        np.testing.assert_allclose(mine, exact, rtol=0, atol=3e-4 * np.abs(exact).max())


def test_documents_begin_anew_in_every_shard(
    long_model: MakeConfig, mesh_of: Callable[[Config], Mesh]
) -> None:
    """Some shards of time hold no beginning, some several; losses and gradients."""
    tokens = np.random.default_rng(4).integers(1, 256, (1, 4, 257)).astype(np.uint8)
    for row, places in enumerate(([5, 70, 71, 200], [64], [], [100, 128, 192, 255])):
        tokens[0, row, places] = 0
    found = []
    changes = {"layer_pattern": "spectral,ssd,window", "num_layers": 3, "document_mask": True}
    for mesh in ("1x1x1", "2x1x4"):
        config = long_model(mesh, **changes)
        with jax.set_mesh(mesh_of(config)):
            params = init_state(config, mesh_of(config)).params
            result = jax.jit(make_accumulate(config, mesh_of(config)))(params, tokens)
            found.append(jax.tree.map(np.asarray, result))
    assert found[1][0] == pytest.approx(found[0][0], rel=3e-7)
    for mine, exact in zip(*(jax.tree.leaves(grads) for _, grads in found), strict=True):
        np.testing.assert_allclose(mine, exact, rtol=0, atol=3e-4 * np.abs(exact).max())


def test_held_out_losses_are_those_of_one_device(
    long_model: MakeConfig, mesh_of: Callable[[Config], Mesh]
) -> None:
    """Each sequence's sum, also of the last targets of a longer context: not once a shard."""
    tokens = np.random.default_rng(2).integers(0, 256, (4, 513)).astype(np.uint8)
    spec, found = model_spec(long_model("1x1x1")), []
    params = spec.init(jax.random.key(0))
    for config in (long_model("1x1x1"), long_model("2x1x4")):
        mesh = mesh_of(config)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, spec.shardings(mesh))
            found.append(np.asarray(make_eval_step(config, mesh)(placed, tokens, 256)))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    assert found[0].mean() / 256 == pytest.approx(np.log(256), rel=0.02)  # nats, of 256 targets


@pytest.mark.parametrize("form", ["fft", "recurrent"])
def test_every_form_of_the_spectral_mixer_can_be_divided(
    form: str, long_model: MakeConfig, mesh_of: Callable[[Config], Mesh], truth: tuple[Any, Any]
) -> None:
    config = long_model("1x1x4", spectral_form=form)
    loss, _ = gradients(config, mesh_of(config))
    assert loss == pytest.approx(truth[0], rel=1e-6)


@pytest.mark.parametrize("pattern", ["spectral,window", "ssd"])
def test_a_state_goes_in_and_comes_out(
    pattern: str, long_model: MakeConfig, mesh_of: Callable[[Config], Mesh]
) -> None:
    """A sequence in two pieces, each over four shards, is the sequence at once on one device."""
    whole, divided = (long_model(mesh, layer_pattern=pattern) for mesh in ("1x1x1", "1x1x4"))
    tokens = np.random.default_rng(1).integers(0, 256, (2, 512))
    spec = model_spec(whole)
    params = spec.init(jax.random.key(0))
    forward = jax.jit(lambda params, tokens, state: spec.bind(params)(tokens, state))
    exact, last = forward(params, tokens, None)
    mesh = mesh_of(divided)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, spec.shardings(mesh))
        first, state = forward(placed, tokens[:, :256], None)
        second, state = forward(placed, tokens[:, 256:], state)
    found = jnp.concatenate([np.asarray(first), np.asarray(second)], axis=1)
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=2e-5 * max(1, np.abs(b).max()))


def test_traffic_does_not_grow_with_the_sequence(
    long_model: MakeConfig, compiled_step: Callable[[Config], Any], collectives: Any
) -> None:
    """Of the compiled step; and what crosses in a layer are states and the last window."""
    found = {}
    for seq_len in (512, 2048):
        config = long_model("1x1x4", seq_len=seq_len, batch_size=1, tau_max=64.0)
        found[seq_len] = collectives(compiled_step(config).as_text())
    assert sum(c.bytes for c in found[512]) == sum(c.bytes for c in found[2048])
    assert sorted(c.kind for c in found[512]) == sorted(c.kind for c in found[2048])
    assert {"collective-permute", "all-gather"} <= {c.kind for c in found[2048]}
    # Nothing of a sequence's length crosses: no dimension of a collective is that of a shard.
    assert not any(2048 // 4 in shape for c in found[2048] for shape in c.shapes)


def test_generation_and_what_cannot_be_divided(
    long_model: MakeConfig, mesh_of: Callable[[Config], Mesh]
) -> None:
    """One token is computed whole on every shard; a length that does not divide is refused."""
    spec = model_spec(long_model("1x1x1"))
    params, texts = spec.init(jax.random.key(0)), []
    for config in (long_model("1x1x1"), long_model("1x1x4")):
        mesh = mesh_of(config)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, spec.shardings(mesh))
            drawn = sample(
                spec,
                placed,
                [5] * 20,
                end=0,
                max_new_tokens=4,
                rules=Rules(0.0),
                seed=0,
            )
            texts.append(list(drawn))
            if mesh.size > 1:
                with pytest.raises(ValueError, match="6 of them cannot be divided into 4 shards"):
                    spec.bind(placed)(jnp.zeros((1, 6), jnp.int32))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 4


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        ("1x1x8", {"seq_len": 128}, "seq_len=128: must be a multiple of 32 x 8 tokens"),
        ("1x1x2", {"layer_pattern": "spectral,attention"}, "sequence_parallel: mesh=1x1x2"),
        ("1x1x2", {"sequence_parallel": "maybe"}, "sequence_parallel='maybe': must be true or"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    mesh: str, changes: dict[str, Any], message: str, model: MakeConfig
) -> None:
    values = {"layer_pattern": "spectral,window", "sequence_parallel": True, "seq_len": 256}
    values |= changes
    with pytest.raises(ValueError, match=message):
        model(mesh, **values)
