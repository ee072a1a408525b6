"""`python -m spectral_dist.prepare`: one line for each dataset, one for each mistake."""

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


def test_the_datasets_of_a_settings_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """settings_file: with statistics and samples."""
    (tmp_path / "a.jsonl").write_text(
        '{"body": "aynı"}\n{"body": "başka şey"}\n{"body": "aynı"}\n' * 5, encoding="utf-8"
    )
    (tmp_path / "b.txt").write_text("one\n<|endoftext|>\n" * 30)
    (tmp_path / "run.yaml").write_text(
        f"datasets:\n- {{name: tr, paths: ['{tmp_path}/*.jsonl'], text_field: body}}\n"
        f"- {{paths: ['{tmp_path}/b.txt']}}\n"
    )
    flags = ["--config", str(tmp_path / "run.yaml"), "--stats", "--sample", "2"]
    assert main([*flags, "--validation_fraction", "0.2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("tr: 120 tokens in 15 documents") for line in lines), lines
    row = next(line for line in lines if line.startswith("| tr "))
    assert [cell.strip() for cell in row.strip("|").split("|")][2:8] == [
        *("15", "0", "5", "11", "13", "0.0"),
    ]
    assert "---- tr, sample 2 of 2" in lines
    assert any(line.startswith("aynı<|endoftext|>başka şey<|endoftext|>") for line in lines)


def test_held_out_text_that_is_trained_on_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [
        f"{n} numaralı belge, başka hiçbir yerde geçmeyen bir cümle: {n * n}" for n in range(90)
    ]
    for name, part in (("a", documents[:80]), ("v", documents[70:])):
        (tmp_path / f"{name}.txt").write_text("\n<|endoftext|>\n".join(part), encoding="utf-8")
    (tmp_path / "run.yaml").write_text(
        f"datasets: [{{name: a, paths: ['{tmp_path}/a.txt']}}]\n"
        f"validation: [{{name: v, paths: ['{tmp_path}/v.txt']}}]\n"
    )
    assert main(["--config", str(tmp_path / "run.yaml"), "--stats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("v: ") and "in 20 documents, 1," in line for line in lines), lines
    row = next(line for line in lines if line.startswith("| v "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["v", "20", "10", "10", "50.00%", "a"]
    assert cells[6].startswith("70 numaralı belge")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "data_paths: must name at least one text file"),
        (["--data_paths", ","], "data_paths"),
        (["--data_paths", "a.txt", "--procesess", "2"], "--procesess"),
        (["--data_paths", "a.txt", "--processes", "0"], "processes=0"),
        (["--data_paths", "a.txt", "--processes", "two"], "two"),
        (["--data_paths", "a.txt", "--validation_fraction", "1"], "validation_fraction=1.0"),
        (["--data_paths", "none.txt"], "none.txt: no such file"),
        (["--data_paths", "a.txt", "--sample", "-1"], "sample=-1"),
        (["--config", "none.yaml"], "none.yaml"),
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
    assert done.stderr.startswith(f"error: data_paths: {tmp_path}: is a folder without data files")


def test_shares_are_built_by_any_job_and_are_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """any_job: the tokens do not depend on who makes them, or how often it is tried."""
    for side in ("together", "apart"):
        (tmp_path / side).mkdir()
        for number in range(7):
            (tmp_path / side / f"{number}.txt").write_text(f"metin {number}\n" * (number + 9))
        (tmp_path / side / "empty.txt").touch()
    assert main(["--data_paths", str(tmp_path / "together")]) == 0
    flags = ["--data_paths", str(tmp_path / "apart"), "--processes", "1"]
    for shard, count in (("2/3", 2), ("0/3", 3), ("0/3", 3)):
        assert main([*flags, "--shard", shard]) == 0
        assert f"shard {shard}: {count} files are ready" in capsys.readouterr().out
    assert len(list((tmp_path / "apart").glob("*.bin"))) == 5
    # What a killed job leaves behind: a temporary file, and a manifest without its .bin.
    (tmp_path / "apart" / "1.bin.json").write_text("{}")
    assert main([*flags, "--shard", "1/3"]) == 0
    capsys.readouterr()
    assert main(flags) == 0
    assert "MB/s" not in capsys.readouterr().out  # nothing was left to build
    both = [sorted((tmp_path / side).glob("*.bin")) for side in ("together", "apart")]
    assert [p.name for p in both[0]] == [p.name for p in both[1]]
    assert [p.read_bytes() for p in both[0]] == [p.read_bytes() for p in both[1]]


@pytest.mark.parametrize("shard", ["3/3", "1", "a/b", "-1/3", "1/0", "/"])
def test_a_share_that_is_none(shard: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(ValueError, match="must be I/N, with I from 0 to N - 1"):
        main(["--data_paths", str(tmp_path / "a.txt"), f"--shard={shard}"])
