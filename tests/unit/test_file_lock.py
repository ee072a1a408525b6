"""A lock of one process, that goes with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spectral_dist.file_lock import FileLock, Holder, held

HOLD = """
import sys, time
from pathlib import Path
from spectral_dist.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]), "job 7")
print(lock.take(), flush=True)
time.sleep(60)
"""


def hold_elsewhere(path: Path) -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    return holder


def test_one_process_holds_it_and_a_killed_one_leaves_none_behind(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold_elsewhere(path) as holder:
        mine = FileLock(path)
        assert not mine.take()
        assert mine.holder().pid == holder.pid
        assert mine.holder().job == "job 7"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert mine.take()  # though its file is still there
    mine.release()
    assert not path.exists()


def test_it_can_be_taken_again_after_a_release(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.take()
    assert not second.take()
    first.release()
    first.release()  # does nothing
    assert second.take()


def test_a_damaged_lock_file_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for content in (b"", b"\xff", b"[1]", b'{"what": 1}'):
        path.write_bytes(content)
        assert FileLock(path).holder() == Holder()
    assert FileLock(path).take()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        FileLock(tmp_path / "none" / "lock").take()


def test_waiting_for_it_tells_and_ends_with_the_holder(tmp_path: Path) -> None:
    path, told = tmp_path / "lock", []
    with hold_elsewhere(path) as holder:
        threading.Timer(0.5, holder.kill).start()
        start = time.monotonic()
        with held(path, lambda holder: told.append(str(holder))):
            assert time.monotonic() - start > 0.3
            assert not FileLock(path).take()
    assert told == [f"process {holder.pid} on {os.uname().nodename}"]
    assert FileLock(path).take()
