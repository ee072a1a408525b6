"""RUN/faults.log: texts and the stacks of all threads."""

import os
import time
from pathlib import Path

import pytest

from spectral_dist import fault_log
from spectral_dist.fault_log import FaultLog


def test_texts_and_stacks_are_added(tmp_path: Path) -> None:
    log = FaultLog(tmp_path, 3)
    log.write("Traceback: one\n")
    log.write_stacks()
    text = (tmp_path / "faults.log").read_text()
    assert text.count(", process 3") == 2
    assert text.startswith("---- 2")
    assert "Traceback: one\n----" in text
    assert "test_texts_and_stacks_are_added" in text.partition("the stacks of all threads")[2]


def test_a_disk_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "faults.log")  # an open for writing waits for a reader
    monkeypatch.setattr(fault_log, "_PATIENCE_SECONDS", 0.2)
    before = time.monotonic()
    FaultLog(tmp_path, 0).write_stacks()
    assert time.monotonic() - before < 10


def test_no_folder_is_no_error(tmp_path: Path) -> None:
    FaultLog(tmp_path / "gone", 0).write_stacks()
    with pytest.raises(FileNotFoundError):
        FaultLog(tmp_path / "gone", 0).write("x")
