"""The plan: what a budget is, which runs a curve may rest on, and what is told of each preset."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from spectral_dist import plan
from spectral_dist.flags import load_config
from spectral_dist.plan import Budget, main, read_budget
from spectral_dist.settings.files import to_yaml
from tests.unit.test_curves import law, points


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("8 L4, 5 days", Budget(8, "l4", 432_000)),
        ("1xL4,1.5 hours", Budget(1, "l4", 5_400)),
        (" 16 h100-sxm , 2 weeks ", Budget(16, "h100-sxm", 1_209_600)),
    ],
)
def test_a_budget(text: str, budget: Budget) -> None:
    assert read_budget(text) == budget


@pytest.mark.parametrize("text", ["", "8 L4", "0 L4, 5 days", "8 L4, 0 days", "8 L4, 5 moons"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match=r"^budget=.*: must be GPUs and time, such as"):
        read_budget(text)


def write_run(folder: Path, name: str, n: float, d: float, bits: float, **settings: Any) -> None:
    """Write the files of a run that has ended."""
    (folder / name).mkdir(parents=True)
    flags = {"data_paths": "a", "steps": 10, "hidden_dim": 64} | settings
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    (folder / name / "config.yaml").write_text(to_yaml(load_config(words)))
    lines: list[dict[str, Any]] = [
        # Four bytes a token: 2.77 nats are 4 bits a token, and 1 a byte.
        {"step": 10, "time": 1.0, "train/loss": 2.772588722, "train/bits_per_byte": 1.0},
        {"step": 10, "time": 1.0, "progress/tokens": d / 4, "progress/flops": 6 * n * d / 4},
        {"step": 10, "time": 1.0, "val/bits_per_byte": bits},
    ]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, list[str]]:
    for p in points(0.003):
        write_run(tmp_path, p.name, p.parameters, p.bytes, p.bits)
    return tmp_path, [p.name for p in points()]


def test_the_points_are_those_of_the_runs(runs: tuple[Path, list[str]]) -> None:
    folder, names = runs
    for (point, _), wanted in zip(plan.read_points(names, folder), points(0.003), strict=True):
        assert point.parameters == pytest.approx(wanted.parameters, rel=1e-6)
        assert point.bytes == pytest.approx(wanted.bytes, rel=1e-6)
        assert point.bits == wanted.bits


def report(words: list[str]) -> dict[str, Any]:
    """What a dry run of a preset says: of each level, half the speed of the one before."""
    level = next(n for n in (1, 2, 3) if f"level{n}" in words[0])
    batch = {1: ("64", "1"), 2: ("64", "2"), 3: ("64", "4")}[level]
    assert words[1:4] == ["--mesh=1x8x1", f"--batch_size={batch[0]}", f"--accum_steps={batch[1]}"]
    assert words[4:] == ["--gpu=l4", "--gpus_per_host=8"]
    return {
        "verdict": {"fits": level < 3},
        "config": {"mesh": f"8x{level}x1"},
        "time": {"tokens_per_second": 1e6 / 2**level},
    }


def test_a_plan(
    runs: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plan, "dry_run", report)
    folder, names = runs
    flags = ["--budget", "8 L4, 1 hours", "--checkpoint_dir", str(folder), "--fit", *names]
    assert main([*flags, "--json", str(folder / "plan.json"), "--text", "1e9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("curve through 12 runs of 2e+05 to 1.2e+06 parameters and 5e+05 to")
    assert "level3: does not fit" in lines
    # 500,000 tokens/s, of which half is reached, for an hour.
    (level1,) = (line for line in lines if line.startswith("level1: mesh"))
    assert level1.startswith("level1: mesh 8x1x1, 0.9 GB, 0.9 passes over the text: ")
    best = next(line for line in lines if line.startswith("best: "))
    command = lines[lines.index(best) + 1].strip()
    assert command.startswith("python -m spectral_dist.train --config=")
    assert command.endswith("--mesh=1x8x1 --batch_size=64 --accum_steps=2")
    assert any(line.startswith("note: that is ") and "a guess" in line for line in lines)
    assert [line.split(":")[0] for line in lines[-2:]] == ["half the budget", "twice the budget"]
    written = json.loads((folder / "plan.json").read_text())["plan"]
    assert [(row["preset"], row["share"]) for row in written] == [
        *(("level1", 1.0), ("level2", 1.0), ("level1", 0.5), ("level2", 0.5)),
        *(("level1", 2.0), ("level2", 2.0)),
    ]
    assert written[0]["bytes"] == 0.9e9
    assert written[0]["parameters"] > 3e7
    assert written[2]["expected"]["bits"] > written[0]["expected"]["bits"] > 0.9
    assert [row["best"] for row in written].count(True) == 3


def test_where_nothing_fits(runs: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "dry_run", report)
    folder, names = runs
    flags = ["--budget", "8 L4, 1 hours", "--checkpoint_dir", str(folder), "--fit", *names]
    assert main([*flags, "--configs", "level3"]) == 3


@pytest.mark.parametrize("gpus", [3, 128])
def test_the_batch_of_a_step_is_never_changed(
    runs: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], gpus: int
) -> None:
    folder, names = runs
    flags = ["--budget", f"{gpus} L4, 1 hours", "--checkpoint_dir", str(folder), "--fit", *names]
    assert main([*flags, "--configs", "level1"]) == 3
    assert "level1: its sequences of a step cannot be shared out" in capsys.readouterr().out


def test_a_run_that_the_curve_never_saw(
    runs: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, names = runs
    write_run(folder, "near", 2.4e6, 8e6, law(2.4e6, 8e6))
    write_run(folder, "off", 2.4e6, 8e6, law(2.4e6, 8e6) + 1)
    flags = ["--checkpoint_dir", str(folder), "--fit", *names, "--check", "near", "off"]
    assert main(flags) == 0
    near, off = capsys.readouterr().out.splitlines()[1:]
    assert near.startswith("check near: ")
    assert near.endswith("inside of the interval")
    assert off.endswith("OUTSIDE of the interval")


def test_runs_that_are_no_points(runs: tuple[Path, list[str]]) -> None:
    folder, names = runs
    write_run(folder, "short", 1e6, 1e6, 2.0, steps=20)
    write_run(folder, "other", 1e6, 1e6, 2.0, layer_pattern="window")
    (folder / "empty").mkdir()
    (folder / "unevaluated").mkdir()
    (folder / "unevaluated" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    for name, words in (
        ("short", "fit=short: is at step 10 of 20, or was not evaluated at its end"),
        ("other", "fit=other: layer_pattern='window', but 'spectral,spectral,window' in 2"),
        ("empty", "fit=.*empty: metrics file .* cannot be read"),
        ("unevaluated", "fit=unevaluated: has no settings, or no evaluation"),
    ):
        with pytest.raises(ValueError, match=words):
            main(["--check", names[0], "--checkpoint_dir", str(folder), "--fit", *names, name])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "budget: is missing; or --check RUN compares"),
        (["--budget", "8 L4, 5 days", "--reached", "0"], "reached=0.0: must be above 0"),
        (["--budget", "8 L4, 5 days", "--text", "-1"], "text=-1.0: must be positive"),
        (["--budget", "8 L4, 5 days"], "fit=.*none: metrics file"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        main([*flags, "--fit", "none", "--checkpoint_dir", str(tmp_path)])


def test_hosts_must_divide_the_gpus(runs: tuple[Path, list[str]]) -> None:
    folder, names = runs
    flags = ["--budget", "12 L4, 1 days", "--checkpoint_dir", str(folder), "--fit", *names]
    with pytest.raises(ValueError, match="gpus_per_host=8: does not divide the 12 GPUs"):
        main(flags)


def test_a_dry_run_that_cannot_be_made() -> None:
    assert "jax" in sys.modules  # here, but the process has its own
    with pytest.raises(ValueError, match=r"spectral_dist\.dryrun --gpu=l5: gpu='l5': must be one"):
        plan.dry_run(["--gpu=l5"])
