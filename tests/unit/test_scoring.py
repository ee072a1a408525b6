"""Which text is scored: of one that was trained on the held-out part, of any other all of it."""

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


def test_other_texts_are_named_by_commas(text: Path) -> None:
    for given in (f"{text},", f" {text} , {text},"):
        assert {f.name for f in open_texts(loaded(text, []), given, Console(0))} <= {"a", "a_2"}
    with pytest.raises(ValueError, match="data_paths=',': must be files joined by commas"):
        open_texts(loaded(text, []), ",", Console(0))
