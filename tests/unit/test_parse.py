import jax
import jax.numpy as jnp
import pytest

from spectral_dist.planning.hlo.parse import HloProgram, Shape, executed, parse, unknown_loops

# In the style of XLA's text for GPUs.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=8

FileNames
1 "step.py"

%fused_add (param_0: f32[8,4], param_1: f32[]) -> f32[8,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = f32[] parameter(1)
  %broadcast.1 = f32[8,4]{1,0} broadcast(%param_1), dimensions={}
  ROOT %add.1 = f32[8,4]{1,0} add(%param_0, %broadcast.1)
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %one = f32[] constant(1)
  %loop_add_fusion = f32[8,4]{1,0} fusion(%x, %one), kind=kLoop, calls=%fused_add, \
metadata={op_name="jit(step)/while/body/add{(%x)}, calls=%nothing" stack_frame_id=3}
  ROOT %tuple.1 = (s32[], f32[8,4]{1,0:T(8,128)}) tuple(%i, %loop_add_fusion)
}

%condition (arg.1: (s32[], f32[8,4])) -> pred[] {
  %arg.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%called (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %negate.1 = f32[8,4]{1,0} negate(%p)
}

ENTRY %main (a: f32[8,4], b: bf16[2,3]) -> (f32[8,4], bf16[2,3]) {
  %a = f32[8,4]{1,0} parameter(0), sharding={devices=[8,1]<=[8]}, metadata={op_name="a"}
  %b = bf16[2,3]{1,0} parameter(1)
  %text = s8[5]{0} constant("(%a)\\"")
  %zero = s32[] constant(0)
  %tuple.2 = (s32[], /*index=1*/f32[8,4]{1,0}) tuple(%zero, /*index=1*/%a)
  %while.1 = (s32[], f32[8,4]{1,0}) while(%tuple.2), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}
  %y = f32[8,4]{1,0} get-tuple-element(%while.1), index=1
  %call.1 = f32[8,4]{1,0} call(%y), to_apply=%called
  %call.2 = f32[8,4]{1,0} call(%y), to_apply=%called
  %async-start.1 = ((f32[8,4]{1,0}), f32[8,4]{1,0}, u32[]) async-start(%y), calls=%called
  %async-done.1 = f32[8,4]{1,0} async-done(%async-start.1)
  %which = s32[] constant(0)
  %conditional.1 = f32[8,4]{1,0} conditional(%which, %y, %y), branch_computations={%called, %called}
  ROOT %result = (f32[8,4]{1,0}, bf16[2,3]{1,0}) tuple(%call.1, %b)
}
"""


@pytest.fixture(scope="module")
def program() -> HloProgram:
    return parse(TEXT)


def times(program: HloProgram, opcode: str) -> int:
    return sum(e.times for e in executed(program) if e.instruction.opcode == opcode)


def test_parse_reads_every_computation_in_order(program: HloProgram):
    assert list(program.computations) == ["fused_add", "body", "condition", "called", "main"]
    assert program.entry.name == "main"
    assert program.entry.root.name == "result"
    body = program.computations["body"]
    assert [i.name for i in body.instructions.values()][-2:] == ["loop_add_fusion", "tuple.1"]


def test_parse_reads_an_instruction(program: HloProgram):
    fusion = program.computations["body"].instructions["loop_add_fusion"]
    assert fusion.opcode == "fusion"
    assert fusion.operands == ("x", "one")
    assert fusion.shapes == (Shape("f32", (8, 4)),)
    # What the metadata says is no attribute.
    assert fusion.called("calls") == ("fused_add",)
    assert fusion.op_name.startswith("jit(step)/while/body/add")
    assert program.entry.instructions["b"].parameter == 1
    assert program.entry.instructions["text"].operands == ()


def test_parse_reads_tuples_with_layouts_and_comments(program: HloProgram):
    start = program.entry.instructions["tuple.2"]
    assert start.operands == ("zero", "a")
    assert start.bytes == 4 + 8 * 4 * 4
    assert program.computations["body"].root.shapes == (Shape("s32", ()), Shape("f32", (8, 4)))


@pytest.mark.parametrize(
    ("dtype", "dims", "size"),
    [
        ("f32", (2, 3), 24),
        ("bf16", (2, 3), 12),
        ("f8e4m3fn", (5,), 5),
        ("pred", (5,), 5),
        ("s4", (5,), 3),
        ("u64", (), 8),
        ("c64", (2,), 16),
        ("f32", (0, 4), 0),
        ("token", (), 0),
    ],
)
def test_bytes_of_a_shape(dtype: str, dims: tuple[int, ...], size: int):
    assert Shape(dtype, dims).bytes == size


def test_executed_multiplies_by_the_length_of_loops(program: HloProgram):
    assert times(program, "fusion") == 7
    # Two calls, an asynchronous one, and both branches; neither a fusion's inside nor a condition.
    assert times(program, "negate") == 5
    assert times(program, "add") == 0
    assert unknown_loops(program) == ()


def test_nested_scans_of_a_real_program():
    def inner(x_BD: jax.Array, w_DD: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(x_BD @ w_DD), None

    def outer(x_BD: jax.Array, w_LDD: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.scan(inner, x_BD, w_LDD)[0], None

    def function(x_BD: jax.Array, w_ALDD: jax.Array) -> jax.Array:
        return jax.lax.scan(outer, x_BD, w_ALDD)[0]

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 16), (5, 3, 16, 16))]
    program = parse(jax.jit(function).lower(*shapes).compile().as_text())
    holders = [
        c.name
        for c in program.computations.values()
        for i in c.instructions.values()
        if i.opcode == "dot"
    ]
    run = sum(
        e.times
        for e in executed(program)
        if e.instruction.opcode == "dot" or set(e.instruction.called("calls")) & set(holders)
    )
    assert run == 15


def test_a_loop_of_unknown_length_is_named():
    def function(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x < 1e3, lambda x: x * x, x)

    text = jax.jit(function).lower(jax.ShapeDtypeStruct((), jnp.float32)).compile().as_text()
    program = parse(text)
    assert len(unknown_loops(program)) == 1
    assert times(program, "while") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no complete ENTRY"),
        (TEXT[:-3], "no complete ENTRY"),
        ("ENTRY %main () -> f32[] {\n  nonsense\n}\n", "no instruction.*nonsense"),
        ("ENTRY %main () -> f32[] {\n  %a = f32[] constant(1)\n}\n", "'main'.*no ROOT"),
        ("ENTRY %main () -> f32[] {\n  ROOT %a = f32[]\n}\n", "no opcode"),
        ("ENTRY %main () -> f32[] {\n  ROOT %a = f32[] add(%b\n}\n", "never closed"),
    ],
)
def test_a_text_that_is_no_program_is_refused_in_one_line(text: str, says: str):
    with pytest.raises(ValueError, match=says) as error:
        parse(text)
    assert "\n" not in str(error.value)
