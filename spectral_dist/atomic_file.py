"""Files that appear whole or not at all, whatever kills the process or the machine.

Owns the temporary file beside the one to be written: its name, its place on the disk before the
rename, and its removal after an error or, by the next writer, after a kill. Read `replacing`.
"""

import contextlib
import fcntl
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# A younger temporary file may belong to a writer that has not locked it yet.
_YOUNG_SECONDS = 60.0
# Where there are no locks, one that was not written to for so long belongs to nobody.
_ABANDONED_SECONDS = 3600.0


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` when the block ends well.

    The file's `name` is the temporary path. After the block content and name are on the disk; after
    an exception `path` is as it was.

    Args:
      path: of the file, there or not; its folder must exist. A link is replaced, not followed.

    Raises:
      OSError: if it cannot be written.
    """
    _remove_abandoned(path)
    temporary = _temporary(path)
    try:
        # Not `tempfile`: its files are readable by their owner alone, these by whom umask lets.
        with temporary.open("xb") as file:
            # Held as long as we live: what tells a writer's file from what a killed one left.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            # Without it a crash of the machine can leave the new name with none of the content.
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | bytearray) -> None:
    """Write a file, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


def replace_link(path: Path, target: str) -> None:
    """Let `path` be a symbolic link to `target`, in one step where it was another link.

    Raises:
      OSError: if it cannot be made.
    """
    for left in temporaries(path):  # a link cannot be locked, nor is it ever left for long
        left.unlink(missing_ok=True)
    temporary = _temporary(path)
    temporary.symlink_to(target)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def temporaries(path: Path) -> Iterator[Path]:
    """Yield the temporary files of `path`: of writers at work, and those that killed ones left."""
    return path.parent.glob(f".{glob.escape(path.name)}.*.tmp")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _remove_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        for left in temporaries(path):
            if _is_abandoned(left):
                left.unlink(missing_ok=True)


def _is_abandoned(left: Path) -> bool:
    """Tell whether the writer of a temporary file has gone."""
    age = time.time() - left.stat().st_mtime
    if age < _YOUNG_SECONDS:
        return False
    try:
        with left.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return age > _ABANDONED_SECONDS
    return True


def _sync_folder(folder: Path) -> None:
    # Puts the new name on the disk too. Some file systems know no fsync of a folder: there the
    # name may be the old one after a crash of the machine, with the old content.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
