"""Resuming: what a checkpoint says of its run, what may change, and what is told."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokens import TokenFile
from spectral_dist.flags import load_config
from spectral_dist.settings import Config, from_flat, resolve
from spectral_dist.training.checkpoint import Checkpoints
from spectral_dist.training.resume import (
    _changes_data_order,
    check_model,
    check_run,
    describe,
    resume,
    stored_config,
)
from spectral_dist.training.state import TrainState

BASE = ["--data_paths", "a.txt,b.txt", "--data_weights", "0.5,0.5", "--steps", "100"]
STATE = TrainState(cast(Any, np.int32(40)), {}, None, cast(Any, 0), cast(Any, 0))


def file(name: str, sha256: str) -> TokenFile:
    return TokenFile(name, Path(f"{name}.bin"), Tokens([np.zeros(10, np.uint8)]), 1, sha256, 8)


FILES = [file("a", "aa"), file("b", "bb")]


class Stored:
    """Stands for `Checkpoints` with one checkpoint, or none."""

    folder = Path("runs/x")

    def __init__(self, description: dict[str, Any] | None) -> None:
        self.description = description

    def restore_latest(self, abstract: Any, check: Any) -> tuple[Any, dict[str, Any]] | None:
        del abstract
        if self.description is None:
            return None
        check(self.description)
        return STATE, self.description


def resumed(config: Config, files: list[TokenFile] = FILES) -> tuple[Any, list[str]]:
    """Resume from a checkpoint of BASE at row 320; return the outcome and what was told."""
    told: list[str] = []
    stored = cast(Checkpoints, Stored(describe(load_config(BASE), FILES, 320)))
    return resume(stored, STATE, config, files, told.append), told


def test_a_description_gives_its_settings_back() -> None:
    config = load_config([*BASE, "--tau_max", "99", "--num_kv_heads", "4"])
    description = describe(config, FILES, 7)
    assert stored_config(description) == config
    assert description["next_sequence"] == 7
    wanted = {"name": "b", "tokens": 10, "sha256": "bb", "split": 8}
    assert description["datasets"][1] == wanted | {"sketch": FILES[1].sketch}


def test_a_setting_of_another_version_is_named() -> None:
    description = describe(load_config(BASE), FILES, 7)
    description["config"]["no_such_setting"] = 1
    words = r"checkpoint cannot be read \(unknown setting 'no_such_setting'.*another version"
    with pytest.raises(ValueError, match=words):
        stored_config(description)


def test_without_a_checkpoint_the_run_is_new() -> None:
    told: list[str] = []
    none = cast(Checkpoints, Stored(None))
    assert resume(none, STATE, load_config(BASE), FILES, told.append) is None
    assert told == []


def test_the_same_command_resumes_in_silence_but_for_the_step() -> None:
    outcome, told = resumed(load_config(BASE))
    assert outcome == (STATE, 40, 320)
    assert told == ["resumed from step 40 in runs/x"]


@pytest.mark.parametrize(
    ("flags", "change"),
    [
        (["--lr", "1e-4"], "lr 0.001 -> 0.0001"),
        (["--mesh", "2x2x2"], "mesh 1x1x1 -> 2x2x2"),
        (["--batch_size", "32"], "batch_size 16 -> 32"),
        (["--remat", "full"], "remat {} -> full"),
        (["--compute_dtype", "float32"], "compute_dtype bfloat16 -> float32"),
    ],
)
def test_a_change_is_accepted_and_told(flags: list[str], change: str) -> None:
    outcome, told = resumed(load_config([*BASE, *flags]))
    assert outcome == (STATE, 40, 320)
    change = change.format(load_config(BASE).model.remat)
    assert told[1:] == (
        [] if change.endswith("full -> full") else [f"changed since then: {change}"]
    )


def test_changes_without_consequence_are_not_told() -> None:
    flags = ["--log_every", "3", "--keep", "9", "--wandb_mode", "disabled", "--prefetch_steps", "8"]
    _, told = resumed(load_config([*BASE, *flags]))
    assert len(told) == 1


@pytest.mark.parametrize(
    "flags", [["--seed", "1"], ["--seq_len", "1024", "--tau_max", "512"], ["--data_weights", "1,3"]]
)
def test_another_order_of_the_data_is_told(flags: list[str]) -> None:
    _, told = resumed(load_config([*BASE, *flags]))
    assert len(told) == 3
    assert told[2].startswith("the order of the data is another one")


def test_a_longer_run_tells_the_jump_of_its_learning_rate() -> None:
    _, told = resumed(load_config([*BASE, "--steps", "400"]))
    assert told[1].startswith("changed since then: steps 100 -> 400")
    assert told[2] == "the learning rate of the next step is 0.000994, and was to be 0.000726"
    _, same = resumed(load_config([*BASE, "--lr", "0.001001"]))
    assert len(same) == 2


def test_fewer_steps_than_are_done_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^steps=39: run_name=.* has completed 40 steps already"):
        resumed(load_config([*BASE, "--steps", "39", "--warmup_steps", "3"]))


def test_another_text_is_told() -> None:
    _, told = resumed(load_config(BASE), [FILES[0], file("b", "cc")])
    assert len(told) == 2
    assert told[1].startswith("the order of the data is another one")


@pytest.mark.parametrize(
    ("flags", "change"),
    [
        (["--hidden_dim", "256"], "hidden_dim=256 (was 512)"),
        (["--num_layers", "6"], "num_layers=6 (was 12)"),
        (
            ["--layer_pattern", "attention"],
            "layer_pattern=attention (was spectral,spectral,window)",
        ),
        (
            ["--seq_len", "1024"],
            "tau_max=256.0 (was 512.0, follows from data.seq_len, mixers.spectral.tau_min)",
        ),  # derived from it
        (["--num_poles", "8"], "num_poles=8 (was 16)"),
        (["--conv_width", "3"], "conv_width=3 (was 4)"),
    ],
)
def test_another_model_is_refused_by_name(flags: list[str], change: str) -> None:
    with pytest.raises(ValueError, match="run_name='default' was trained with another") as caught:
        resumed(load_config([*BASE, *flags]))
    assert change in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_optimizer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^optimizer\.name=muon: ") as caught:
        resumed(load_config([*BASE, "--optimizer.name", "muon"]))
    assert "run_name='default' was trained with adamw" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_older_than_the_choice_of_an_optimizer_is_adamws() -> None:
    description = describe(load_config(BASE), FILES, 0)
    del description["config"]["optimizer.name"]
    check_run(load_config(BASE), description)
    with pytest.raises(ValueError, match="trained with adamw"):
        check_run(load_config([*BASE, "--optimizer.name", "lion"]), description)


def test_the_settings_of_an_optimizer_may_change() -> None:
    then = load_config([*BASE, "--optimizer.name", "muon"])
    now = load_config([*BASE, "--optimizer.name", "muon", "--optimizer.momentum", "0.9"])
    check_run(now, describe(then, FILES, 0))


def test_how_the_model_is_computed_may_change() -> None:
    flags = ["--chunk_size", "64", "--spectral_form", "fft", "--compute_dtype", "float32"]
    check_model(load_config([*BASE, *flags]), describe(load_config(BASE), FILES, 0))


def test_phases_in_tokens_keep_the_size_of_a_step() -> None:
    def settings(**changes: object) -> Config:
        lengths = [{"tokens": 5000, "weights": {"a": 1.0}}, {"tokens": 99, "weights": {"a": 1.0}}]
        datasets = [{"name": "a", "paths": ["a.txt"]}]
        values = {"phases": lengths, "datasets": datasets, "seq_len": 64, "batch_size": 4}
        return resolve(from_flat(values | changes))

    then = describe(settings(), FILES, 0)
    # As many tokens by other numbers; and a run of steps, whatever its steps hold.
    check_run(settings(batch_size=2, accum_steps=2), then)
    with pytest.raises(ValueError, match=r"^phases\.0\.tokens=5000: a step of run_name='default'"):
        check_run(settings(batch_size=2), then)
    with pytest.raises(ValueError, match=r"was 256 tokens and is now 512; keep batch_size x "):
        check_run(settings(batch_size=8), then)
    check_run(settings(batch_size=8, phases=[{"steps": 9, "weights": {"a": 1.0}}]), then)


def test_the_rate_of_a_phase_changes_no_order() -> None:
    def phases(factor: float, steps: int = 5, ramp: int = 0) -> list[dict[str, object]]:
        return [{"steps": steps, "weights": {"a": 1.0}, "lr_factor": factor, "ramp": ramp}]

    assert not _changes_data_order("phases", phases(1.0), phases(0.5))
    assert _changes_data_order("phases", phases(1.0), phases(1.0, steps=6))
    assert _changes_data_order("phases", phases(1.0), phases(1.0, ramp=1))
    assert _changes_data_order("seed", 0, 1)
    assert not _changes_data_order("data_paths", ["a"], ["b"])
