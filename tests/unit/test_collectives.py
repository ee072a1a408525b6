import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from spectral_dist.planning.hlo.collectives import (
    Collective,
    Traffic,
    device_groups,
    find_collectives,
    lower_bound,
    ring_bytes,
    spanned_axes,
    summarise,
)
from spectral_dist.planning.hlo.parse import parse
from spectral_dist.settings import Config, from_flat

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
PAIRS_OF_LAST = ((0, 1), (2, 3), (4, 5), (6, 7))


@pytest.mark.parametrize(
    ("attribute", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", PAIRS_OF_LAST),
        ("replica_groups={}", (tuple(range(8)),)),
        ("replica_groups=[4,2]<=[8]", PAIRS_OF_LAST),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("replica_groups=[4,2]<=[2,2,2]T(2,0,1)", ((0, 2), (4, 6), (1, 3), (5, 7))),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", (tuple(range(8)),)),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['x'=2,'y'=2,'z'=2] {'x','z'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        # Of eight devices on one axis the two parts of four: the inner, then the outer.
        ("replica_groups=mesh['x'=8] {'x':(2)4}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=mesh['x'=8] {'x':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        (
            "replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}",
            ((0, 2, 4, 6), (1, 3, 5, 7)),
        ),
        (
            "replica_groups=mesh['x'=2,'y'=4], device_ids=(0,2,4,6,1,3,5,7) {'y'}",
            ((0, 2, 4, 6), (1, 3, 5, 7)),
        ),
        ("source_target_pairs={{0,4},{4,0},{1,5},{5,1}}", ((0, 4), (0, 4), (1, 5), (1, 5))),
    ],
)
def test_groups_in_every_form(attribute: str, groups: tuple[tuple[int, ...], ...]):
    text = f"channel_id=1, {attribute}, use_global_device_ids=true, dimensions={{0}}"
    assert device_groups(text, 8) == groups


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("replica_groups={{0,8}}", "beyond the 8"),
        ("replica_groups=[2,8]<=[16]", "beyond the 8"),
        ("replica_groups=<something new>", "an unknown form"),
        ("dimensions={0}", "an unknown form"),
    ],
)
def test_groups_that_cannot_be_read_are_refused(attribute: str, says: str):
    with pytest.raises(ValueError, match=says):
        device_groups(attribute, 8)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        (PAIRS_OF_LAST, ("tensor",)),
        (((0, 2), (1, 3), (4, 6), (5, 7)), ("fsdp",)),
        (((0, 4), (1, 5), (2, 6), (3, 7)), ("data",)),
        (((0, 1, 4, 5), (2, 3, 6, 7)), ("data", "tensor")),
        (((0,), (1,)), ()),
    ],
)
def test_the_mesh_axes_that_groups_span(groups: tuple[tuple[int, ...], ...], axes: tuple[str, ...]):
    assert spanned_axes(groups, MESH) == axes


@pytest.mark.parametrize(
    ("kind", "moved", "payload"),
    [
        ("all-reduce", 2 * 3 / 4 * 1200, 1200),
        ("all-gather", 3 / 4 * 4800, 4800),
        ("reduce-scatter", 3 / 4 * 1200, 1200),
        ("all-to-all", 3 / 4 * 1200, 1200),
        ("collective-permute", 1200, 1200),
    ],
)
def test_ring_formula(kind: str, moved: float, payload: int):
    assert ring_bytes(kind, 1200, 4) == (moved, payload)
    assert ring_bytes(kind, 1200, 1)[0] == 0


