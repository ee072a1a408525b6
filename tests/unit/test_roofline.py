import dataclasses

import pytest

from spectral_dist.model.flops import flops_per_token
from spectral_dist.planning.hardware import GPU_NAMES, find_gpu
from spectral_dist.planning.hlo.collectives import find_collectives
from spectral_dist.planning.hlo.parse import parse
from spectral_dist.planning.roofline import (
    CPU_RATES,
    Prediction,
    Rates,
    StepTime,
    collective_seconds,
    predict,
    rates_of,
    run_cost,
    step_time,
    steps_for,
)
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.state import model_spec

# Round figures, so that the seconds below can be checked by hand.
RATES = Rates(
    {"f32": 1000.0, "bf16": 4000.0},
    memory=1000.0,
    inside=100.0,
    between=80.0,
    kernel_seconds=0.5,
    collective_seconds=0.25,
)

# kernel.1: 2 x 10 x 10 x 100 = 20,000 FLOPs of bfloat16 (5 s) on 4,400 bytes (4.4 s).
# copy.1 and copy.2: 2,000 bytes (2 s); small: 8 bytes (0.5 s, the shortest time).
# Each gather sends 1,000 bytes inside a host (10 s and 0.25 s); the reduction 2 x 1,000 between.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

%body (arg: (f32[250], f32[])) -> (f32[250], f32[]) {
  %arg = (f32[250]{0}, f32[]) parameter(0)
  %x = f32[250]{0} get-tuple-element(%arg), index=0
  %s = f32[] get-tuple-element(%arg), index=1
  %start = (f32[250]{0}, f32[500]{0}) all-gather-start(%x), replica_groups=[2,2]<=[4], \
dimensions={0}
  %copy.1 = f32[250]{0} copy(%x)
  %done = f32[500]{0} all-gather-done(%start)
  %small = f32[] negate(%s)
  ROOT %next = (f32[250]{0}, f32[]) tuple(%copy.1, %small)
}

