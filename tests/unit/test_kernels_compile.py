"""The mixers' kernels compile for the GPUs they are meant for, and spill no register."""

from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spectral_dist.model.filters import balanced_poles
from spectral_dist.model.kernels.spectral import spectral_kernel
from spectral_dist.model.kernels.spectral_plan import Plan, Walk, plan_for
from spectral_dist.model.kernels.window import window_kernel
from spectral_dist.planning.compile import abstract_batch, cuda_plugin, described_mesh
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.hlo.costs import flops, uncounted_calls
from spectral_dist.planning.hlo.parse import executed, parse
from spectral_dist.settings import from_flat, resolve
from spectral_dist.training.state import abstract_state
from spectral_dist.training.step import make_train_step

pytestmark = pytest.mark.skipif(cuda_plugin() is None, reason="needs the CUDA compiler plugin")

bfloat16, f32 = jnp.bfloat16, jnp.float32
# XLA then refuses a program of which ptxas reports spilled registers. The tests' own level of
# optimization is none (tests/conftest.py): a run's is 3.
STRICT = {
    "xla_gpu_fail_ptx_compilation_on_register_spilling": True,
    "xla_backend_optimization_level": 3,
}


def _compile(gpu: str, strict: bool, form: Any, shapes: list[tuple[tuple[int, ...], Any]]) -> Any:
    """Compile the output and every gradient of a form whose arguments have these shapes."""
    mesh = described_mesh(find_gpu(gpu), (1, 1, 1), 1)
    whole = NamedSharding(mesh, PartitionSpec())
    *arrays, dout = (jax.ShapeDtypeStruct(s, d, sharding=whole) for s, d in shapes)

    def both(dout: jax.Array, *arrays: jax.Array) -> Any:
        out, pull = jax.vjp(form, *arrays)
        return out, pull(dout)

    with jax.set_mesh(mesh):
        return jax.jit(both).lower(dout, *arrays).compile(compiler_options=STRICT if strict else {})


def _spectral(gpu: str, strict: bool, batch: int, dim: int, plan: Plan | None = None) -> Any:
    bank, time, poles = balanced_poles(16, 0.5, 512.0), 2048, 16

    def reference(*_: Any) -> Any:
        raise AssertionError("the kernels take the whole sequence")

    def form(p: jax.Array, *weights: jax.Array) -> jax.Array:
        call = partial(spectral_kernel, bank=bank, group=64, reference=reference, plan=plan)
        return call(p, None, *weights)[0]

    shapes = [
        ((batch, time, 3, dim), bfloat16),
        ((4, 3, dim), f32),
        ((poles, dim), f32),
        ((dim,), f32),
        ((batch, time, dim), bfloat16),
    ]
    return _compile(gpu, strict, form, shapes)


def _window(gpu: str, strict: bool, batch: int, heads: int, groups: int, size: int) -> Any:
    def form(*arrays: jax.Array) -> jax.Array:
        query, key, value = arrays
        return window_kernel(query, key, value, None, window=512)

    shapes = [((batch, 2048, h, size), bfloat16) for h in (heads, groups, groups, heads)]
    return _compile(gpu, strict, form, shapes)


@pytest.mark.parametrize(("batch", "dim"), [(16, 512), (4, 1024), (2, 2048)])
def test_the_spectral_kernels_spill_nothing(batch: int, dim: int) -> None:
    """At the presets' widths, and the sequences of one L4 in each."""
    text = _spectral("l4", True, batch, dim).as_text()
    assert "spectral_forward" in text
    assert "spectral_backward" in text


@pytest.mark.parametrize("heads", [(8, 4), (16, 8), (32, 16)])
def test_the_window_kernels_spill_nothing(heads: tuple[int, int]) -> None:
    """At the presets' heads of queries and of keys."""
    text = _window("l4", True, 4, *heads, 64).as_text()
    for name in ("forward", "backward_keys", "backward_queries"):
        assert f"window_{name}" in text


def test_their_flops_are_counted() -> None:
    """The products of the window kernels: two forward, four and three backward."""
    program = parse(_window("l4", False, 4, 8, 4, 64).as_text())
    found = sum(
        (flops(program, e.computation, e.instruction) for e in executed(program)), Counter()
    )
    assert found["bf16"] == (2 + 4 + 3) * 2 * (4 * 8 * 2048 * 512) * 64
    assert uncounted_calls(program) == ()


def test_a_spilled_register_is_found() -> None:
    """What the tests above rely on: a cut that is too large is refused."""
    large = Plan(backward=Walk(chunk=32, held=4, warps=4))
    with pytest.raises(jax.errors.JaxRuntimeError, match="spill"):
        _spectral("l4", True, 16, 512, large)


def test_they_compile_for_an_h100() -> None:
    """Its own, larger cut of the spectral kernels; and heads of 128 channels."""
    assert "spectral_backward" in _spectral("h100", False, 16, 512).as_text()
    assert "window_backward_keys" in _window("h100", False, 4, 8, 4, 128).as_text()
    assert plan_for("NVIDIA H100 80GB HBM3") != plan_for("NVIDIA L4") == Plan()


def test_a_training_step_on_a_mesh_has_them_on_local_shards() -> None:
    """Channels and heads over tensor, sequences over fsdp: half of each on a device."""
    values = {"mesh": "1x2x2", "hidden_dim": 256, "num_layers": 3, "mlp_dim": 256, "window": 64}
    values |= {"seq_len": 128, "batch_size": 4, "accum_steps": 1, "remat": "none"}
    config = resolve(from_flat(values))
    mesh = described_mesh(find_gpu("l4"), (1, 2, 2), 4)
    with jax.set_mesh(mesh):
        step = make_train_step(config, mesh)
        text = step.lower(abstract_state(config, mesh), abstract_batch(config, mesh)).compile()
    calls = [line for line in str(text.as_text()).splitlines() if "gpu.triton" in line]
    for name in ("spectral_forward", "spectral_backward", "window_forward", "norm_backward"):
        assert any(f'name = "{name}' in line for line in calls), name
    assert any("bf16[2,128,3,128]" in line for line in calls)  # half of 4 sequences, 256 channels
    assert any("bf16[2,128,2,64]" in line for line in calls)  # half of 4 heads


def test_shards_of_time_spill_no_register_either() -> None:
    """A step over shards of time, whose kernels read what comes before their shard."""
    values = {"mesh": "1x1x2", "sequence_parallel": True, "hidden_dim": 256, "num_layers": 3}
    values |= {"mlp_dim": 256, "window": 512, "seq_len": 4096, "tau_max": 64.0}
    config = resolve(from_flat(values | {"batch_size": 4, "accum_steps": 1, "remat": "none"}))
    mesh = described_mesh(find_gpu("l4"), config.mesh.shape, 2, config.mesh.axes)
    with jax.set_mesh(mesh):
        step = make_train_step(config, mesh)
        lowered = step.lower(abstract_state(config, mesh), abstract_batch(config, mesh))
        text = str(lowered.compile(compiler_options=STRICT).as_text())
    for name in ("spectral_inflow", "spectral_backward", "window_backward_keys"):
        assert f'name = "{name}' in text, name
