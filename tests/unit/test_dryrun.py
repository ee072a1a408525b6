"""The dry run from the command line: its report, its exit codes, its one-line errors."""

import dataclasses
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jax.sharding import Mesh

from spectral_dist import dryrun
from spectral_dist.dryrun import gpus_per_host, main
from spectral_dist.flags import load_config
from spectral_dist.planning import compile as planning
from spectral_dist.planning.compile import Program
from spectral_dist.planning.memory import GIB
from spectral_dist.planning.report import text as reporting
from spectral_dist.planning.search import choice as choosing
from spectral_dist.planning.search import remedies
from spectral_dist.planning.search.candidates import Candidate, chosen_config
from spectral_dist.planning.search.choice import Choice
from spectral_dist.planning.search.workers import Cluster
from spectral_dist.settings import Config

TINY = [
    "--hidden_dim=16",
    "--head_dim=8",
    "--num_layers=1",
    "--layer_pattern=spectral",
    "--mlp_dim=32",
    "--num_poles=4",
    "--chunk_size=8",
    "--seq_len=16",
    "--batch_size=8",
    "--accum_steps=1",
    "--remat=none",
    "--eval_lengths=1",
]
TEXT = """HloModule step

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %b = f32[4]{0} add(%a, %a)
}
"""


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Programs that need a GiB for each row of a micro-batch, half of it with remat full."""
    compiled: list[Config] = []

    def programs(config: Config, mesh: Mesh) -> Iterator[Program]:
        compiled.append(config)
        rows = config.data.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
        size = rows * GIB // (2 if config.model.remat == "full" else 1)
        warning = ("[SPMD] Involuntary full rematerialization of x",)
        yield Program("train step", 0, 0, 0, size, 0, TEXT, 0.0, warning)
        yield Program("evaluation 1x", 0, 0, 0, size // 2, 0, TEXT, 0.0, ())

    monkeypatch.setattr(planning, "cuda_plugin", lambda: None)
    monkeypatch.setattr(reporting, "compile_programs", programs)
    monkeypatch.setattr(remedies, "compile_programs", programs)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    return compiled


def test_a_run_for_the_processor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    page = tmp_path / "report.html"
    files = [f"--json={path}", f"--html={page}"]
    flags = ["--gpu=cpu", "--mesh=1x2x1", "--data_paths=no_such_text.txt", *files]
    assert main([*flags, *TINY]) == 0
    assert "Dry run: default on 2 x fake device" in page.read_text()
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("compiled for the processor by XLA's CPU compiler")
    assert out[1] == "mesh 1x2x1 over 1 x 2 fake device"
    assert out[-1].startswith("peak ")
    report = json.loads(path.read_text())
    assert report["format_version"] == 1
    assert next(p["name"] for p in report["programs"]) == "train step"
    assert report["programs"][0]["temporaries"] > 0
    assert report["verdict"]["fits"] is None
    assert len(report["arguments"]) == 10
    assert report["arguments"][0]["spec"].startswith("P(")
    assert report["config"]["hidden_dim"] == 16
    documented = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    assert all(f"`{key}`" in documented for key in report)


def test_without_the_plugin_it_says_so(
    needs: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--gpu=l4", "--mesh=1x1x1", *TINY]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "CPU compiler" in out[0]
    assert "temporaries are an estimate" in out[0]
    assert "pip install 'spectral-dist[dryrun]'" in out[0]
    assert any(line.startswith("FITS with 14.00 GiB to spare") for line in out)
    assert any(line.startswith("DEFECT in train step: [SPMD] Involuntary") for line in out)
    assert any("cuBLAS workspace" in line for line in out)
    assert any("a model, not a measurement" in line for line in out)


def test_text_and_price_become_hours_and_cost(
    needs: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    asked = ["--tokens=1280e3", "--price_per_gpu_hour=3600e3", f"--json={path}"]
    assert main(["--mesh=1x1x1", "--steps=40", *asked, *TINY]) == 0
    time = json.loads(path.read_text())["time"]
    run, text = time["runs"]
    assert (run["steps"], text["steps"]) == (40, 10_000)  # 128 bytes in a step
    assert text["gpu_hours"] == pytest.approx(10_000 * time["step_seconds"] / 3600)
    assert text["cost"] == pytest.approx(text["gpu_hours"] * 3600e3)
    assert "1,280,000 bytes of text" in capsys.readouterr().out


def test_what_does_not_fit_ends_with_3_and_a_remedy_that_fits(
    needs: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--gpu=l4", "--mesh=1x1x1", "--memory_gib=3.5", *TINY]
    assert main(flags) == 3
    out = capsys.readouterr().out.splitlines()
    verdict = [line for line in out if line.startswith(("DOES NOT FIT", "tried:", "fits:"))]
    assert verdict[0].startswith("DOES NOT FIT, 5.00 GiB too much: 8.00 GiB (train step) + 0.50")
    assert verdict[1].startswith("tried: --batch_size=4 --accum_steps=2 (1.00 GiB too much)")
    assert verdict[-1].startswith("fits: --batch_size=4 --accum_steps=2 --remat=full (1.00 GiB")
    pasted = verdict[-1].removeprefix("fits: ").split(" (")[0].split()
    assert main([*flags, *pasted]) == 0


def test_more_fsdp_where_no_batch_is_small_enough(
    needs: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--mesh=1x1x1", "--memory_gib=0.8", *TINY]) == 3
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("no remedy was found") or out[-1].startswith("fits: --mesh=1x")


def test_jaxs_own_share_is_told(needs: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mesh=1x1x1", "--memory_gib=9", *TINY]) == 0
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.90" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--gpu=l5"], "gpu='l5': must be one of l4"),
        (["--mesh=1x3x1", "--batch_size=9", "--hosts=2"], "are not hosts=2 x gpus_per_host=1"),
        (["--mesh=1x6x1", "--batch_size=6", "--gpus_per_host=4"], "are not gpus_per_host=4"),
        (["--tokens=0"], "tokens=0.0: must be positive"),
        (["--memory_gib=-1"], "memory_gib=-1.0: must be positive"),
        (["--json=no/such/folder/x.json"], "json='no/such/folder/x.json': its folder does not"),
        (["--html=no/such/folder/x.html"], "html='no/such/folder/x.html': its folder does not"),
        (["--hiden_dim=3"], "unknown flag '--hiden_dim'; did you mean --hidden_dim?"),
        (["--mesh=1x2x1", "--batch_size=3"], "batch_size=3: must be a multiple"),
    ],
)
def test_errors_come_before_any_compilation(
    needs: list[Config], flags: list[str], text: str
) -> None:
    with pytest.raises(ValueError, match=text.replace("?", r"\?")):
        main([*TINY, *flags])
    assert needs == []


# ---- --mesh=auto


@pytest.fixture
def chosen(needs: list[Config], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the search returns, in place of the search."""
    answer: dict[str, Any] = {"fits": True, "clusters": []}

    def choose(config: Config, cluster: Cluster, say: object) -> Choice:
        answer["clusters"].append(cluster)
        found = Candidate("1x2x1", 4, 2, "full", "none", GIB, GIB, 0.5, 256.0, "")
        best = found if answer["fits"] else dataclasses.replace(found, reason="1.00 GiB too much")
        size = GIB if answer["fits"] else 99 * GIB
        programs = [Program("train step", 0, 0, 0, size, 0, TEXT, 0.0, ())]
        return Choice(chosen_config(config, best), answer["fits"], programs, [best])

    monkeypatch.setattr(choosing, "choose", choose)
    return answer


