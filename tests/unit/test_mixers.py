"""A mixer is one class and one line in the table: all the rest follows from what it declares."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectral_dist.data.mixture import validation_windows
from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokens import TokenFile
from spectral_dist.mesh import local, make_mesh
from spectral_dist.model.flops import flops_per_token
from spectral_dist.model.layers import fan_in, parameter
from spectral_dist.model.mixers import MIXERS
from spectral_dist.model.sampling import Rules, sample
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.roofline import predict, rates_of
from spectral_dist.planning.search.bounds import find_shapes, memory_bound, time_bound
from spectral_dist.planning.search.worker import answer
from spectral_dist.settings import (
    Config,
    MeshConfig,
    MixersConfig,
    ModelConfig,
    from_flat,
    relations,
    resolve,
)
from spectral_dist.training.evaluation import Evaluation
from spectral_dist.training.metrics import find_peak
from spectral_dist.training.state import init_state, model_spec
from spectral_dist.training.step import batch_sharding, make_train_step

D, F, V, T = 16, 32, 256, 16
MATRICES = 2 * (2 * D * D + 3 * D * F) + D * V
FLOPS = 6 * MATRICES + 3 * 2 * (2 * D)


@dataclasses.dataclass(frozen=True)
class AverageConfig:
    """Its section of settings."""

    keep: float = 0.5

    def check(self, model: ModelConfig, mesh: MeshConfig) -> None:
        if model.hidden_dim % mesh.shape[2]:
            raise ValueError(f"hidden_dim={model.hidden_dim}: must be a multiple of tensor")


class Average(nnx.Module):
    """h[t] = keep h[t - 1] + (x W_in)[t], and h W_out: a running average of every channel."""

    def __init__(self, model: ModelConfig, settings: AverageConfig, rngs: nnx.Rngs) -> None:
        dim = model.hidden_dim
        self.keep = settings.keep
        self.dim = dim
        self.w_in = parameter(rngs, (dim, dim), ("embed", "channels"), fan_in(dim))
        self.w_out = parameter(rngs, (dim, dim), ("channels", "embed"), fan_in(dim))

    def flops(self, seq_len: int) -> float:
        del seq_len
        return 2.0 * self.dim  # half of what was, and the sum

    def init_state(self, batch: int, dtype: jnp.dtype) -> jax.Array:
        return jnp.zeros((batch, self.dim), dtype)

    def __call__(
        self, x_BTD: jax.Array, state: jax.Array | None, reach: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        assert reach is None  # it cannot begin anew at a document
        dtype = x_BTD.dtype
        state = self.init_state(x_BTD.shape[0], dtype) if state is None else state

        def average(x_BTD: jax.Array, state_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
            def token(h_BD: jax.Array, x_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
                h_BD = h_BD * self.keep + x_BD
                return h_BD, h_BD

            last_BD, h_TBD = jax.lax.scan(token, state_BD, x_BTD.swapaxes(0, 1))
            return h_TBD.swapaxes(0, 1), last_BD

        at_x, at_state = ("batch", "time", "channels"), ("batch", "channels")
        h_BTD, state = local(average, (at_x, at_state), (at_x, at_state))(
            x_BTD @ self.w_in[...].astype(dtype), state
        )
        return h_BTD @ self.w_out[...].astype(dtype), state


@pytest.fixture(scope="module", autouse=True)
def one_more_mixer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        names = (*relations.mixer_names(), "average")
        patch.setattr(relations, "mixer_names", lambda: names)
        patch.setattr(MixersConfig, "average", AverageConfig(), raising=False)
        patch.setitem(MIXERS, "average", Average)
        yield


def make(mesh: str = "2x2x2", **changes: Any) -> Config:
    values: dict[str, Any] = {"hidden_dim": D, "mlp_dim": F, "num_layers": 2, "mesh": mesh}
    values |= {"layer_pattern": "average", "head_dim": 2, "seq_len": T, "batch_size": 8}
    values |= {"compute_dtype": "float32", "eval_lengths": "1", "eval_windows": 5, "lr": 1e-2}
    values |= {"steps": 20, "warmup_steps": 1, "data_paths": "a.txt", "data_weights": "1"}
    return resolve(from_flat(values | changes))


@pytest.fixture(scope="module")
def trained(one_more_mixer: None) -> tuple[Any, list[float]]:
    """Return the parameters after some steps on one batch, on eight devices, and the losses."""
    config = make()
    mesh = make_mesh(config.mesh.shape)
    tokens = np.random.default_rng(0).integers(97, 110, (1, 8, T + 1)).astype(np.uint8)
    with jax.set_mesh(mesh):
        state, step = init_state(config, mesh), make_train_step(config, mesh)
        placed = jax.device_put(tokens, batch_sharding(config, mesh))
        losses = []
        for _ in range(10):
            state, metrics = step(state, placed)
            losses.append(float(metrics["loss"]))
    params = jax.device_put(jax.device_get(state.params), jax.devices()[0])
    return params, losses


def test_the_table_is_that_of_the_settings() -> None:
    assert tuple(MIXERS) == relations.mixer_names()


def test_its_own_rules_are_asked_and_no_other() -> None:
    """None of attention's: neither an even head_dim nor heads that a mesh divides."""
    assert make("1x1x1", head_dim=7, num_kv_heads=5).model.head_dim == 7
    with pytest.raises(ValueError, match="hidden_dim=10: must be a multiple of tensor"):
        make("1x1x4", hidden_dim=10)


