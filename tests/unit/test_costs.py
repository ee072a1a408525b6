from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from spectral_dist.planning.hlo.costs import flops, moved_bytes, uncounted_calls
from spectral_dist.planning.hlo.parse import HloProgram, executed, parse


def total_flops(program: HloProgram) -> Counter[str]:
    total: Counter[str] = Counter()
    for e in executed(program):
        counted = flops(program, e.computation, e.instruction)
        total += Counter({kind: e.times * n for kind, n in counted.items()})
    return total


def compiled(function: Any, *shapes: tuple[int, ...]) -> HloProgram:
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return parse(jax.jit(function).lower(*structs).compile().as_text())


def test_products_of_nested_scans():
    def inner(x_BD: jax.Array, w_DD: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x_BD @ w_DD), None

    def outer(x_BD: jax.Array, w_LDD: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.scan(inner, x_BD, w_LDD)[0], None

    program = compiled(
        lambda x, w, v: jax.lax.scan(outer, x, w)[0] @ v, (4, 32), (5, 3, 32, 32), (32, 8)
    )
    assert total_flops(program) == {"tf32": 15 * 2 * 4 * 32 * 32 + 2 * 4 * 32 * 8}


def test_batched_and_several_summed_dimensions():
    program = compiled(
        lambda x, y: jnp.einsum("bijd,bkdj->bik", x, y, precision="highest"),
        (3, 8, 16, 5),
        (3, 24, 5, 16),
    )
    assert total_flops(program) == {"f32": 2 * 3 * 8 * 24 * 16 * 5}


def test_forward_and_backward_are_three_products():
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    program = compiled(jax.grad(loss, (0, 1)), (32, 48), (16, 32))
    assert total_flops(program) == {"tf32": 3 * 2 * 16 * 32 * 48}


# In the style of XLA's text for GPUs.
GPU_TEXT = """HloModule jit_step, is_scheduled=true

%gemm_fusion_dot.1_computation (parameter_0: bf16[64,128], parameter_1: f32[128,32]) -> f32[64,32] {
  %parameter_0 = bf16[64,128]{1,0} parameter(0)
  %parameter_1 = f32[128,32]{1,0} parameter(1)
  %convert.1 = bf16[128,32]{1,0} convert(%parameter_1)
  ROOT %dot.1 = f32[64,32]{1,0} dot(%parameter_0, %convert.1), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, backend_config={"sizes":["16"]}
}

%fused_slice (param_0: f32[10,64,32], param_1: s32[]) -> f32[64,32] {
  %param_0 = f32[10,64,32]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %bitcast.1 = f32[10,2048]{1,0} bitcast(%param_0)
  %dynamic-slice.1 = f32[1,2048]{1,0} dynamic-slice(%bitcast.1, %param_1, %zero), \
dynamic_slice_sizes={1,2048}
  %bitcast.2 = f32[64,32]{1,0} bitcast(%dynamic-slice.1)
  ROOT %negate.1 = f32[64,32]{1,0} negate(%bitcast.2)
}

%fused_update (param_0.1: f32[10,64,32], param_1.1: f32[64,32], param_2.1: s32[]) -> \
f32[10,64,32] {
  %param_0.1 = f32[10,64,32]{2,1,0} parameter(0)
  %param_1.1 = f32[64,32]{1,0} parameter(1)
  %param_2.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %bitcast.3 = f32[1,64,32]{2,1,0} bitcast(%param_1.1)
  ROOT %dynamic-update-slice.1 = f32[10,64,32]{2,1,0} dynamic-update-slice(%param_0.1, \
%bitcast.3, %param_2.1, %zero.1, %zero.1)
}

%fused_both (param_0.2: f32[10,64,32], param_1.2: f32[64,32], param_2.2: s32[]) -> \
(f32[10,64,32], bf16[64,32]) {
  %param_0.2 = f32[10,64,32]{2,1,0} parameter(0)
  %param_1.2 = f32[64,32]{1,0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %bitcast.4 = f32[1,64,32]{2,1,0} bitcast(%param_1.2)
  %dynamic-update-slice.2 = f32[10,64,32]{2,1,0} dynamic-update-slice(%param_0.2, %bitcast.4, \
%param_2.2, %zero.2, %zero.2)
  %convert.2 = bf16[64,32]{1,0} convert(%param_1.2)
  ROOT %tuple.1 = (f32[10,64,32]{2,1,0}, bf16[64,32]{1,0}) tuple(%dynamic-update-slice.2, \
%convert.2)
}

%fused_read_twice (param_0.3: f32[10,64,32], param_1.3: s32[]) -> f32[10,64,32] {
  %param_0.3 = f32[10,64,32]{2,1,0} parameter(0)
  %param_1.3 = s32[] parameter(1)
  %zero.3 = s32[] constant(0)
  %dynamic-slice.2 = f32[1,64,32]{2,1,0} dynamic-slice(%param_0.3, %param_1.3, %zero.3, %zero.3), \
dynamic_slice_sizes={1,64,32}
  %bitcast.5 = f32[64,32]{1,0} bitcast(%dynamic-slice.2)
  %broadcast.1 = f32[10,64,32]{2,1,0} broadcast(%bitcast.5), dimensions={1,2}
  ROOT %add.1 = f32[10,64,32]{2,1,0} add(%param_0.3, %broadcast.1)
}

ENTRY %main (a: bf16[64,128], b: f32[128,32], s: f32[10,64,32], i: s32[]) -> f32[64,32] {
  %a = bf16[64,128]{1,0} parameter(0)
  %b = f32[128,32]{1,0} parameter(1)
  %s = f32[10,64,32]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %zero.4 = s32[] constant(0)
  %gemm_fusion_dot.1 = f32[64,32]{1,0} fusion(%a, %b), kind=kCustom, \
calls=%gemm_fusion_dot.1_computation, \
backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %cublas = (f32[128,128]{1,0}, s8[4194304]{0}) custom-call(%a, %a), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"],\
"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},"precision_config":\
{"operand_precision":["DEFAULT","DEFAULT"]}}}
  %cublaslt = (f32[10,32,32]{2,1,0}, s8[1024]{0}) custom-call(%s, %s), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"],\
"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]},"precision_config":\
{"operand_precision":["HIGHEST","HIGHEST"]}}}
  %sort = (f32[10,64,32]{2,1,0}, s8[16]{0}) custom-call(%s), \
custom_call_target="__cub$DeviceRadixSort"
  %image = f32[2,16,16,3]{3,2,1,0} broadcast(%zero.4), dimensions={}
  %kernel = f32[3,3,3,8]{3,2,1,0} broadcast(%zero.4), dimensions={}
  %conv = f32[2,14,14,8]{3,2,1,0} convolution(%image, %kernel), window={size=3x3}, \
dim_labels=b01f_01io->b01f
  %slice = f32[64,32]{1,0} fusion(%s, %i), kind=kLoop, calls=%fused_slice
  %update = f32[10,64,32]{2,1,0} fusion(%s, %b, %i), kind=kLoop, calls=%fused_update
  %both = (f32[10,64,32]{2,1,0}, bf16[64,32]{1,0}) fusion(%s, %slice, %i), kind=kLoop, \
calls=%fused_both
  %twice = f32[10,64,32]{2,1,0} fusion(%s, %i), kind=kLoop, calls=%fused_read_twice
  %copy.1 = f32[128,32]{0,1} copy(%b)
  %bitcast.6 = f32[4096]{0} bitcast(%b)
  %dynamic-slice.3 = f32[1,64,32]{2,1,0} dynamic-slice(%s, %i, %zero.4, %zero.4), \
dynamic_slice_sizes={1,64,32}
  %dynamic-update-slice.3 = f32[10,64,32]{2,1,0} dynamic-update-slice(%s, %dynamic-slice.3, %i, \
%zero.4, %zero.4)
  %all-reduce-start.1 = f32[128,32]{1,0} all-reduce-start(%b), replica_groups={}, to_apply=%add
  %all-reduce-done.1 = f32[128,32]{1,0} all-reduce-done(%all-reduce-start.1)
  ROOT %result = (f32[64,32]{1,0}) tuple(%gemm_fusion_dot.1)
}
"""

PART = 64 * 32 * 4  # bytes of one of the ten parts of s


@pytest.fixture(scope="module")
def program() -> HloProgram:
    return parse(GPU_TEXT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemm_fusion_dot.1", {"bf16": 2 * 64 * 32 * 128}),
        ("cublas", {"bf16": 2 * 128 * 128 * 64}),
        ("cublaslt", {"f32": 2 * 10 * 32 * 32 * 64}),
        ("conv", {"tf32": 2 * (2 * 14 * 14 * 8) * (3 * 3 * 3)}),
        ("sort", {}),
        ("twice", {}),
    ],
)
def test_flops_of_a_gpu_instruction(program: HloProgram, name: str, expected: dict[str, int]):
    entry = program.entry
    assert flops(program, entry, entry.instructions[name]) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemm_fusion_dot.1", 64 * 128 * 2 + 128 * 32 * 4 + 64 * 32 * 4),
        ("cublas", 2 * (64 * 128 * 2) + 128 * 128 * 4),  # without its workspace
        ("slice", 2 * PART + 4),
        ("update", 2 * PART + 4),
        ("both", PART + 4 + PART + PART // 2),
        ("twice", 20 * PART + 4),  # all of it is read beside the slice
        ("copy.1", 2 * 128 * 32 * 4),
        ("image", 4 + 2 * 16 * 16 * 3 * 4),
        ("dynamic-slice.3", 2 * PART + 12),
        ("dynamic-update-slice.3", 2 * PART + 12),
        ("bitcast.6", 0),
        ("all-reduce-start.1", 0),
        ("all-reduce-done.1", 0),
        ("result", 0),
        ("a", 0),
    ],
)
def test_bytes_of_a_gpu_instruction(program: HloProgram, name: str, expected: int):
    entry = program.entry
    assert moved_bytes(program, entry, entry.instructions[name]) == expected


