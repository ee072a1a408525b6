"""`evaluate` and `generate`, on a run that was really trained."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spectral_dist import evaluate, generate
from spectral_dist.command_line import run_main
from tests.end_to_end.conftest import Program


@pytest.fixture
def start(trained: Program, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run an entry point beside the trained run; return (exit code, stdout, stderr)."""
    monkeypatch.chdir(trained.folder)

    def run(main: Callable[..., int], *flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["program", *flags])
        with pytest.raises(SystemExit) as ended:
            run_main(main)
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def in_copy(start, copied: Program, monkeypatch: pytest.MonkeyPatch):
    """The same, in a copy that may be changed."""
    monkeypatch.chdir(copied.folder)
    return start


def test_evaluate_scores_the_held_out_text_of_the_run(in_copy, copied: Program) -> None:
    code, out, err = in_copy(
        evaluate.main, "--run_name", "base", "--lengths", "1,2", "--json", "found.json"
    )
    assert (code, err) == (0, "")
    found = json.loads((copied.folder / "found.json").read_text())
    assert found["run_name"] == "base"
    assert found["step"] == 6
    metrics = found["metrics"]
    # What training itself measured after its last step, on the same windows.
    lines = (copied.run_folder("base") / "metrics.jsonl").read_text().splitlines()
    trained = next(line for line in map(json.loads, reversed(lines)) if "val/bits_per_byte" in line)
    for source in ("short", "long"):
        name = f"val/{source}/bits_per_byte"
        assert metrics[name] == pytest.approx(trained[name], rel=1e-5)
        assert source in out
    assert {"extrapolation/2x/bits_per_byte", "extrapolation/2x/long/bits_per_byte"} <= set(metrics)
    assert "2x" in out


def test_evaluate_reads_the_whole_of_another_text(in_copy, copied: Program) -> None:
    (copied.folder / "other.txt").write_text("ağaç kuş şimdi " * 200, encoding="utf-8")
    code, out, _ = in_copy(
        evaluate.main, "--run_name", "base", "--checkpoint", "checkpoint_1", "--lengths", "1",
        "--data_paths", "other.txt", "--windows", "1000", "--json", "found.json",
    )  # fmt: skip
    assert code == 0
    assert "step 4" in out
    assert json.loads((copied.folder / "found.json").read_text())["step"] == 4
    size = len((copied.folder / "other.txt").read_bytes())
    assert (copied.folder / "other.bin").stat().st_size == size + 1


def test_the_same_seed_writes_the_same_text(start) -> None:
    flags = ("--run_name", "base", "--prompt", "ağaç ", "--max_new_tokens", "40")
    texts = [start(generate.main, *flags, "--seed", seed) for seed in ("1", "1", "2")]
    assert [code for code, _, _ in texts] == [0, 0, 0]
    assert texts[0][1] == texts[1][1] != texts[2][1]
    assert texts[0][1].startswith("ağaç ")


def test_a_prompt_of_any_kind_is_the_same_bytes(start, tmp_path: Path) -> None:
    flags = ("--run_name", "base", "--max_new_tokens", "5")
    file = tmp_path / "prompt.txt"
    file.write_text("ağaç ", encoding="utf-8")
    _, wanted, _ = start(generate.main, *flags, "--prompt", "ağaç ")
    # As Python decodes what was typed in a locale without UTF-8.
    hidden = "ağaç ".encode().decode("ascii", "surrogateescape")
    for given in (("--prompt_file", str(file)), ("--prompt", hidden)):
        code, out, _ = start(generate.main, *flags, *given)
        assert (code, out) == (0, wanted)


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (generate.main, ["--run_name", "base", "--prompt_file", "none.txt"], "'none.txt': cannot"),
        (evaluate.main, ["--run_name", "other"], "run_name='other': no such run"),
        (evaluate.main, ["--run_name", ""], "run_name='': no such run"),
        (evaluate.main, [], "--run_name"),
        (evaluate.main, ["--run_name", "base", "--checkpoint", "5"], "'5' is not in"),
        (evaluate.main, ["--run_name", "base", "--lengths", "1,x"], "eval_lengths='x'"),
        (evaluate.main, ["--run_name", "base", "--data_paths", "none.txt"], "none.txt"),
        (evaluate.main, ["--run_name", "base", "--data_paths", ","], "data_paths=','"),
        (evaluate.main, ["--run_name", "base", "--mesh", "2x2"], "mesh='2x2'"),
        (evaluate.main, ["--run_name", "base", "--batch_size", "0"], "batch_size=0"),
        (evaluate.main, ["--run_name", "base", "--json", "no/where.json"], "where.json"),
        (evaluate.main, ["--run_name", "base", "--json", "."], "json='.'"),
        (evaluate.main, ["--runname", "base"], "--run"),
        (generate.main, ["--run_name", "other"], "run_name='other': no such run"),
        (generate.main, ["--run_name", "base", "--checkpoint", "x"], "'x' is not in"),
        (generate.main, ["--run_name", "base", "--max_new_tokens", "0"], "max_new_tokens=0"),
        (generate.main, ["--run_name", "base", "--max_new_tokens", "a"], "--max_new_tokens"),
        (generate.main, ["--run_name", "base", "--temperature", "-1"], "temperature=-1.0"),
        (generate.main, ["--run_name", "base", "--temperature", "nan"], "temperature=nan"),
        (generate.main, ["--run_name", "base", "--seed", "-1"], "seed=-1"),
    ],
)
def test_a_mistake_is_one_line(start, main, flags: list[str], message: str) -> None:
    code, out, err = start(main, *flags)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in out + err


def test_a_damaged_checkpoint_is_named(in_copy, copied: Program) -> None:
    folder = copied.run_folder("base") / "6"
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    code, _, err = in_copy(generate.main, "--run_name", "base")
    assert code == 2
    assert str(Path("base") / "6") in err
    assert err.count("\n") == 1