AUTO = ["--mesh=auto", "--hosts=1", "--gpus_per_host=2"]


def test_auto_reports_the_winner_and_how_to_start_it(
    chosen: dict[str, Any],
    needs: list[Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "report.json"
    assert main([*AUTO, *TINY, f"--json={path}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "mesh 1x2x1 over 1 x 2 NVIDIA L4" in out
    assert any("1 candidates, 1 compiled, 1 ranked" in line for line in out)
    command = out[-1].removeprefix("start it with: ")
    assert command.endswith(
        "--mesh=1x2x1 --batch_size=4 --accum_steps=2 --remat=full --unroll=none"
    )
    assert load_config(shlex.split(command)[3:]).mesh.mesh == "1x2x1"
    report = json.loads(path.read_text())
    assert report["command"] == command
    assert report["ranking"][0]["tokens_per_second"] == 256.0
    assert report["config"]["mesh"] == "1x2x1"
    assert needs == [], "the search has compiled it"
    documented = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    assert all(f"`{key}`" in documented for key in [*report, *report["ranking"][0]])


def test_auto_where_nothing_fits_ends_with_3_and_the_nearest(
    chosen: dict[str, Any],
    needs: list[Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen["fits"] = False
    assert main([*AUTO, *TINY, f"--json={tmp_path / 'report.json'}"]) == 3
    assert json.loads((tmp_path / "report.json").read_text())["command"] == ""
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("none of 1 candidates fits; the nearest: --mesh=1x2x1 --batch_size=4")
    assert any(line.startswith("DOES NOT FIT") for line in out)
    assert not any(line.startswith(("start it", "tried", "fits:")) for line in out)
    assert needs == [], "no remedies beside a search"


@pytest.mark.parametrize(
    "flags", [[], ["--hosts=2"], ["--gpus_per_host=8"], ["--gpu=cpu"], ["--gpu=cpu", "--hosts=1"]]
)
def test_auto_needs_to_know_the_devices(
    chosen: dict[str, Any], flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="mesh=auto: needs --hosts and --gpus_per_host"):
        main(["--mesh=auto", *TINY, *flags])
    assert chosen["clusters"] == []


def test_fake_devices_may_be_counted_by_xla_flags(
    chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    chosen["clusters"].clear()
    with pytest.raises(ValueError, match="its 2 devices are not hosts=1 x gpus_per_host=8"):
        main(["--mesh=auto", "--gpu=cpu", *TINY])  # what stands for the search chose 2 of 8
    assert chosen["clusters"] == [Cluster(None, 1, 8)]


def test_gpus_of_a_host_by_default() -> None:
    def config(mesh: str) -> Config:
        return load_config([f"--mesh={mesh}", "--batch_size=64"])

    assert gpus_per_host(config("1x1x1"), None, None) == 1
    assert gpus_per_host(config("4x8x1"), None, None) == 8
    assert gpus_per_host(config("4x8x1"), 4, None) == 8
    assert gpus_per_host(config("1x2x1"), None, 8) == 2
    with pytest.raises(ValueError, match="its 32 devices are not hosts=2 x gpus_per_host=8"):
        gpus_per_host(config("4x8x1"), 2, 8)


def test_jax_is_kept_off_every_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("JAX_PLATFORM_NAME", "gpu")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    dryrun.prepare_environment()
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert "JAX_PLATFORM_NAME" not in os.environ
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
