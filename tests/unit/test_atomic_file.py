"""Files that appear whole or not at all, and what a killed writer leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from spectral_dist.atomic_file import replace_link, replacing, temporaries, write_bytes, write_text

WRITE = """
import sys
from pathlib import Path
from typing import BinaryIO
from spectral_dist.atomic_file import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_changes_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a [1].json"
    write_text(path, "ığdır\n")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text(encoding="utf-8") == "ığdır\n"
        assert Path(file.name).read_bytes() == b"new"
        assert list(temporaries(path)) == [Path(file.name)]
    assert path.read_bytes() == b"new"
    assert entries(tmp_path) == [path.name]


def test_its_permissions_are_those_of_any_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def _stop_half_way(file: BinaryIO) -> None:
    file.write(b"new")
    raise KeyboardInterrupt


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        _stop_half_way(file)
    with monkeypatch.context() as patch:
        patch.setattr(os, fails, fail)
        with pytest.raises(OSError, match="No space"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["a"]


def test_content_and_name_are_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_bytes(tmp_path / "a", b"x")
    assert len(synced) == 2
    assert Path(synced[0]).name.startswith(".a.")
    assert synced[1] == str(tmp_path)


def test_what_a_killed_writer_left_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    command = [sys.executable, "-c", WRITE, str(path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living,
    ):
        for writer in (killed, living):
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"written\n"
        for left in temporaries(path):  # as if both had stood still for two hours
            os.utime(left, (time.time() - 7200,) * 2)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        write_bytes(path, b"mine")
        assert len(list(temporaries(path))) == 1
        living.communicate(b"")
    assert path.read_bytes() == b"half"  # the later one wins, whole
    assert entries(tmp_path) == ["a"]
    fresh = tmp_path / ".a.0123.tmp"  # its writer may be about to lock it
    fresh.write_bytes(b"")
    write_bytes(path, b"mine")
    assert fresh.exists()
    write_bytes(tmp_path / "b", b"another file's are not touched")
    assert fresh.exists()


def test_a_link_moves_in_one_step(tmp_path: Path) -> None:
    link = tmp_path / "checkpoint_0"
    (tmp_path / ".checkpoint_0.0123.tmp").symlink_to("7")  # a kill left it
    replace_link(link, "10")
    replace_link(link, "20")
    assert os.readlink(link) == "20"
    assert entries(tmp_path) == ["checkpoint_0"]
