"""Programs in processes of their own: what they write comes back, and so does why they failed."""

from pathlib import Path

import pytest

from spectral_dist.subprocesses import run_module


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that does as its first word says; its last word is --json=FILE."""
    (tmp_path / "speaker.py").write_text(
        "import os, pathlib, sys\n"
        "said, path = sys.argv[1], sys.argv[-1].removeprefix('--json=')\n"
        "print('noise'); print('first line\\nerror: the reason', file=sys.stderr)\n"
        "if said != 'silent': pathlib.Path(path).write_text('{\"said\": \"%s %s\"}'"
        " % (said, os.environ.get('ASKED')))\n"
        "sys.exit(3 if said == 'three' else 0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "speaker"


def test_the_json_comes_back(program: str) -> None:
    assert run_module(program, ["yes"], environment={"ASKED": "for"}) == {"said": "yes for"}
    assert run_module(program, ["three"], accept=(0, 3)) == {"said": "three None"}


@pytest.mark.parametrize("word", ["three", "silent"])
def test_a_failure_is_the_last_line_of_stderr(program: str, word: str) -> None:
    with pytest.raises(ValueError, match=f"^speaker {word}: the reason$"):
        run_module(program, [word])
