"""The parts of a run: its settings, its datasets, and when nothing is left to compile."""

from pathlib import Path
from typing import Any, cast

import pytest

from spectral_dist.assembly import compile_step, make_config, open_datasets
from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.flags import load_config


def test_a_complete_run_compiles_nothing() -> None:
    told: list[str] = []
    config = load_config(["--data_paths", "a.txt", "--steps", "12"])
    for step in (12, 20):
        assert compile_step(config, cast(Any, None), cast(Any, None), step, told.append) is None
    assert told[1] == (
        "complete at step 20: nothing is left to train; a larger --steps continues the run"
    )


def test_sources_are_prepared_and_weights_normalised(tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("one line of text\n" * 40, encoding="utf-8")
    argv = ["--data_paths", ",".join(map(str, paths)), "--data_weights", "3,1", "--seq_len", "16"]
    told: list[str] = []
    alone = Processes(StopSignal())
    config, files = open_datasets(load_config(argv), told.append, alone)
    assert [dataset.weight for dataset in config.datasets] == [0.75, 0.25]
    assert [file.name for file in files] == ["a", "b"]
    assert told[0] == "data_weights=3,1 sum to 4: normalised to 0.75,0.25"
    with pytest.raises(ValueError, match="too short"):
        open_datasets(
            load_config([*argv, "--seq_len", "4000"]), told.append, Processes(StopSignal())
        )


def test_settings_are_a_file_and_keywords_over_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data_paths: [a.txt]\nhidden_dim: 128\nsteps: 40\n")
    config = make_config(file, {"steps": 7, "layer_pattern": "spectral"})
    assert (config.run.steps, config.model.hidden_dim) == (7, 128)
    assert config.optimizer.warmup_steps == 1
    assert make_config(config, {}) == config
    (dataset,) = make_config(str(file), {"data_paths": [tmp_path / "b.txt"]}).datasets
    assert dataset.paths == (str(tmp_path / "b.txt"),)
    assert make_config(None, {}) == load_config([])
    assert make_config(None, {"data_paths": "a.txt,b.txt"}) == load_config(
        ["--data_paths", "a.txt,b.txt"]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden_dim": 3}, "unknown setting 'hiden_dim'; did you mean hidden_dim?"),
        ({"steps": -1}, "steps=-1: must be positive"),
        ({"steps": "many"}, "steps='many': must be an integer"),
    ],
)
def test_a_mistake_in_a_keyword_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"=|unknown") as error:
        make_config(None, {"data_paths": ["a.txt"], **settings})
    assert str(error.value).startswith(message)
