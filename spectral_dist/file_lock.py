"""A lock on a path, held by one process of any host that sees it, and gone when that process is.

Owns the lock file, what it says of its holder, and the wait for it. The lock is the kernel's
(`flock`, which NFS carries to other hosts), so that a killed process leaves none behind.
Read `held` first.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LOOK_SECONDS, _TELL_SECONDS = 0.2, 2.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, and what it said of itself."""

    host: str = "?"
    pid: int | str = "?"
    job: str = ""

    def __str__(self) -> str:
        """How a message names it."""
        return f"process {self.pid} on {self.host}"


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
        me = Holder(socket.gethostname(), os.getpid(), self._job)
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(dataclasses.asdict(me)).encode())
        self._descriptor = descriptor
        return True

    def holder(self) -> Holder:
        """Return the holder, as far as the lock file can be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Holder(**json.loads(self.path.read_text(encoding="utf-8")))
        return Holder()

    def release(self) -> None:
        """Give the lock back; nothing if it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(descriptor)


@contextlib.contextmanager
def held(path: Path, waiting: Callable[[Holder], None], *, job: str = "") -> Iterator[None]:
    """Hold a lock, waiting for it as long as its holder lives and `waiting` lets.

    Args:
      path: of the lock file.
      waiting: called with the holder when the wait begins and every two seconds of it; raises to
        give up.
      job: what to say of this process beside host and number.

    Raises:
      OSError: if the folder cannot be written or knows no locks.
    """
    lock, told = FileLock(path, job), -math.inf
    while not lock.take():
        if time.monotonic() - told >= _TELL_SECONDS:
            waiting(lock.holder())
            told = time.monotonic()
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        lock.release()
