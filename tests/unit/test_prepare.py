"""`python -m spectral_dist.prepare`: one line for each file, one line for each mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectral_dist.prepare import main


def test_it_prints_one_line_for_each_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("çok güzel\n<|endoftext|>\n" * 100)
    paths = f"{tmp_path / 'a.txt'}, {tmp_path / 'b.txt'}"
    assert main(["--data_paths", paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("b: 1,300 tokens in 100 documents, 13 held out")
    assert main(["--data-paths", paths]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--data_paths"),
        (["--data_paths", ","], "at least one text file"),
        (["--data_paths", "a.txt", "--procesess", "2"], "--procesess"),
        (["--data_paths", "a.txt", "--processes", "0"], "processes=0"),
        (["--data_paths", "a.txt", "--processes", "two"], "two"),
        (["--data_paths", "a.txt", "--validation_fraction", "1"], "validation_fraction=1.0"),
        (["--data_paths", "none.txt"], "none.txt: no such file"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        main(flags)
    assert "\n" not in str(caught.value)


def test_as_a_program_a_mistake_is_one_line_and_a_code(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "spectral_dist.prepare", "--data_paths", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: data_paths: {tmp_path}: is a folder; name the text files in it\n"