def test_library_calls_that_are_not_counted_are_named(program: HloProgram):
    assert uncounted_calls(program) == ("__cub$DeviceRadixSort",)


def test_bytes_of_a_real_scan():
    """A scan over rows: each turn reads one row and writes one, whatever the compiler fuses."""
    rows, width = 64, 4096

    def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = carry * 0.5 + row
        return carry, jnp.sin(carry)

    program = compiled(lambda x: jax.lax.scan(body, jnp.zeros(width), x)[1], (rows, width))
    moved = sum(
        e.times * moved_bytes(program, e.computation, e.instruction) for e in executed(program)
    )
    once = rows * width * 4
    assert 3 * once <= moved <= 8 * once  # row, carry and result, and copies between kernels


# In the style of XLA's text for a Pallas kernel.
KERNEL_TEXT = r"""HloModule jit_step, is_scheduled=true

ENTRY %main (a: bf16[64,128], b: f32[16]) -> (f32[64], f32[32]) {
  %a = bf16[64,128]{1,0} parameter(0)
  %b = f32[16]{0} parameter(1)
  ROOT %call = (f32[64]{0}, f32[32]{0}) custom-call(%a, %b), \
custom_call_target="__gpu$xla.gpu.triton", \
backend_config={ir = "ML", name = "spectral_forward", serialized_metadata = \
"{\22flops\22: \221234\22, \22operands\22: \22bf16\22}"}
}
""".replace("\\\n", "")


def test_a_kernel_counts_what_it_declares_its_operands_and_all_its_results() -> None:
    program = parse(KERNEL_TEXT)
    assert total_flops(program) == {"bf16": 1234}
    assert uncounted_calls(program) == ()
    assert [moved_bytes(program, e.computation, e.instruction) for e in executed(program)][-1] == (
        2 * 64 * 128 + 4 * 16 + 4 * 64 + 4 * 32
    )
    silent = parse(KERNEL_TEXT.replace("flops", "FLOPs"))
    assert total_flops(silent) == {}
    assert uncounted_calls(silent) == ("__gpu$xla.gpu.triton",)
