"""Which text is scored: of one that was trained on the held-out part, of any other all of it."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from spectral_dist.flags import load_config
from spectral_dist.inference import LoadedRun
from spectral_dist.outputs.console import Console
from spectral_dist.scoring import open_texts


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("one line of text\n" * 40, encoding="utf-8")
    return path


def loaded(text: Path, datasets: list[dict[str, Any]]) -> LoadedRun:
    config = load_config(["--data_paths", str(text)])
    return LoadedRun(config, {}, 3, {"datasets": datasets}, cast(Any, None))


def test_what_was_trained_on_is_left_out(text: Path) -> None:
    (whole,) = open_texts(loaded(text, []), None, Console(0))
    assert (whole.name, whole.split) == ("a", 0)
    known = [{"sha256": whole.sha256, "split": 600}]
    (held_out,) = open_texts(loaded(text, known), None, Console(0))
    assert len(held_out.validation) == len(whole.tokens) - 600


def test_a_text_that_changed_since_is_known_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.txt"
    documents = [
        f"document {i}: {i * i} is its square, of course\n<|endoftext|>\n" for i in range(200)
    ]
    path.write_text("".join(documents))
    (whole,) = open_texts(loaded(path, []), None, Console(0))
    trained = dataclasses.replace(whole, split=int(whole.tokens.places_of(0)[149]) + 1)
    known = [{"sha256": whole.sha256, "split": trained.split, "sketch": trained.sketch}]
    path.write_text("".join([*documents, "one line more\n"]))
    (grown,) = open_texts(loaded(path, known), None, Console(0))
    assert grown.split == trained.split
    assert f"scored from token {trained.split:,} of" in capsys.readouterr().out
    path.write_text("".join(reversed(documents)))
    (other,) = open_texts(loaded(path, known), None, Console(0))
    assert other.split == 0
    assert "of 64 documents sampled from what the run was trained on" in capsys.readouterr().out


def test_other_texts_are_named_by_commas(text: Path) -> None:
    for given in (f"{text},", f" {text} , {text},"):
        assert {f.name for f in open_texts(loaded(text, []), given, Console(0))} <= {"a", "a_2"}
    with pytest.raises(ValueError, match="data_paths=',': must be files joined by commas"):
        open_texts(loaded(text, []), ",", Console(0))
