"""Predicted memory beside measured memory, in real processes; and the table of it."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import dry_run_accuracy
from benchmarks.dry_run_accuracy import CPU_CASES, GPU_CASES, Comparison, cases, compare, main
from benchmarks.measurement import main as measurement_main
from benchmarks.measurement import measure, peak_bytes, reset_peak, resident_bytes
from spectral_dist.flags import load_config

_FLAGS = """--hidden_dim=16 --head_dim=8 --num_layers=1 --layer_pattern=spectral --mlp_dim=32
    --num_poles=4 --chunk_size=8 --seq_len=16 --batch_size=8 --remat=none"""
TINY = _FLAGS.split()
MIB = 2**20


def test_the_peak_of_memory_is_the_processes_own() -> None:
    reset_peak()
    before = resident_bytes()
    block = np.ones(64 * MIB, np.uint8)
    held = resident_bytes() - before
    del block
    assert 60 * MIB < held < 80 * MIB
    assert 60 * MIB < peak_bytes() - before < 80 * MIB
    reset_peak()
    assert peak_bytes() - before < 40 * MIB


def test_a_measurement_runs_the_real_step(tmp_path: Path) -> None:
    config = load_config(["--mesh=2x2x2", *TINY])
    found = measure(config, steps=2)
    assert (found["device_kind"], found["devices"]) == ("cpu", 8)
    assert found["step_seconds"] > 0
    path = tmp_path / "measured.json"
    assert measurement_main([f"--json={path}", "--mesh=1x8x1", *TINY]) == 0
    assert json.loads(path.read_text()).keys() == found.keys()
    with pytest.raises(ValueError, match="needs 2 devices, but 8 are attached"):
        measure(load_config(["--mesh=1x2x1", *TINY]))


@pytest.mark.slow
def test_prediction_is_near_the_truth_on_two_fake_devices() -> None:
    case = "--mesh=1x2x1 --hidden_dim=256 --num_layers=3 --seq_len=256 --batch_size=8 --remat=none"
    found = compare(case)
    assert found.predicted > 300 * MIB  # or what any process needs would outweigh the arrays
    assert abs(found.memory_error) < 0.12
    assert found.time_error is None


def test_every_case_is_a_configuration_and_fits_its_devices() -> None:
    assert len(CPU_CASES) >= 6
    assert len(GPU_CASES) >= 4
    for flags in cases("cpu"):
        config = load_config(flags.split())
        assert np.prod(config.mesh.shape) in (1, 4, 8)
    meshes = {load_config(flags.split()).mesh.mesh for flags in cases("cpu")}
    remats = {load_config(flags.split()).model.remat for flags in cases("cpu")}
    assert len(meshes) >= 4
    assert remats == {"none", "dots", "full"}
    names = {load_config(flags.split()).run.run_name for flags in cases("l4")}
    assert names == {"level1", "level2"}
    assert all(load_config(flags.split()).mesh.mesh == "1x1x1" for flags in cases("l4"))


def a_report(kind: str | None) -> dict[str, Any]:
    programs = [
        {"name": "train step", "peak": 110 * MIB, "resident": 10 * MIB},
        {"name": "evaluation 1x", "peak": 900 * MIB, "resident": 0},
        {"name": "initial state", "peak": 90 * MIB, "resident": 0},
    ]
    gpu = None if kind is None else {"device_kind": kind}
    time = {"step_seconds": 1.5}
    return {"hosts": 2, "gpus_per_host": 4, "gpu": gpu, "programs": programs, "time": time}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for both processes; holds what the second was started with."""
    asked: dict[str, Any] = {"kind": "NVIDIA L4"}

    def dry_run(words: list[str]) -> dict[str, Any]:
        return a_report(None if words[0] == "--gpu=cpu" else "NVIDIA L4")

    def run_module(module: str, words: list[str], environment: dict[str, str]) -> dict[str, Any]:
        asked.update(module=module, environment=environment)
        return {"device_kind": asked["kind"], "peak": 80 * MIB, "step_seconds": 2.0}

    monkeypatch.setattr(dry_run_accuracy, "dry_run", dry_run)
    monkeypatch.setattr(dry_run_accuracy, "run_module", run_module)
    return asked


def test_fake_devices_share_one_process(asked: dict[str, Any]) -> None:
    found = compare("--mesh=8x1x1")
    # The larger of the two programs that run, without what waits beside it, on all devices.
    assert found == Comparison("--mesh=8x1x1", 800 * MIB, 80 * MIB, None, 2.0)
    assert found.memory_error == pytest.approx(9.0)
    flags = asked["environment"]["XLA_FLAGS"]
    assert flags.startswith(os.environ["XLA_FLAGS"])
    assert flags.endswith("--xla_force_host_platform_device_count=8")


def test_a_gpu_is_one_device_with_a_time(asked: dict[str, Any]) -> None:
    found = compare("--mesh=1x1x1", "l4")
    assert (found.predicted, found.predicted_seconds) == (100 * MIB, 1.5)
    assert found.time_error == pytest.approx(-0.25)
    assert asked["environment"]["JAX_PLATFORMS"] == "cuda"
    asked["kind"] = "NVIDIA H100"
    with pytest.raises(ValueError, match="gpu='l4': the attached device is 'NVIDIA H100'"):
        compare("--mesh=1x1x1", "l4")


@pytest.mark.parametrize("gpu", ["cpu", "l4"])
def test_the_table_is_markdown_and_names_the_worst(
    asked: dict[str, Any], gpu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--gpu={gpu}"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[2:-2]]
    assert [row[0] for row in rows] == cases(gpu)
    wanted = ["800", "80", "+900.0%"] if gpu == "cpu" else ["100", "80", "+25.0%"]
    seconds = [] if gpu == "cpu" else ["1.500", "2.000", "-25.0%"]
    assert all(row[1:] == wanted + seconds for row in rows)
    assert lines[-1] == f"worst error of the peak: {wanted[-1]}"


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid choice: 'l5'"):
        main(["--gpu=l5"])


def test_the_errors_sign_is_that_of_too_little_predicted() -> None:
    stream = io.StringIO()
    Console(file=stream, width=200).print(
        dry_run_accuracy.comparison_table([Comparison("--a", 90 * MIB, 100 * MIB, None, 1.0)])
    )
    assert "-10.0%" in stream.getvalue()
