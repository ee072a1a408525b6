"""An exported folder: what is in it, that nothing is replaced, and that a run begins from it."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from spectral_dist.export import main
from spectral_dist.exporter import _shards, export_run
from tests.end_to_end.test_transformers import random_run
from tests.unit.test_api import folder, make  # noqa: F401 - the fixture
from tests.unit.test_init_from import begun


@pytest.fixture(scope="module")
def run(folder: Path) -> str:  # noqa: F811
    """A run of 4 steps, evaluated after the last."""
    with make(folder, "exported", steps=4, eval_every=4, save_every=4) as trainer:
        list(trainer)
    return "exported"


def test_the_folder_is_complete(folder: Path, run: str, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "new" / "model"
    size = export_run(run, out, checkpoint_dir=folder)
    assert size == pytest.approx((out / "model.safetensors").stat().st_size, rel=0.1)
    # All may read it who may read the rest.
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    config = json.loads((out / "config.json").read_text())
    assert (config["hidden_size"], config["layer_pattern"]) == (32, ["spectral", "window"])
    assert config["spectral_dist"]["step"] == 4
    card = (out / "README.md").read_text()
    assert "4 steps, 256 tokens in sequences of 32" in card  # 4 steps of 2 sequences
    assert "| text | 1.000 |" in card
    assert "Bits per byte on held-out text at that step" in card
    for name in ("modeling", "configuration", "tokenization", "filters"):
        ast.parse((out / f"{name}_spectral.py").read_text())
    for name in ("generation_config.json", "tokenizer_config.json"):
        json.loads((out / name).read_text())
    assert [path for path in out.parent.iterdir()] == [out]


def test_a_model_card_tells_what_the_exported_code_does_not_do(
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    with make(folder, "masked", steps=1, document_mask=True) as trainer:
        list(trainer)
    export_run("masked", tmp_path / "model", checkpoint_dir=folder)
    assert "give it one document at a time" in (tmp_path / "model" / "README.md").read_text()


def test_a_new_run_begins_from_it(folder: Path, run: str, tmp_path: Path) -> None:  # noqa: F811
    export_run(run, tmp_path / "model", checkpoint_dir=folder, shard_bytes=20_000)
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    wanted, _ = begun(folder, "by_run", init_from=run)
    found, _ = begun(folder, "by_export", init_from=str(tmp_path / "model"))
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(
        ValueError, match=r"the parameter .*key_norm.*but float32.2,16. in this model"
    ):
        begun(folder, "other", init_from=str(tmp_path / "model"), layer_pattern="window")


@pytest.mark.parametrize("there", ["file", "full"])
def test_nothing_is_replaced(
    folder: Path,  # noqa: F811
    run: str,
    tmp_path: Path,
    there: str,
) -> None:
    out = tmp_path / "model"
    if there == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is in the way and is not replaced"):
        export_run(run, out, checkpoint_dir=folder)
    assert [p.read_text() for p in (out, out / "mine.txt") if p.is_file()] == ["mine"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run_name", "nobody", "--out", "x"], "no such run"),
        (["--run_name", "exported", "--checkpoint", "9", "--out", "x"], "'9' is not in"),
        (["--run_name", "exported", "--out", "x", "--shard_gb", "0"], "shard_gb=0.0: must be"),
        (["--run_name", "exported", "--out", "/proc/no/x"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path,  # noqa: F811
    run: str,
    flags: list[str],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        main([*flags, "--checkpoint_dir", str(folder)])


def test_files_are_filled_to_the_limit() -> None:
    sizes = {"a": 5, "b": 5, "c": 1, "d": 100, "e": 1}
    assert _shards(sizes, 10) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert _shards(sizes, 1000) == [list(sizes)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--layer_pattern spectral,ssd", "layer_pattern='spectral,ssd': ssd is not exported"),
        (
            "--layer_pattern attention --attention_conv_width 4",
            "attention_conv_width=4: is not exported",
        ),
    ],
)
def test_what_the_exported_model_has_not_is_refused(tmp_path: Path, flags: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        export_run(random_run(flags), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
