"""A checkpoint of several processes: all have written their part, or it does not count.

Owns what they agree on, and the waiting for each other during a save. Orbax's own would wait twenty
minutes for a process whose part failed (a full disk, say), and the training with it: here a failure
anywhere ends the waiting everywhere. Knows nothing of files. Read `Commit.barrier`.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from spectral_dist.training.manifest import Unreadable

_LOOK_SECONDS = 0.05
# How long the lead waits for the others' last writes of a save that failed.
_SETTLE_SECONDS = 10.0
_MOST_STEPS = 256  # newest checkpoints that processes compare
T = TypeVar("T")


class SaveFailed(Exception):
    """A save failed in another process; the text says in which, and why."""


class Commit:
    """What the processes of a run say to each other about the save in flight.

    They speak through JAX's coordination service and not by collectives, which belong to the main
    thread. A single process has nobody to speak to.
    """

    def __init__(self) -> None:
        """Know how many there are."""
        self._index, self._count = jax.process_index(), jax.process_count()
        self._client: Any = distributed.global_state.client if self._count > 1 else None
        self._number = 0

    def begin(self) -> None:
        """Begin a save; to be called by all processes alike, after the last one's end."""
        self._number += 1
        if self._client is not None and self._index == 0 and self._number > 2:
            # Everybody has begun the last one, so nobody reads of the one before it.
            self._client.key_value_delete(self._key(self._number - 2))

    def barrier(self, *, key: str, timeout_ms: int) -> None:
        """Wait until all processes are here; Orbax calls it before and after the commit.

        Raises:
          SaveFailed: if the save failed in one of them.
          TimeoutError: after timeout_ms.
        """
        if self._client is None:
            return
        until = time.monotonic() + timeout_ms / 1e3
        self._client.key_value_set(f"{self._key()}/{key}/{self._index}", "here")
        while len(self._client.key_value_dir_get(f"{self._key()}/{key}")) < self._count:
            for name, reason in self._client.key_value_dir_get(f"{self._key()}/failed"):
                raise SaveFailed(f"in process {name.rpartition('/')[2]}: {reason}")
            if time.monotonic() > until:
                raise TimeoutError(f"not all processes came to {key} in {timeout_ms / 1e3:.0f} s")
            time.sleep(_LOOK_SECONDS)

    def fail(self, reason: str) -> None:
        """Tell the others that the save failed here; the lead returns when it failed everywhere."""
        if self._client is None:
            return
        failed = f"{self._key()}/failed"
        until = time.monotonic() + _SETTLE_SECONDS
        # Without the service there is nobody to tell; `cluster.watch` ends the run.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{failed}/{self._index}", reason, allow_overwrite=True)
            while self._index == 0 and time.monotonic() < until:
                if len(self._client.key_value_dir_get(failed)) == self._count:
                    return
                time.sleep(_LOOK_SECONDS)

    def _key(self, number: int | None = None) -> str:
        return f"spectral_dist/save/{self._number if number is None else number}"


def as_lead_sees(steps: list[int]) -> list[int]:
    """Return the lead's list: on a network's file system the others' may lag behind."""
    if jax.process_count() == 1:
        return steps
    newest = np.full(_MOST_STEPS, -1, np.int32)
    found = steps[-_MOST_STEPS:]
    newest[: len(found)] = found
    told = np.asarray(multihost_utils.broadcast_one_to_all(newest))
    return [int(step) for step in told if step >= 0]


def together(action: Callable[[], T]) -> T:
    """Run `action` on every process; if it fails on one, fail on all rather than wait for ever.

    Raises:
      Unreadable: as `action` did here, or because it failed on another process.
      OSError: as `action` did here.
    """
    error: Unreadable | OSError | None = None
    result: Any = None
    try:
        result = action()
    except (Unreadable, OSError) as caught:
        error = caught
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.asarray(error is not None))
        if error is None and failed.any():
            error = Unreadable(f"failed on process {int(failed.argmax())}")
    if error is not None:
        raise error
    return result
