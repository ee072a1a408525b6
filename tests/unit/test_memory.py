"""What a device must hold: names, the audit, the runtime's lines, the verdict and the remedies."""

import pytest

from spectral_dist.planning import memory
from spectral_dist.planning.compile import Program, described_mesh
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.memory import (
    GIB,
    MIB,
    Array,
    RuntimeLine,
    arguments,
    audit,
    judge,
    largest_values,
    runtime_lines,
)
from spectral_dist.planning.search.remedies import changes, find_remedy
from spectral_dist.settings import Config, from_flat, resolve


def program(name: str, temporaries: int) -> Program:
    return Program(name, GIB, GIB, GIB, temporaries, 0, "", 0.0, ())


def small(**changes: object) -> Config:
    values = {"hidden_dim": 32, "head_dim": 8, "num_layers": 1, "layer_pattern": "spectral"}
    values |= {"seq_len": 16, "chunk_size": 8, "batch_size": 8, "remat": "none"}
    return resolve(from_flat(values | changes))


def test_the_largest_program_decides() -> None:
    line = RuntimeLine("context", GIB // 2, "here")
    programs = [program("train step", 3 * GIB), program("evaluation 4x", 5 * GIB)]
    verdict = judge(programs, [line], 7 * GIB)
    assert verdict.program == "evaluation 4x"
    assert verdict.peak == 6 * GIB, "the runtime is not folded in"
    assert (verdict.fits, verdict.spare) == (True, GIB // 2)
    verdict = judge(programs, [line], 6 * GIB)
    assert (verdict.fits, verdict.spare) == (False, -GIB // 2)
    assert judge(programs, [line], None).fits is None


def test_more_than_jaxs_own_share_needs_a_word() -> None:
    tight = judge([program("train step", 8 * GIB)], [], 10 * GIB)
    assert tight.fraction == pytest.approx(0.91)
    roomy = judge([program("train step", 3 * GIB)], [], 10 * GIB)
    assert roomy.fraction is None


def test_arguments_have_names_shapes_and_places() -> None:
    config = small(mesh="1x2x2")
    found = arguments(config, described_mesh(None, config.mesh.shape, 4))
    sizes = [array.bytes for array in found]
    assert sizes == sorted(sizes, reverse=True)
    named = {array.name: array for array in found}
    embed = named["state/params/embed"]
    assert (embed.shape, embed.dtype, embed.spec) == ((256, 32), "float32", "P(tensor, fsdp)")
    assert embed.bytes == 256 * 32 * 4 // 4
    assert named["batch"].dtype == "uint8"
    opt_state = [name for name in named if name.startswith("state/opt_state/") and "embed" in name]
    assert len(opt_state) == 2


def test_a_parameter_whole_by_accident_stops_at_once() -> None:
    mesh = described_mesh(None, (1, 2, 1), 2)
    whole = Array("state/params/embed", (256, 2**16), "float32", "P(None, None)", 64 * MIB)
    with pytest.raises(ValueError, match=r"mesh=1x2x1: .*embed \[256, 65536\] \(64 MiB\)"):
        audit([whole], mesh)
    audit([whole], described_mesh(None, (2, 1, 1), 2))  # nothing could divide it
    audit([Array("state/params/embed", (1,), "float32", "P(None, fsdp)", 64 * MIB)], mesh)
    audit([Array("state/params/scale", (1,), "float32", "P(None)", 4)], mesh)


def test_the_audit_sees_the_states_own_shardings(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(mesh="1x2x1")
    mesh = described_mesh(None, config.mesh.shape, 2)
    monkeypatch.setattr(memory, "LARGE_PARAMETER", 4096)
    audit(arguments(config, mesh), mesh)
    monkeypatch.setitem(__import__("spectral_dist.mesh").mesh.RULES, "embed", ())
    with pytest.raises(ValueError, match="state/params/embed"):
        audit(arguments(config, mesh), mesh)


def test_what_the_runtime_adds_has_sources() -> None:
    config = small(mesh="2x2x1", spectral_form="fft")
    l4 = {line.name: line for line in runtime_lines(find_gpu("l4"), config)}
    assert set(l4) == {
        "CUDA context and kernels",
        "cuBLAS workspace",
        "cuFFT plans",
        "NCCL buffers",
    }
    assert all(line.bytes > 0 and len(line.source) > 20 for line in l4.values())
    alone = small(mesh="1x1x1")
    names = [line.name for line in runtime_lines(find_gpu("l4"), alone)]
    assert names == ["CUDA context and kernels", "cuBLAS workspace"]
    h100 = {line.name: line for line in runtime_lines(find_gpu("h100"), config)}
    assert h100["cuBLAS workspace"].bytes == 32 * MIB
    assert h100["NCCL buffers"].bytes > l4["NCCL buffers"].bytes


TEXT = """HloModule jit_step

%fused (p.0: f32[8,4]) -> f32[512,512] {
  %p.0 = f32[8,4]{1,0} parameter(0)
  ROOT %inside = f32[512,512]{1,0} broadcast(%p.0), metadata={op_name="jit(f)/inside"}
}

ENTRY %main (a: f32[64,64]) -> bf16[128,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %b = bf16[128,64]{1,0} fusion(%a), calls=%fused, metadata={op_name="jit(f)/while/body/mix/mul"}
  %c = pred[16]{0} compare(%a, %a)
  ROOT %d = bf16[128,64]{1,0} bitcast(%b)
}
"""


def test_values_are_read_from_the_compiled_text() -> None:
    assert largest_values(TEXT, 10) == [
        Array("body/mix/mul", (128, 64), "bf16", "", 128 * 64 * 2),
        Array("c", (16,), "pred", "", 16),
    ]
    assert len(largest_values(TEXT, 1)) == 1


# ---- remedies ----


def test_changes_keep_the_effective_batch_the_cheapest_first() -> None:
    config = small(mesh="2x1x1", batch_size=8, accum_steps=2)
    found = list(changes(config, 4))
    assert found == [
        {"batch_size": 4, "accum_steps": 4},
        {"remat": "full"},
        {"batch_size": 4, "accum_steps": 4, "remat": "full"},
        {"batch_size": 2, "accum_steps": 8, "remat": "full"},
        {"mesh": "1x2x1", "batch_size": 2, "accum_steps": 8, "remat": "full"},
        {"mesh": "1x4x1", "batch_size": 4, "accum_steps": 4, "remat": "full"},
    ]
    for flags in found:
        changed = resolve(from_flat(config.flat() | flags))
        assert changed.data.batch_size * changed.data.accum_steps == 16


def test_the_search_ends_with_what_fits() -> None:
    tried: list[Config] = []

    def try_one(config: Config) -> tuple[int, int]:
        tried.append(config)
        peak = config.data.batch_size * (1 if config.model.remat == "full" else 2)
        return peak, 8 - peak

    found = list(find_remedy(small(batch_size=16), try_one, 8))
    assert [remedy.fits for remedy in found] == [False, False, True]
    assert found[-1].flags == "--batch_size=8 --accum_steps=2 --remat=full"
    assert (found[-1].devices, found[-1].spare) == (1, 0)
    assert len(tried) == 3, "nothing is compiled after the first that fits"


def test_what_cannot_be_divided_is_passed_over() -> None:
    def refuse(config: Config) -> tuple[int, int]:
        raise ValueError("cannot be divided")

    assert list(find_remedy(small(), refuse, 8)) == []


def test_specs_print_short() -> None:
    assert memory._part(("data", "fsdp")) == "data+fsdp"
    assert memory._part(None) == "None"
