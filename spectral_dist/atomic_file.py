"""Atomic writes: a file appears whole or not at all, even if the process or the machine dies.

Owns the temporary file beside the target: its name, its fsync before the rename, and its removal,
after an error at once and after a kill by the next writer. Read `replacing`.
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
# On a file system without locks, one that was not written to for this long is abandoned.
_ABANDONED_SECONDS = 3600.0


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: open a temporary file that replaces `path` at the end of the block.

    The file's `name` is the temporary path. After the block, content and name are on the disk;
    after an exception, `path` is unchanged.

    Args:
      path: the file to write, new or existing, in an existing folder. A link is replaced, not
        followed.

    Raises:
      OSError: if it cannot be written.
    """
    with scratch(path) as file:
        yield file
        file.flush()
        # Without fsync, a crash of the machine can leave the new name with no content.
        os.fsync(file.fileno())
        os.replace(file.name, path)
    _sync_folder(path.parent)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file of `path`, which is gone after the block.

    Args:
      path: what the file is for, in an existing folder.

    Raises:
      OSError: if it cannot be made.
    """
    _remove_abandoned(path)
    temporary = _temporary(path)
    try:
        # Not `tempfile`, whose files only their owner can read: others may read a run folder.
        with temporary.open("xb") as file:
            # The kernel drops this lock when we die: it tells a file that is being written from one
            # that a killed writer left.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
    finally:  # after Ctrl-C too
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

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
    """Point the symbolic link `path` to `target`, atomically if it existed before.

    Raises:
      OSError: if it cannot be made.
    """
    for left in temporaries(path):  # a link cannot be locked, and lives for an instant
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
    """Yield the temporary files of `path`, from active writers and from killed ones."""
    return path.parent.glob(f".{glob.escape(path.name)}.*.tmp")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _remove_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        for left in temporaries(path):
            if _is_abandoned(left):
                left.unlink(missing_ok=True)


def _is_abandoned(left: Path) -> bool:
    """Return whether the writer of a temporary file is gone."""
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
    # Puts the new name on the disk too. Some file systems have no fsync for folders: there, a crash
    # of the machine may bring back the old name with the old content.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