def test_every_kind_in_a_real_program():
    mesh = jax.make_mesh((2, 2, 2), tuple(MESH), axis_types=(AxisType.Auto,) * 3)

    def function(x_RD: jax.Array) -> jax.Array:
        def body(x_RD: jax.Array, _: None) -> tuple[jax.Array, None]:
            whole = jnp.tanh(jax.lax.all_gather(x_RD, "fsdp", tiled=True))  # 8 x 16
            part = jax.lax.psum_scatter(whole, "data", tiled=True)  # 4 x 16
            return jax.lax.psum(jnp.sin(part), "tensor"), None

        x_RD = jax.lax.scan(body, x_RD, None, length=5)[0]
        x_RD = jax.lax.all_to_all(x_RD, "tensor", 1, 0, tiled=True)  # 8 x 8
        x_RD = jnp.cos(jax.lax.ppermute(x_RD, "data", [(0, 1), (1, 0)]))
        return jax.lax.psum(x_RD, ("data", "tensor"))

    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
    )
    shape = jax.ShapeDtypeStruct((4, 16), jnp.float32)
    program = parse(jax.jit(mapped).lower(shape).compile().as_text())
    found = find_collectives(program, MESH, devices_per_host=4)
    part, whole, square = 4 * 16 * 4, 8 * 16 * 4, 8 * 8 * 4
    assert set(summarise(found)) == {
        Traffic("all-gather", "fsdp", 5, 5 * whole, 5 * whole / 2, False),
        Traffic("reduce-scatter", "data", 5, 5 * whole, 5 * whole / 2, True),
        Traffic("all-reduce", "tensor", 5, 5 * part, 5 * part, False),
        Traffic("all-to-all", "tensor", 1, square, square / 2, False),
        Traffic("collective-permute", "data", 1, square, square, True),
        Traffic("all-reduce", "data+tensor", 1, square, 1.5 * square, True),
    }


# In the style of XLA's text for GPUs: starts that repeat their operands, several arrays at once.
GPU_TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=32

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (arg: (bf16[256,16], bf16[256], f32[2048,16])) -> (bf16[256,16], bf16[256], f32[2048,16]) {
  %arg = (bf16[256,16]{1,0}, bf16[256]{0}, f32[2048,16]{1,0}) parameter(0)
  %w = bf16[256,16]{1,0} get-tuple-element(%arg), index=0
  %v = bf16[256]{0} get-tuple-element(%arg), index=1
  %g = f32[2048,16]{1,0} get-tuple-element(%arg), index=2
  %all-gather-start.1 = ((bf16[256,16]{1,0}, bf16[256]{0}), (bf16[2048,16]{1,0}, \
/*index=3*/bf16[2048]{0})) all-gather-start(%w, %v), channel_id=1, replica_groups=[4,8]<=[32], \
dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(step)/while/body/gather"}
  %all-gather-done.1 = (bf16[2048,16]{1,0}, bf16[2048]{0}) all-gather-done(%all-gather-start.1)
  %reduce-scatter-start = ((f32[2048,16]{1,0}), f32[256,16]{1,0}) reduce-scatter-start(%g), \
replica_groups=mesh['axis_0'=4,'axis_1'=8] {'axis_1'}, dimensions={0}, to_apply=%add
  %reduce-scatter-done = f32[256,16]{1,0} reduce-scatter-done(%reduce-scatter-start)
  ROOT %next = (bf16[256,16]{1,0}, bf16[256]{0}, f32[2048,16]{1,0}) tuple(%w, %v, %g)
}

