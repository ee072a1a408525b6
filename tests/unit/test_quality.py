"""The bake-off: what is run in which order, what counts as best, and that it goes on."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality
from benchmarks.quality import Result, Run, best, flags_of, main, planned, read_results, table
from spectral_dist.flags import load_config
from spectral_dist.training.state import model_spec

pytestmark = pytest.mark.slow


def result(variant: str, lr: float, bits: float, seed: int = 0, steps: int = 9) -> Result:
    return Result(
        run=Run(variant, "screen", steps, lr, seed),
        parameters=1_000_000,
        tokens=1000,
        bits_per_byte=bits,
        by_dataset={"turkish": bits, "code": bits + 1},
        extrapolation={"1x": bits, "2x": bits - 0.01, "4x": bits - 0.02},
        step_seconds=0.5,
        flops=7e6,
    )


def test_every_variant_comes_once_before_any_comes_twice() -> None:
    runs = planned(["a", "b"], "screen", [10, 20], [1e-3, 2e-3], [0, 1])
    assert len(set(runs)) == len(runs) == 16
    assert [(r.variant, r.lr) for r in runs[:4]] == [
        *(("a", 1e-3), ("b", 1e-3), ("a", 2e-3), ("b", 2e-3))
    ]
    assert [r.steps for r in runs] == [10] * 8 + [20] * 8


def test_the_best_rate_has_the_lowest_mean_among_those_with_most_seeds() -> None:
    found = dict(
        (first.run.variant, (first.run.lr, len(runs)))
        for first, runs in best(
            [
                *(result("a", 1e-3, 2.0), result("a", 1e-3, 2.2, seed=1)),
                *(result("a", 2e-3, 2.3), result("a", 2e-3, 2.1, seed=1)),
                result("a", 4e-3, 1.0),  # one seed alone
                *(result("b", 1e-3, 2.5), result("b", 2e-3, 2.4)),
            ]
        )
    )
    assert found == {"a": (1e-3, 2), "b": (2e-3, 1)}
    shown = table([result("a", 1e-3, 2.0), result("a", 1e-3, 2.2, seed=1), result("b", 1e-3, 1.9)])
    columns = {column.header: list(column.cells) for column in shown.columns}
    assert columns["variant"] == ["b", "a"]
    assert columns["bits/byte"] == ["1.9000", "2.1000"]
    assert columns["spread"] == ["-", "0.2000"]
    assert columns["2x"] == ["-0.0100", "-0.0100"]
    assert columns["code"] == ["2.900", "3.100"]


@pytest.mark.parametrize("size", quality.SIZES)
def test_variants_have_about_as_many_parameters(tmp_path: Path, size: str) -> None:
    (tmp_path / "turkish.txt").write_text("a")
    counts = {}
    for name in quality.VARIANTS:
        flags = flags_of(Run(name, size, 10, 1e-3, 0), tmp_path, tmp_path)
        parameters = model_spec(load_config(flags)).parameters
        counts[name] = sum(p.size for p in parameters if not p.name.startswith("ngrams/"))
    # The coefficients of poles are many beside the matrices of a width of 128.
    allowed = {"tiny": 1.07, "mini": 1.05, "screen": 1.02}.get(size, 1.01)
    assert max(counts.values()) < allowed * min(counts.values()), counts


def test_a_bake_off_is_continued_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(f"belge {n}: ışığı görünce şaşırdı\n<|endoftext|>\n" for n in range(300))
    text = text.replace("<|endoftext|>\n", "", 200)  # the last third is short documents
    text = text + text.replace("<|endoftext|>\n", "")
    (tmp_path / "turkish.txt").write_text(text)
    tiny = {"hidden_dim": 16, "num_layers": 1, "head_dim": 8, "num_kv_heads": 2, "window": 8}
    tiny |= {"seq_len": 32, "batch_size": 2}
    monkeypatch.setitem(quality.SIZES, "screen", tiny | {"compute_dtype": "float32"})
    flags = ["--corpus", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "2"]
    flags += ["--lrs", "1e-3", "--variants", "spectral,ssd"]
    run, started = subprocess.run, list[str]()

    def second_fails(command: list[str], **how: Any) -> Any:
        started.append(command[command.index("--layer_pattern") + 1])
        if len(started) == 2:
            return subprocess.CompletedProcess(command, 75)
        return run(command, **how)

    monkeypatch.setattr(quality.subprocess, "run", second_fails)
    assert main(flags) == 75
    (first,) = read_results(tmp_path / "out" / "results.jsonl")
    assert (first.run, first.tokens) == (Run("spectral", "screen", 2, 1e-3, 0), 128)
    assert set(first.by_dataset) == {"turkish"}
    assert {"1x", "2x", "4x"} <= set(first.extrapolation)
    assert 4 < first.bits_per_byte < 12
    assert first.flops > 6 * 16 * 16
    assert main(flags) == 0
    assert started == ["spectral", "ssd", "ssd"]
    assert [r.run.variant for r in read_results(tmp_path / "out" / "results.jsonl")] == [
        *("spectral", "ssd")
    ]
    capsys.readouterr()
    assert main([*flags, "--table"]) == 0
    assert "| ssd " in capsys.readouterr().out
    assert dataclasses.replace(first) in read_results(tmp_path / "out" / "results.jsonl")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--variants", "x"], "variants=x: must be among attention, "),
        (["--lrs", "a"], "lrs=a: must be numbers joined by commas"),
        ([], "holds none of turkish, code, english, math, each .txt"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        main(["--corpus", str(tmp_path), "--out", str(tmp_path / "out"), *flags])
