import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spectral_dist.outputs import jsonl
from spectral_dist.outputs.jsonl import MetricsFile, read_metrics
from spectral_dist.training.metrics import Record


def record(step: int, value: float = 1.0) -> Record:
    return Record(step, {"train/loss": value})


def steps(path: Path) -> list[int]:
    return [r.step for r in read_metrics(path)]


def strict(line: str) -> dict[str, float]:
    def refuse(word: str) -> float:
        raise AssertionError(word)

    return json.loads(line, parse_constant=refuse)


def test_one_strict_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    output = MetricsFile(path, 0, clock=lambda: 12.3456)
    output.write(Record(5, {"train/loss": math.nan, "a": math.inf, "val/\u011f/x": -1e300}))
    # Nothing waits in a buffer: the line can be read while the run goes on.
    assert [strict(line) for line in path.read_text("utf-8").splitlines()] == [
        {"step": 5, "time": 12.346, "train/loss": None, "a": None, "val/\u011f/x": -1e300}
    ]
    output.close()
    output.close()


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    output = MetricsFile(path, 0)
    values = {"train/loss": 0.1 + 0.2, "perf/tokens_per_second": 1e9}
    output.write(Record(1, values))
    output.write(record(2, math.nan))
    output.close()
    first, second = read_metrics(path)
    assert first == Record(1, values)
    assert math.isnan(second.metrics["train/loss"])


def test_resume_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    output = MetricsFile(path, 0)
    for step in (10, 20, 20, 30, 40):
        output.write(record(step))
    output.close()
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    with path.open("ab") as file:
        file.write(b'{"step": 15, "tra')
    output = MetricsFile(path, 20)
    assert path.read_bytes() == b"".join(kept)
    output.write(record(30))
    output.close()
    assert steps(path) == [10, 20, 20, 30]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_ends_a_line_that_lacks_only_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10}\n{"step": 20}')
    output = MetricsFile(path, 20)
    output.write(record(30))
    output.close()
    assert steps(path) == [10, 20, 30]


def test_new_run_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 10}\n')
    MetricsFile(path, 0).close()
    assert path.read_bytes() == b""


def test_failed_rewrite_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 10}\n{"step": 20}\n'
    path.write_bytes(content)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    warnings: list[str] = []
    output = MetricsFile(path, 10, warn=warnings.append)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    output.write(record(20))
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    output.close()


def test_full_disk_warns_once_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """A limit on the file's size is a full disk that needs no file system of its own."""
    path = tmp_path / "metrics.jsonl"
    script = f"""
import resource, signal
from pathlib import Path
from spectral_dist.outputs.jsonl import MetricsFile
from spectral_dist.training.metrics import Record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
warnings = []
output = MetricsFile(Path({str(path)!r}), 0, warn=warnings.append)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
for step in range(1, 11):
    output.write(Record(step, {{"train/loss": 1.0}}))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
output.write(Record(11, {{"train/loss": 1.0}}))
output.write(Record(12, {{"train/loss": 1.0}}))
output.close()
assert len(warnings) == 1, warnings
assert "\\n" not in warnings[0]
"""
    assert hasattr(signal, "SIGXFSZ")
    subprocess.run([sys.executable, "-c", script], check=True)
    found = steps(path)
    assert found[0] == 1
    assert found[-2:] == [11, 12]
    assert len(found) < 12


def test_unwritable_path_never_raises(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "metrics.jsonl"
    warnings: list[str] = []
    output = MetricsFile(path, 0, warn=warnings.append)
    output.write(record(1))
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    path.parent.mkdir()
    output.write(record(2))
    output.close()
    assert steps(path) == [2]


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"3",
        b"{}",
        b'{"step": "x"}',
        b'{"step": true}',
        b"\xff\xfe",
        b"",
        b"{",
        b'{"step":1.5}',
    ],
)
def test_damaged_lines_are_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2, "note": "text", "a": 1}\n')
    assert read_metrics(path) == [Record(1, {}), Record(2, {"a": 1.0})]


def test_unreadable_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.jsonl.*No such file"):
        read_metrics(tmp_path / "absent.jsonl")


def test_a_file_that_is_deleted_meanwhile_comes_back_and_it_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    metrics = MetricsFile(path, warn=said.append)
    metrics.write(record(1))
    shutil.rmtree(path.parent)
    for step in (2, 3):
        metrics.write(record(step))
    metrics.close()
    assert steps(path) == [2, 3]
    assert said == [f"{path} was deleted; what it held is lost, and a new one is begun"]


def test_a_write_that_fails_whole_leaves_no_blank_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [False, True, True, False]

    class Disk(io.FileIO):
        def write(self, line: Any) -> int:
            if full.pop(0):
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(line)

    monkeypatch.setattr(jsonl, "FileIO", Disk)
    said: list[str] = []
    metrics = MetricsFile(tmp_path / "metrics.jsonl", warn=said.append)
    for step in range(1, 5):
        metrics.write(record(step))
    metrics.close()
    lines = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    assert [bool(line) for line in lines] == [True, True, False]
    assert len(said) == 1
