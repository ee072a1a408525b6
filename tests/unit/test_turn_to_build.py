"""One process builds a text at a time."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from spectral_dist import file_lock
from spectral_dist.data import build as module
from spectral_dist.data.build import build, build_lock
from spectral_dist.data.manifest import bin_path
from spectral_dist.data.tokens import prepare
from spectral_dist.file_lock import FileLock
from spectral_dist.settings import DatasetConfig


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("some words in a line\n" * 30, encoding="utf-8")
    return path


def test_a_text_that_was_built_meanwhile_is_not_built_again(text: Path) -> None:
    lock, told = FileLock(text.with_name(".a.bin.lock")), []
    assert lock.take()

    def report(line: str) -> None:
        told.append(line)
        if "waiting" in line:  # now the other one gets done
            build(text)
            lock.release()

    files = prepare(
        [DatasetConfig(paths=(str(text),))], validation_fraction=0.1, min_tokens=4, report=report
    )
    assert len(files[0].tokens) == len(text.read_bytes()) + 1
    assert told[0].endswith(
        f"waiting for process {os.getpid()} on {os.uname().nodename}, which builds a.bin"
    )
    assert not any("MB/s" in line for line in told)
    assert not list(text.parent.glob(".a.bin*"))


def test_a_builder_that_stands_still_is_given_up(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STALLED_SECONDS", 0.6)
    monkeypatch.setattr(file_lock, "_REPORT_SECONDS", 0.2)
    lock = FileLock(text.with_name(".a.bin.lock"))
    assert lock.take()
    part = text.with_name(".a.bin.0123.tmp")
    start = time.monotonic()

    def grow() -> None:
        for size in range(1, 6):  # progress until 1.0 s
            part.write_bytes(b"x" * size)
            time.sleep(0.2)

    thread = threading.Thread(target=grow)
    thread.start()
    with (
        pytest.raises(ValueError, match=r"has been building a\.bin without progress for 1 s"),
        build_lock({text: bin_path(text)}, lambda line: None),
    ):
        pass
    thread.join()
    assert time.monotonic() - start > 1.2


def test_the_lock_names_its_holder(text: Path) -> None:
    with build_lock({text: bin_path(text)}, lambda line: None):
        held = json.loads(text.with_name(".a.bin.lock").read_text())
        assert held["pid"] == os.getpid()
    assert not text.with_name(".a.bin.lock").exists()
