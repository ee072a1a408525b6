"""The parts of a run: its settings, its datasets, and when nothing is left to compile."""

from pathlib import Path
from typing import Any, cast

import jax
import pytest

from spectral_dist.assembly import compile_step, make_config, open_batches, open_datasets
from spectral_dist.cluster.agreement import Processes
from spectral_dist.cluster.signals import StopSignal
from spectral_dist.data.tokens import TokenFile
from spectral_dist.flags import load_config
from spectral_dist.mesh import make_mesh
from spectral_dist.settings import Config, from_layers, resolve
from spectral_dist.training.evaluation import Evaluation


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
    config, files, held_out = open_datasets(load_config(argv), told.append, alone)
    assert held_out is files
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


def write_documents(path: Path, first: int, count: int) -> Path:
    path.write_text(
        "".join(
            f"belge {i}: {i * i}" + " x" * 30 + "\n<|endoftext|>\n"
            for i in range(first, first + count)
        )
    )
    return path


def test_validation_datasets_of_their_own(tmp_path: Path) -> None:
    """validation_datasets: nothing of the others is held out, and all of theirs is."""
    train = write_documents(tmp_path / "a.txt", 0, 200)
    write_documents(tmp_path / "b.txt", 1000, 50)
    write_documents(tmp_path / "c.txt", 100, 300)
    told: list[str] = []

    def opened(*validation: dict[str, object]) -> tuple[Config, list[TokenFile], list[TokenFile]]:
        values = {"datasets": [{"paths": [str(train)]}], "seq_len": 32}
        config = resolve(from_layers([{**values, "validation": list(validation)}]))
        told.clear()
        return open_datasets(config, told.append, Processes(StopSignal()))

    _, files, held_out = opened()
    assert files is held_out
    assert 0 < len(files[0].validation) < len(files[0].tokens)
    b = {"paths": str(tmp_path / "b.txt"), "name": "a", "weight": 2}
    config, (file,), (other,) = opened(b)
    assert (file.name, other.name) == ("a", "a")
    assert (len(file.train), len(file.validation)) == (len(file.tokens), 0)
    assert (len(other.train), len(other.validation)) == (0, len(other.tokens))
    assert not any("warning" in line for line in told)
    evaluation = Evaluation(config, [other], make_mesh((1, 1, 1), jax.devices()[:1]), report=print)
    assert evaluation._weights == {"a": 1.0}
    # Some of it is trained on; all of it is.
    opened({"paths": str(tmp_path / "c.txt")})
    assert any("warning: validation c holds" in line and "of 64 documents" in line for line in told)
    with pytest.raises(ValueError, match="validation: a is the same text as the dataset a, which"):
        opened({"paths": str(train)})
    with pytest.raises(ValueError, match=r"^validation\.1\.weight: must be given"):
        opened(b, {"paths": "x"})
    with pytest.raises(ValueError, match=r"^validation\.0\.name='a': two datasets have it"):
        opened(b, {"paths": "x", "name": "a", "weight": 1})
    (tmp_path / "short.txt").write_text("short\n")
    with pytest.raises(ValueError, match=r"short\.txt: too short: 7 tokens, and 33 are needed"):
        opened({"paths": str(tmp_path / "short.txt")})


def test_passes_are_told_and_many_are_a_warning(tmp_path: Path) -> None:
    """repeated_text: said at every start, of what comes by the last step."""
    path = write_documents(tmp_path / "a.txt", 0, 50)
    values = {"datasets": [{"paths": [str(path)]}], "seq_len": 32, "batch_size": 4}
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    for steps, warned in ((10, False), (200, True)):
        config = resolve(from_layers([{**values, "steps": steps}]))
        config, files, _ = open_datasets(config, lambda line: None, Processes(StopSignal()))
        told: list[str] = []
        with jax.set_mesh(mesh):
            open_batches(config, files, mesh, 0, 0, told.append).close()
        windows = (len(files[0].train) - 1) // 32
        wanted = f"{steps * 4 * config.data.accum_steps / windows:.3g}"
        assert told[0] == f"passes over each dataset by step {steps}: a {wanted}"
        assert any("warning: more than 4 passes over a:" in line for line in told) == warned
