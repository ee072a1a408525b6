"""A checkpoint of several processes: all have written their part, or it does not count.

Owns what they agree on, and the waiting for each other during a save. Orbax's own would wait twenty
minutes for a process whose part failed (a full disk, say), and the training with it: here a failure
anywhere ends the waiting everywhere. Knows nothing of files. Read `Commit.barrier`.
"""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from spectral_dist.cluster import jax_service
from spectral_dist.training.manifest import Unreadable

_LOOK_SECONDS = 0.05
# How long the coordinator waits for the others' last writes of a save that failed.
_SETTLE_SECONDS = 10.0
T = TypeVar("T")


class SaveFailed(Exception):
    """A save failed in another process; the text says in which, and why."""


class Commit:
    """What the processes of a run say to each other about the save in flight.

    They speak through JAX's key-value store and not by collectives: those belong to the main
    thread, and on CPU one that shares no data with the step before may run between its parts
    (gloo then ends the process: "collective mismatch"). A single process has nobody to speak to.
    """

    def __init__(self) -> None:
        """Know how many there are."""
        self._index, self._count = jax.process_index(), jax.process_count()
        self._client: Any = jax_service.key_value_store() if self._count > 1 else None
        self._number = self._round = 0

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
        """Report that the save failed here; process 0 returns when it failed everywhere."""
        if self._client is None:
            return
        failed = f"{self._key()}/failed"
        until = time.monotonic() + _SETTLE_SECONDS
        # Without the service there is nobody to tell; `cluster.heartbeat` ends the run.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{failed}/{self._index}", reason, allow_overwrite=True)
            while self._index == 0 and time.monotonic() < until:
                if len(self._client.key_value_dir_get(failed)) == self._count:
                    return
                time.sleep(_LOOK_SECONDS)

    def as_coordinator_sees(self, steps: list[int]) -> list[int]:
        """Return the coordinator's list: on a network's file system the others' may lag behind."""
        if self._client is None:
            return steps
        return json.loads(self._exchange(json.dumps(steps))[0])

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every process; if it fails on one, fail on all and wait for nobody.

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
        if self._client is not None:
            found = self._exchange("" if error is None else "failed")
            failed = [index for index, word in sorted(found.items()) if word]
            if error is None and failed:
                error = Unreadable(f"failed on process {failed[0]}")
        if error is not None:
            raise error
        return result

    def _exchange(self, word: str) -> dict[int, str]:
        """Return what each process says, by its index; called by all alike, in the same order."""
        self._round += 1
        folder = f"spectral_dist/round/{self._round}"
        self._client.key_value_set(f"{folder}/{self._index}", f"+{word}")  # no empty texts
        while len(found := self._client.key_value_dir_get(folder)) < self._count:
            time.sleep(_LOOK_SECONDS)
        if self._index == 0 and self._round > 1:  # all have read the round before
            self._client.key_value_delete(f"spectral_dist/round/{self._round - 1}")
        return {int(name.rpartition("/")[2]): text[1:] for name, text in found}

    def _key(self, number: int | None = None) -> str:
        return f"spectral_dist/save/{self._number if number is None else number}"
