"""A run with a tokenizer of its own: trained, its file gone, resumed, generated from, exported."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from spectral_dist.data.tokenizer_training import train_bpe
from spectral_dist.data.tokens import prepare
from spectral_dist.exporter import export_run
from spectral_dist.inference import Generator, load_run
from spectral_dist.mesh import make_mesh
from spectral_dist.settings import DatasetConfig
from spectral_dist.training.init_from import first_state
from tests.unit.test_api import folder, make  # noqa: F401 - the fixture

pytestmark = pytest.mark.slow

STEPS = {"save_every": 2, "eval_every": 2}


def trained_tokenizer(out: Path, text: Path, vocab_size: int) -> str:
    out.parent.mkdir(parents=True, exist_ok=True)
    how = {"validation_fraction": 0.1, "min_tokens": 1, "report": lambda line: None}
    files = prepare([DatasetConfig(paths=(str(text),))], **how)  # type: ignore[arg-type]
    train_bpe(files, [1.0], vocab_size, 10**6, lambda line: None).save(str(out))
    return str(out)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:  # noqa: F811
    """A run of 2 steps, with a tokenizer of 300 tokens in a folder that is gone afterwards."""
    there = folder / "elsewhere" / "t.json"
    name = trained_tokenizer(there, folder / "text.txt", 300)
    with make(folder, "bpe", steps=2, tokenizer=name, **STEPS) as trainer:
        records = list(trainer)
        assert trainer.params["embed"].shape[0] == 384  # the next multiple of 128
    losses = [r.metrics["train/loss"] for r in records if "train/loss" in r.metrics]
    assert losses[0] == pytest.approx(
        np.log(300), rel=0.05
    )  # a uniform guess over tokens, not rows
    shutil.move(there, folder / "t.json")
    return folder / "bpe"


def test_the_run_is_read_with_its_own_copy(run: Path, tmp_path: Path) -> None:
    text = Generator(run).text("Bir ", max_new_tokens=5, seed=1)
    assert isinstance(text, str)
    loaded = load_run(run)
    assert loaded.config.data.tokenizer == str(run / "tokenizer.json")
    export_run(loaded, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    told = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["eos_token_id"] == 0
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "tokenization_spectral.py").exists()


def test_the_same_tokenizer_elsewhere_resumes_and_another_does_not(
    folder: Path,  # noqa: F811
    run: Path,
) -> None:
    kept = (run / "config.yaml").read_bytes()
    other = trained_tokenizer(folder / "other.json", folder / "text.txt", 301)
    for wrong in (other, "bytes"):
        with pytest.raises(ValueError, match=r"^tokenizer='.*was trained with bpe-"):
            make(folder, "bpe", steps=4, tokenizer=wrong, **STEPS)
    assert (run / "config.yaml").read_bytes() == kept
    with make(folder, "bpe", steps=4, tokenizer=str(folder / "t.json"), **STEPS) as trainer:
        assert trainer.step == 2
        list(trainer)
        assert trainer.step == 4


def test_parameters_of_another_vocabulary_are_warned_of(folder: Path, run: Path) -> None:  # noqa: F811
    other = trained_tokenizer(folder / "other.json", folder / "text.txt", 301)
    told: list[str] = []
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    with make(folder, "next", steps=2, tokenizer=other, **STEPS) as trainer:
        config = trainer.config
    settings = dataclasses.replace(config.run, init_from=str(run))
    config = dataclasses.replace(config, run=settings)
    with jax.set_mesh(mesh):
        first_state(config, mesh, told.append)
    assert "was trained with the tokenizer bpe-" in told[-1]