def test_its_flops_are_counted() -> None:
    """Two layers of its two matrices and the MLP's three, the head, and what it declares."""
    spec = model_spec(make())
    assert spec.matrix_size == MATRICES
    assert flops_per_token(spec, T) == FLOPS


def test_it_learns(trained: tuple[Any, list[float]]) -> None:
    _, losses = trained
    assert losses[0] == pytest.approx(math.log(V), abs=0.2)
    assert losses[-1] < losses[0] - 0.5


def test_the_dry_run_and_the_bounds_know_it(trained: tuple[Any, list[float]]) -> None:
    """Compiled for eight devices: no less than the bounds, and a utilisation by its FLOPs."""
    config = make()
    request = {"config": config.flat(), "gpu": None, "per_host": 8, "unlimited": False}
    outcome = answer(request | {"whole": False})["outcome"]
    shapes = find_shapes(config)
    assert outcome["peak"] >= memory_bound(config, shapes) > outcome["peak"] / 10
    bound = time_bound(config, shapes, rates_of(None), 8)
    assert outcome["kernel_seconds"] >= bound.kernel_seconds > 0
    assert outcome["communication_seconds"] >= bound.communication_seconds > 0


def test_utilisation_counts_what_it_declares() -> None:
    config, gpu = make("1x1x1"), find_gpu("l4")
    program = "HloModule step\n\nENTRY %main (a: f32[99]) -> f32[99] {\n"
    program += "  %a = f32[99]{0} parameter(0)\n  ROOT %b = f32[99]{0} add(%a, %a)\n}\n"
    found = predict(program, config, gpu, 1)
    peak = find_peak(gpu.device_kind)
    assert peak is not None
    assert found.mfu == pytest.approx(found.tokens_per_second * FLOPS / peak.float32)


def test_it_generates_what_it_computes_as_a_whole(trained: tuple[Any, list[float]]) -> None:
    """Token by token with the state, against one forward pass over all of them."""
    spec, prompt = model_spec(make("1x1x1")), b"abc"
    params, _ = trained
    draws: dict[str, Any] = {"end": 0, "rules": Rules(0.0), "seed": 0}
    text = list(sample(spec, params, prompt, max_new_tokens=10, **draws))
    tokens = np.asarray([[0, *prompt, *text]], np.int32)
    logits, _ = jax.jit(lambda tokens: spec.bind(params)(tokens))(tokens)
    assert np.argmax(logits[0, len(prompt) : -1], axis=-1).tolist() == text
    assert len(text) == 10


def test_it_is_evaluated(trained: tuple[Any, list[float]]) -> None:
    params, _ = trained
    config, mesh = make("1x1x1"), make_mesh((1, 1, 1), jax.devices()[:1])
    text = np.random.default_rng(1).integers(97, 110, 200).astype(np.uint8)
    file = TokenFile("a", Path("a.bin"), Tokens([text]), 1, "", 50)
    with jax.set_mesh(mesh):
        found = Evaluation(config, [file], mesh, report=pytest.fail).by_dataset(params)
    windows = validation_windows(file, T, 5).astype(np.int32)
    logits, _ = model_spec(config).bind(params)(jnp.asarray(windows[:, :-1]))
    shares = jnp.take_along_axis(jax.nn.log_softmax(logits), windows[:, 1:, None], axis=-1)
    expected = -float(jnp.mean(shares)) / math.log(2)
    assert found["val/a/bits_per_byte"] == pytest.approx(expected, rel=1e-5)