%condition (arg.1: (bf16[256,16], bf16[256], f32[2048,16])) -> pred[] {
  %arg.1 = (bf16[256,16]{1,0}, bf16[256]{0}, f32[2048,16]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: bf16[256,16], b: bf16[256], c: f32[2048,16]) -> f32[2048,16] {
  %a = bf16[256,16]{1,0} parameter(0)
  %b = bf16[256]{0} parameter(1)
  %c = f32[2048,16]{1,0} parameter(2)
  %start = (bf16[256,16]{1,0}, bf16[256]{0}, f32[2048,16]{1,0}) tuple(%a, %b, %c)
  %while.1 = (bf16[256,16]{1,0}, bf16[256]{0}, f32[2048,16]{1,0}) while(%start), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %g.1 = f32[2048,16]{1,0} get-tuple-element(%while.1), index=2
  %all-reduce-start.1 = f32[2048,16]{1,0} all-reduce-start(%g.1), channel_id=3, \
replica_groups=[8,4]<=[4,8]T(1,0), use_global_device_ids=true, to_apply=%add
  ROOT %all-reduce-done.1 = f32[2048,16]{1,0} all-reduce-done(%all-reduce-start.1)
}
"""


@pytest.fixture(scope="module")
def found() -> list[Collective]:
    mesh = {"data": 4, "fsdp": 8, "tensor": 1}
    return find_collectives(parse(GPU_TEXT), mesh, devices_per_host=8)


def test_the_forms_of_a_gpu_program(found: list[Collective]):
    gather, scatter, reduce = found
    assert (gather.kind, gather.axes, gather.count) == ("all-gather", ("fsdp",), 6)
    assert gather.payload_bytes == (2048 * 16 + 2048) * 2
    assert gather.moved_bytes == 7 / 8 * gather.payload_bytes
    assert gather.op_name == "jit(step)/while/body/gather"
    assert (scatter.kind, scatter.axes, scatter.count) == ("reduce-scatter", ("fsdp",), 6)
    assert scatter.payload_bytes == 2048 * 16 * 4
    assert (reduce.kind, reduce.axes, reduce.count) == ("all-reduce", ("data",), 1)
    assert reduce.moved_bytes == 2 * 3 / 4 * 2048 * 16 * 4


def test_what_crosses_hosts_and_how_many_share_the_network(found: list[Collective]):
    gather, _, reduce = found
    assert (gather.crosses_hosts, gather.rings_per_host) == (False, 0)
    # Every GPU of a host is in a ring of its own.
    assert (reduce.crosses_hosts, reduce.rings_per_host) == (True, 8)
    wide = find_collectives(parse(GPU_TEXT), {"data": 4, "fsdp": 8, "tensor": 1}, 4)
    # Hosts of four: one ring of eight devices leaves each.
    assert (wide[0].crosses_hosts, wide[0].rings_per_host) == (True, 1)


def test_a_program_for_more_devices_names_the_collective():
    with pytest.raises(ValueError, match=r"all-gather-start\.1.*beyond the 8"):
        find_collectives(parse(GPU_TEXT), {"data": 1, "fsdp": 8, "tensor": 1}, 8)


def settings(mesh: str, **more: object) -> Config:
    values = {"mesh": mesh, "batch_size": 16, "accum_steps": 3, "seq_len": 32, "hidden_dim": 64}
    return from_flat(values | {"num_layers": 5} | more)


def test_lower_bound_of_each_axis():
    rows = lower_bound(settings("4x2x2"), devices_per_host=4, parameters=1000)
    assert rows == (
        # 500 elements beside tensor, 2 bytes each, twice for each of 3 micro-batches
        Traffic("all-gather", "fsdp", 6, 6 * 1000.0, 6 * 500.0, False),
        Traffic("reduce-scatter", "fsdp", 3, 3 * 1000.0, 3 * 500.0, False),
        # 250 elements of 4 bytes, once
        Traffic("all-reduce", "data", 1, 1000.0, 1500.0, True),
        # 2 rows of [32, 64] on each device, 2 bytes; 4 in each of 5 layers, 3 micro-batches
        Traffic("all-reduce", "tensor", 60, 60 * 8192.0, 60 * 8192.0, False),
    )


def test_lower_bound_of_one_device_is_nothing():
    assert lower_bound(settings("1x1x1"), 1, 1000) == ()


def test_lower_bound_in_float32_is_twice():
    (gather, _), (wide, _) = (
        lower_bound(settings("1x8x1", compute_dtype=dtype), 8, 1000)
        for dtype in ("bfloat16", "float32")
    )
    assert wide.moved_bytes == 2 * gather.moved_bytes
