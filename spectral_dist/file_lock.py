"""A lock on a path, held by one process of any host that sees it, and gone when that process is.

Owns the lock file and what it says of its holder. The lock is the kernel's (`flock`, which NFS
carries to other hosts), so that a killed process leaves none behind. Read `FileLock` first.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_LOOK_SECONDS, _TELL_SECONDS = 0.2, 2.0


class FileLock:
    """An exclusive lock; not for two threads of one process."""

    def __init__(self, path: Path, job: str = "") -> None:
        """Name the lock file; its folder must exist by the time it is taken.

        Args:
          path: of the lock file, which is there as long as the lock is held.
          job: what to say of the holder beside host and process.
        """
        self.path = path
        self._job = job
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock if nobody holds it.

        Raises:
          OSError: if the folder cannot be written or knows no locks.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between our two calls.
            same = os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except (BlockingIOError, FileNotFoundError):
            same = False
        except OSError:
            os.close(descriptor)
            raise
        if not same:
            os.close(descriptor)
            return False
        me = {"host": socket.gethostname(), "pid": os.getpid(), "job": self._job}
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(me).encode())
        self._descriptor = descriptor
        return True

    def holder(self) -> dict[str, str | int]:
        """Return host, pid and job of the holder, as far as they can be read."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def release(self) -> None:
        """Give the lock back; nothing if it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(descriptor)


@contextlib.contextmanager
def held(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock, waiting for it as long as its holder lives.

    Args:
      path: of the lock file.
      waiting: called every two seconds of the wait.

    Raises:
      OSError: if the folder cannot be written or knows no locks.
    """
    lock, told = FileLock(path), 0.0
    while not lock.take():
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            waiting()
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        lock.release()
