"""Whose turn it is to build a text: one process's at a time, of this run or of another one.

Owns the lock beside each .bin and the wait for it. The lock is the kernel's, so that one killed in
the middle of its work leaves the turn to the next. Read `turn_to_build`.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from spectral_dist.data.build import bin_path, unfinished_bytes
from spectral_dist.file_lock import FileLock

_REPORT_SECONDS = 2.0
# A builder is looked at so often, and given up after so long a standstill.
_WAIT_SECONDS = 0.2
_STALLED_SECONDS = 600.0


@contextlib.contextmanager
def turn_to_build(texts: Iterable[Path], report: Callable[[str], None]) -> Iterator[None]:
    """Hold the right to build some texts; wait while another process builds one of them.

    Args:
      texts: to build.
      report: told every two seconds of a wait.

    Raises:
      ValueError: if that process makes no progress for a long time.
    """
    with contextlib.ExitStack() as held:
        for text in sorted(texts):  # in one order, so that no two processes wait for each other
            binary = bin_path(text)
            lock = FileLock(binary.with_name(f".{binary.name}.lock"))
            # Where no lock can be had, the building itself says why, or works without.
            with contextlib.suppress(OSError):
                _wait_for(lock, text, report)
                held.callback(lock.release)
        yield


def _wait_for(lock: FileLock, text: Path, report: Callable[[str], None]) -> None:
    written, since, told = -1, time.monotonic(), 0.0
    while not lock.take():
        now = time.monotonic()
        if (size := unfinished_bytes(bin_path(text))) != written:
            written, since = size, now
        other = "process {pid} on {host}".format_map({"pid": "?", "host": "?"} | lock.holder())
        if now - since > _STALLED_SECONDS:
            raise ValueError(
                f"data_paths: {text}: {other} has been building {bin_path(text).name} without"
                f" progress for {now - since:.0f} s; end it and start again"
            )
        if now - told >= _REPORT_SECONDS:
            told = now
            report(f"{text}: waiting for {other}, which builds {bin_path(text).name}")
        time.sleep(_WAIT_SECONDS)
