"""`spectral-dist bench`: its parts, what it writes, and what it says of failures."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.figures import Figure, compared, single
from benchmarks.picture import draw
from spectral_dist import bench

FIGURES = [
    *compared("step", "T=8", "ms a step", {"ours": [1.0, 2.0], "llama": [2.0, 2.0]}, at=8),
    *(
        figure
        for at in (8, 16)
        for figure in compared("mixer", f"T={at}", "us a token", {"ours": [1.0]}, at=at)
    ),
    *(single("generation", f"{at}", "ours", "ms a byte", [3.0], at=at) for at in (8, 16)),
]


def test_every_part_is_a_benchmark() -> None:
    for name, (module, text) in benchmarks.PARTS.items():
        loaded = importlib.import_module(module)
        assert callable(loaded.main), name
        assert name == loaded.PART
        assert text


@pytest.mark.slow
def test_a_real_part_is_in_the_table_and_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "found"
    assert bench.main(["--parts=loader", "--quick", f"--out={folder}"]) == 0
    printed = capsys.readouterr().out
    assert "text to tokens, 8 MB" in printed
    assert str(folder / "bench.json") in printed
    written = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    assert {figure["part"] for figure in written["figures"]} == {"loader"}
    assert written["machine"]["versions"].keys() >= {"python", "jax", "spectral-dist"}
    # Nothing in a loader is compared or grows with a length.
    assert [path.name for path in folder.iterdir()] == ["bench.json"]


def test_a_part_that_fails_does_not_take_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_part(name: str, folder: Path, quick: bool) -> tuple[list[Figure], int]:
        return [f for f in FIGURES if f.part == name], 2 if name == "step" else 0

    monkeypatch.setattr(benchmarks, "run_part", run_part)
    with pytest.raises(ValueError, match=r"^parts=step: failed; the lines above say why$"):
        benchmarks.main(["--parts=step,mixer", f"--out={tmp_path / 'found'}"])
    written = json.loads((tmp_path / "found" / "bench.json").read_text(encoding="utf-8"))
    assert {figure["part"] for figure in written["figures"]} == {"step", "mixer"}
    assert (tmp_path / "found" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "llama" in capsys.readouterr().out


def test_a_part_ends_with_its_code_and_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(words: list[str], **others: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(words[1:])
        file = next(word for word in words if word.startswith("--json=")).removeprefix("--json=")
        Path(file).write_text(json.dumps({"figures": [FIGURES[0].__dict__]}), encoding="utf-8")
        return subprocess.CompletedProcess(words, 2)

    monkeypatch.setattr(subprocess, "run", run)
    assert benchmarks.run_part("device", tmp_path, quick=True) == ([FIGURES[0]], 2)
    file = tmp_path / "device.json"
    trace = f"--trace={tmp_path / 'trace'}"
    assert asked == [["-m", "benchmarks.device", f"--json={file}", "--quick", trace]]
    assert not file.exists()


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^parts=speed: must be among device, step, mixer, "):
        benchmarks.main(["--parts=speed"])
    with pytest.raises(ValueError, match=r"^parts=: must be among"):
        benchmarks.main(["--parts="])
    (tmp_path / "old.txt").touch()
    with pytest.raises(ValueError, match="is there already; name a new folder"):
        benchmarks.main([f"--out={tmp_path}"])
    monkeypatch.setattr(bench, "_CHECKOUT", tmp_path)
    with pytest.raises(ValueError, match=r"^bench: the benchmarks are not in an installed wheel"):
        bench.main([])


def test_the_picture_needs_matplotlib_and_something_to_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(FIGURES, tmp_path / "a.png", "a machine")
    assert not draw(FIGURES[:1], tmp_path / "b.png", "ours alone")
    assert not (tmp_path / "b.png").exists()
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert benchmarks._picture(FIGURES, tmp_path, "a machine") == []
    assert "needs matplotlib" in capsys.readouterr().err


def test_the_machine_is_described() -> None:
    about = benchmarks.machine()
    assert about["cores"] >= 1
    assert about["memory_bytes"] > 2**30
    assert f"jax {about['versions']['jax']}" in benchmarks.describe(about)
