"""The embedding and a large vocabulary: the same on every mesh, padded rows without effect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spectral_dist.mesh import make_mesh
from spectral_dist.model.embedding import embed_tokens, padded
from spectral_dist.model.lm import describe_model
from spectral_dist.settings import MeshConfig, from_flat, resolve
from spectral_dist.training.loss import loss_sums

V = 1500  # above a one-hot product's, and no multiple of 128


@pytest.mark.parametrize(
    ("mesh_shape", "sequence"),
    [("2x1x1", False), ("2x2x2", False), ("1x1x4", False), ("1x2x2", True)],
)
def test_loss_and_gradient_are_those_of_one_device(mesh_shape: str, sequence: bool) -> None:
    layers = {"hidden_dim": 32, "head_dim": 8, "num_layers": 1, "seq_len": 64, "batch_size": 4}
    config = resolve(from_flat({**layers, "compute_dtype": "float32"}))
    spec = describe_model(config, V)
    tokens = np.random.default_rng(0).integers(0, V, (4, 65)).astype(np.int32)

    def run(shape: str) -> tuple[jax.Array, dict[str, np.ndarray]]:
        settings = MeshConfig(mesh=shape, sequence_parallel=sequence)
        sizes = settings.shape
        mesh = make_mesh(sizes, jax.devices()[: int(np.prod(sizes))], settings.axes)
        with jax.set_mesh(mesh):
            params = jax.jit(
                lambda: spec.init(jax.random.key(0)), out_shardings=spec.shardings(mesh)
            )()
            batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
            placed = jax.device_put(tokens, batch)
            step = jax.jit(jax.value_and_grad(lambda p: loss_sums(spec.bind(p), placed, 1e-4)[0]))
            loss, grads = step(params)
        return loss, jax.tree.map(np.asarray, grads)

    (loss, grads), (wanted, expected) = run(mesh_shape), run("1x1x1")
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for name in ("embed", "head"):
        np.testing.assert_allclose(grads[name], expected[name], rtol=2e-3, atol=2e-4)
    assert not grads["embed"][V:].any()


def test_a_row_that_fills_the_table_up_has_no_probability() -> None:
    config = resolve(from_flat({"hidden_dim": 32, "head_dim": 8, "num_layers": 1, "seq_len": 64}))
    spec = describe_model(config, V)
    params = spec.init(jax.random.key(0))
    logits, _ = spec.bind(params)(jnp.zeros((1, 4), jnp.int32))
    assert logits.shape[-1] == padded(V) == 1536
    assert not np.asarray(jax.nn.softmax(logits))[..., V:].any()


def test_both_forms_look_up_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    table = jax.random.normal(jax.random.key(1), (1024, 8))
    tokens = jax.random.randint(jax.random.key(2), (2, 5), 0, 1024)

    def run() -> tuple[jax.Array, jax.Array]:
        def total(table: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(embed_tokens(tokens, table, jnp.dtype("float32"))))

        return embed_tokens(tokens, table, jnp.dtype("float32")), jax.grad(total)(table)

    gathered = run()
    monkeypatch.setattr("spectral_dist.model.embedding._ONE_HOT", 1024)
    for one, other in zip(gathered, run(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
