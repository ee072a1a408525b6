"""A file lock: held by one process on any host that sees the path, released when that one dies.

Owns the lock file, the note in it about its holder, and the wait for it. Read `held` first.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LOOK_SECONDS = 0.2  # between two tries; a waiting kernel call could not report who holds the lock
_REPORT_SECONDS = 2.0  # between two calls of `waiting`
# What a file system without locks answers: Lustre without its option flock, some FUSE mounts.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as noted in the lock file."""

    host: str = "?"
    pid: int | str = "?"
    job: str = ""

    def __str__(self) -> str:
        """Name the process in a message."""
        return f"process {self.pid} on {self.host}"


class FileLock:
    """An exclusive lock between processes; not between threads of one process."""

    def __init__(self, path: Path, job: str = "") -> None:
        """Name the lock file; its folder must exist when the lock is taken.

        Args:
          path: the lock file, which exists as long as the lock is held.
          job: noted in the lock file, beside host and process id.
        """
        self.path = path
        self._job = job
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Try to take the lock, without waiting; return whether it is held now.

        Raises:
          OSError: if the folder cannot be written or has no locks.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            # The kernel's lock, because it goes with its process: a killed one leaves nothing that
            # would have to be judged stale. NFS carries it to other hosts.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file between our two calls. Then we hold a
            # lock on a file that nobody else can open any more.
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
        os.truncate(descriptor, 0)  # a killed holder's note may still be there
        os.write(descriptor, json.dumps(dataclasses.asdict(me)).encode())
        self._descriptor = descriptor
        return True

    def renew(self) -> bool:
        """Take the lock anew, where its file was deleted; return whether it is held now.

        Raises:
          OSError: as `take` does.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        return self.take()

    def holder(self) -> Holder:
        """Return the holder; "?" for what the lock file does not say."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Holder(**json.loads(self.path.read_text(encoding="utf-8")))
        return Holder()

    def release(self) -> None:
        """Release the lock; do nothing if it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # Removed first: after the close the file may belong to the next holder already.
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether some process holds a lock; changes nothing, and holds it for an instant."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


@contextlib.contextmanager
def held(path: Path, waiting: Callable[[Holder], None], *, job: str = "") -> Iterator[FileLock]:
    """Hold a lock for the length of the block, waiting for it if another process holds it.

    Yields the lock.

    Args:
      path: the lock file.
      waiting: called with the holder when the wait begins, and every two seconds after that; it
        raises to give up.
      job: noted in the lock file, beside host and process id.

    Raises:
      OSError: if the folder cannot be written or has no locks.
    """
    lock, reported = FileLock(path, job), -math.inf
    while not lock.take():
        if time.monotonic() - reported >= _REPORT_SECONDS:
            waiting(lock.holder())
            reported = time.monotonic()
        time.sleep(_LOOK_SECONDS)
    try:
        yield lock
    finally:
        lock.release()