%condition (arg.1: (f32[250], f32[])) -> pred[] {
  %arg.1 = (f32[250]{0}, f32[]) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: bf16[10,100], b: bf16[100,10], c: f32[250], z: f32[]) -> f32[10,10] {
  %a = bf16[10,100]{1,0} parameter(0)
  %b = bf16[100,10]{1,0} parameter(1)
  %c = f32[250]{0} parameter(2)
  %z = f32[] parameter(3)
  %kernel.1 = f32[10,10]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %carry = (f32[250]{0}, f32[]) tuple(%c, %z)
  %while.1 = (f32[250]{0}, f32[]) while(%carry), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %reduced = f32[250]{0} all-reduce(%c), replica_groups={{0,2},{1,3}}, to_apply=%add
  ROOT %result = (f32[10,10]{1,0}) tuple(%kernel.1)
}
"""
MESH = {"data": 2, "fsdp": 2, "tensor": 1}


def timed(text: str, rates: Rates = RATES) -> StepTime:
    program = parse(text)
    return step_time(program, find_collectives(program, MESH, devices_per_host=2), rates)


def test_the_parts_of_a_step():
    step = timed(TEXT)
    assert step.compute_seconds == pytest.approx(5.0)
    assert step.memory_seconds == pytest.approx(3 * 2.0)
    assert step.launch_seconds == pytest.approx(3 * 0.5)
    # 10.25 s for each gather; the reduction: two rings share 80 bytes/s, 1,000 / 40 + 0.25.
    assert step.communication_seconds == pytest.approx(3 * 10.25 + 25.25)
    # The copy hides 2 s of each gather; nothing runs beside the reduction.
    assert step.exposed_seconds == pytest.approx(3 * 8.25 + 25.25)
    assert step.seconds == pytest.approx(5 + 6 + 1.5 + 3 * 8.25 + 25.25)
    assert step.flops == {"bf16": 20_000}
    assert sum(step.flops.values()) == 20_000
    assert step.moved_bytes == 4400 + 3 * (2000 + 8)
    assert step.kernels == 1 + 3 * 2


def test_a_kernel_is_bound_by_the_longest():
    slow_memory = dataclasses.replace(RATES, memory=800.0)  # 4,400 bytes in 5.5 s
    step = timed(TEXT, slow_memory)
    assert step.compute_seconds == 0
    assert step.memory_seconds == pytest.approx(5.5 + 3 * 2.5)


def test_a_type_without_a_rate_runs_as_float32():
    step = timed(TEXT, dataclasses.replace(RATES, flops={"f32": 1000.0}))
    assert step.compute_seconds == pytest.approx(20.0)


def test_communication_that_kernels_hide_costs_nothing():
    fast = dataclasses.replace(RATES, inside=1000.0, between=2000.0)  # gathers of 1.25 s
    step = timed(TEXT, fast)
    assert step.exposed_seconds == pytest.approx(1.25)  # the reduction alone
    assert step.communication_seconds == pytest.approx(3 * 1.25 + 1.25)


def test_two_in_flight_share_the_link():
    text = TEXT.replace(
        "  %copy.1 =",
        "  %start.2 = (f32[250]{0}, f32[500]{0}) all-gather-start(%x), "
        "replica_groups=[2,2]<=[4], dimensions={0}\n  %copy.1 =",
    ).replace(
        "  %small =",
        "  %done.2 = f32[500]{0} all-gather-done(%start.2)\n  %small =",
    )
    step = timed(text)
    assert step.exposed_seconds == pytest.approx(3 * (2 * 10.25 - 2) + 25.25)


def test_a_ring_is_as_fast_as_its_slowest_link():
    gather, reduce = find_collectives(parse(TEXT), MESH, devices_per_host=2)
    assert collective_seconds(gather, RATES) == pytest.approx(10.25)
    assert collective_seconds(reduce, RATES) == pytest.approx(25.25)
    slow_inside = dataclasses.replace(RATES, inside=20.0)
    assert collective_seconds(reduce, slow_inside) == pytest.approx(1000 / 20 + 0.25)
    alone = dataclasses.replace(gather, group_size=1, moved_bytes=0.0)
    assert collective_seconds(alone, RATES) == 0


def test_rates_of_every_gpu():
    for name in GPU_NAMES:
        rates = rates_of(find_gpu(name))
        assert rates.flops["bf16"] > rates.flops["f32"] > 1e13
        assert rates.memory > rates.inside > rates.between / 8
    # Published: 30.3 TFLOP/s of float32 outside the tensor cores.
    assert rates_of(find_gpu("l4")).flops["f32"] == pytest.approx(30.3e12, rel=0.01)
    assert rates_of(None) == CPU_RATES


@pytest.fixture(scope="module")
def config() -> Config:
    values = {"mesh": "2x2x1", "batch_size": 8, "accum_steps": 2, "seq_len": 64}
    return resolve(from_flat(values | {"hidden_dim": 128, "num_layers": 3}))


@pytest.fixture(scope="module")
def prediction(config: Config) -> Prediction:
    return predict(TEXT, config, find_gpu("l4"), devices_per_host=2)


def test_predict_gives_tokens_and_mfu(config: Config, prediction: Prediction):
    assert prediction.tokens_per_step == 8 * 2 * 64
    assert prediction.devices == 4
    rate = 1024 / prediction.step.seconds
    assert prediction.tokens_per_second == pytest.approx(rate)
    expected = rate * flops_per_token(model_spec(config), 64) / (4 * 121e12)
    assert prediction.mfu == pytest.approx(expected)
    assert [(row.kind, row.axes) for row in prediction.traffic] == [
        ("all-gather", "fsdp"),
        ("all-reduce", "data"),
    ]
    assert prediction.notes == ()


def test_fake_devices_have_no_mfu(config: Config):
    assert predict(TEXT, config, None, devices_per_host=2).mfu is None


def test_predict_says_what_it_could_not_read(config: Config):
    text = TEXT.replace(', backend_config={"known_trip_count":{"n":"3"}}', "").replace(
        "  %carry =",
        '  %lib = f32[] custom-call(%z), custom_call_target="__cudnn$fmhaSoftmax"\n  %carry =',
    )
    notes = predict(text, config, find_gpu("l4"), devices_per_host=2).notes
    assert len(notes) == 2
    assert "while.1" in notes[0]
    assert "__cudnn$fmhaSoftmax" in notes[1]


def test_hours_and_cost(prediction: Prediction):
    half_second = dataclasses.replace(prediction, step=StepTime(compute_seconds=0.5))
    cost = run_cost(half_second, 7200, price_per_gpu_hour=0.75)
    assert (cost.steps, cost.tokens) == (7200, 7200 * 1024)
    assert cost.hours == pytest.approx(1.0)
    assert cost.gpu_hours == pytest.approx(4.0)
    assert cost.cost == pytest.approx(3.0)
    assert run_cost(half_second, 7200).cost is None


def test_steps_for_an_amount_of_text(prediction: Prediction):
    assert steps_for(prediction, 10_240) == 10
    assert steps_for(prediction, 10_241) == 11
