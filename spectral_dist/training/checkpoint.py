"""Checkpoints of a run: saved beside the training, restored onto any mesh, never half believed.

Owns the folder CHECKPOINT_DIR/RUN_NAME/<step>/: when it counts, how many are kept, the links
checkpoint_0 and checkpoint_1. Orbax writes and reads the arrays; manifest.py says whether what lies
there is what was written. The commit is Orbax's rename: a folder named by a number is complete.

It must not know what a state or a description means, nor who reads its warnings. Constructing
`Checkpoints`, `describe` and `restore` never write, so they are safe beside a training that runs;
`restore_latest` and `save` are for the training itself. Read `Checkpoints.save` first.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import options as ocp_options

from spectral_dist.atomic_file import replace_link
from spectral_dist.training.commit import Commit
from spectral_dist.training.manifest import (
    Unreadable,
    array_types,
    compare,
    read_manifest,
    short,
    try_writing,
    verify,
    write_manifest,
)
from spectral_dist.training.migrations import as_stored, upgrade

LINKS = ("checkpoint_0", "checkpoint_1")
_TEMPORARY = ".orbax-checkpoint-tmp"  # how Orbax ends the name of a folder not yet committed
_DELETED = ".deleted"


def complete_steps(folder: Path) -> list[int]:
    """Return the steps of the committed checkpoints in `folder`, ascending; [] without a folder."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(n) for n in names if n.isascii() and n.isdigit() and str(int(n)) == n)


def resolve(folder: Path, name: str) -> int:
    """Return the step of `name`: checkpoint_0 (latest), checkpoint_1 (previous) or a number.

    Raises:
      ValueError: if there is no such checkpoint; the text lists those that exist.
    """
    steps = complete_steps(folder)
    named = {link: step for link, step in zip(LINKS, reversed(steps), strict=False)}
    named |= {str(step): step for step in steps}
    if name not in named:
        there = ", ".join([*named]) or "none"
        raise ValueError(f"checkpoint {name!r} is not in {folder}; there: {there}")
    return named[name]


class Checkpoints:
    """The checkpoints of one run. One thread of each process calls it, on all processes alike."""

    def __init__(self, folder: Path, *, keep: int, warn: Callable[[str], None]) -> None:
        """Look at `folder` without changing it.

        Args:
          folder: the run's folder; it need not exist yet. All processes must see the same one.
          keep: latest checkpoints kept, at least 1; the best by validation is kept beside them.
          warn: told in one line of each failed save and each unreadable checkpoint. A failed save
            is told from the background thread, as soon as it is known.
        """
        if keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1")
        logging.getLogger("absl").addFilter(_not_from_orbax)
        _ignore_late_writes()
        self.folder = Path(os.path.abspath(folder))  # Orbax takes no relative paths
        self.wait_seconds = 0.0  # time that callers of save() were blocked, in seconds
        self.failed_saves = 0
        self._keep = keep
        self._warn = warn
        self._ready = False
        self._pending: tuple[int, dict[str, Any]] | None = None  # of the save in flight
        self._thread: threading.Thread | None = None
        self._commit = Commit()
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.StandardCheckpointHandler(),
            async_options=ocp_options.AsyncOptions(
                barrier_sync_fn=self._commit.barrier,
                post_finalization_callback=self._write_manifest,
            ),
        )

    def steps(self) -> list[int]:
        """Return the steps of the committed checkpoints, ascending."""
        return complete_steps(self.folder)

    def describe(self, step: int) -> dict[str, Any]:
        """Return the description saved with `step` (through JSON: tuples are lists).

        Raises:
          ValueError: if there is no such checkpoint or its description cannot be read.
        """
        resolve(self.folder, str(step))
        try:
            return upgrade(read_manifest(self.folder / str(step))["description"])
        except Unreadable as reason:
            raise ValueError(f"checkpoint {self.folder / str(step)}: {reason}") from reason

    def restore(self, abstract_state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """Read one checkpoint, changing nothing in the folder.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct with `sharding`, of any mesh.
          step: a step of `steps()`.

        Returns:
          The arrays in the structure and sharding of `abstract_state`, and the description.

        Raises:
          ValueError: if there is no such checkpoint, it is damaged, or an array has another shape
            or type than `abstract_state` wants.
        """
        self.wait()
        resolve(self.folder, str(step))
        try:
            return self._read(abstract_state, step, lambda description: None)
        except Unreadable as reason:
            raise ValueError(f"checkpoint {self.folder / str(step)}: {reason}") from reason

    def restore_latest(
        self, abstract_state: Any, check: Callable[[dict[str, Any]], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Read the newest checkpoint that can be read, and make the folder ready for saving.

        Each damaged one on the way gives a warning and is renamed aside once an older one was read,
        so that a later save at its step has room.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct with `sharding`, of any mesh.
          check: is given the description before the arrays are read; what it raises propagates
            and nothing in the folder has changed.

        Returns:
          As `restore`; None if there is no checkpoint at all.

        Raises:
          ValueError: if there are checkpoints but none can be read, or an array has another shape
            or type than `abstract_state` wants. Nothing has changed then.
        """
        self.wait()
        damaged: list[int] = []
        for step in reversed(self._commit.as_coordinator_sees(self.steps())):
            try:
                found = self._read(abstract_state, step, check)
            except Unreadable as reason:
                damaged.append(step)
                self._warn(f"checkpoint {step} in {self.folder} cannot be read ({reason})")
                continue
            # A folder that cannot be written is the next save's failure, with its own warning.
            with contextlib.suppress(OSError, Unreadable):
                self._make_ready(damaged)
            return found
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.folder} can be read (steps {damaged[::-1]}); nothing was "
                "changed: repair or move them, or choose another run_name"
            )
        return None

    def save(
        self,
        step: int,
        state: Any,
        description: Mapping[str, Any],
        *,
        validation: float | None = None,
    ) -> None:
        """Save in the background; return when the arrays have been copied off the devices.

        Waits for the save in flight first. Does nothing if `step` has been saved. A failure is a
        warning, never an exception: earlier checkpoints stay and the training goes on.

        Args:
          step: completed steps, the name of the checkpoint.
          state: pytree of jax.Arrays; they may be donated as soon as this returns.
          description: anything that JSON can hold.
          validation: bits per byte on held-out text, lower is better; the best stays.
        """
        start = time.perf_counter()
        try:
            self.wait()
            # Orbax has collectives of its own, which must not run beside the step's.
            jax.block_until_ready(state)
            self._commit.begin()
            self._make_ready()
            if step not in self._commit.as_coordinator_sees(self.steps()):
                self._start(step, state, description, validation)
        except Exception as error:  # whatever it is, it must not end a training
            self._report_failure(step, error)
        finally:
            self.wait_seconds += time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the save in flight, if there is one."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait for the save in flight and release Orbax's threads."""
        self.wait()
        self._checkpointer.close()

    def _start(
        self, step: int, state: Any, description: Mapping[str, Any], validation: float | None
    ) -> None:
        """Copy the arrays to the host and hand the rest to background threads."""
        if validation is not None and not math.isfinite(validation):
            validation = None  # never the best
        fields = {
            "description": dict(description),
            "validation": validation,
            "arrays": array_types(state),
        }
        # What JSON cannot hold fails here rather than in the background.
        self._pending = (step, json.loads(json.dumps(fields, allow_nan=False)))
        self._checkpointer.save(self.folder / str(step), args=_save_args(state))
        self._thread = threading.Thread(target=self._follow, args=(step,), name="checkpoint")
        self._thread.start()

    def _follow(self, step: int) -> None:
        """Wait for Orbax's commit of `step`; then move the links and delete what is not kept."""
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:  # whatever it is, it must not end a training
            self._report_failure(step, error)
            return
        if jax.process_index() == 0:
            try:
                kept = self._kept()
                self._move_links(kept)  # before the deletion: no link ever points to nothing
                for old in set(self.steps()) - set(kept):
                    _delete(self.folder / str(old))
            except OSError as error:
                self._warn(f"checkpoint {step} is saved, but its folder not tidied: {error}")

    def _report_failure(self, step: int, error: Exception) -> None:
        """Warn of a failed save and remove what it left, which may be what fills the disk."""
        self.failed_saves += 1
        self._ready = False  # writes that end late may leave something yet
        self._warn(
            f"checkpoint {step} could not be saved in {self.folder} ({short(error)}); "
            "earlier ones are intact, the next save tries again"
        )
        self._commit.fail(short(error))
        if jax.process_index() == 0:
            for left in self.folder.glob(f"{step}{_TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)

    def _write_manifest(self) -> None:
        """Add checkpoint.json to Orbax's files; called on process 0 just before the commit."""
        assert self._pending is not None
        step, fields = self._pending
        (folder,) = self.folder.glob(f"{step}{_TEMPORARY}*")
        write_manifest(folder, fields)

    def _read(
        self, abstract_state: Any, step: int, check: Callable[[dict[str, Any]], None]
    ) -> tuple[Any, dict[str, Any]]:
        """Verify and read one checkpoint, with the same outcome on every process."""
        folder = self.folder / str(step)
        manifest = self._commit.together(lambda: read_manifest(folder))
        description = upgrade(manifest["description"])
        check(description)
        stored, back = as_stored(abstract_state, manifest["arrays"])
        compare(folder, manifest["arrays"], array_types(stored))
        self._commit.together(
            lambda: verify(folder, manifest["files"]) if jax.process_index() == 0 else None
        )
        state = self._commit.together(lambda: self._read_arrays(folder, stored))
        return back(state), description

    def _read_arrays(self, folder: Path, abstract_state: Any) -> Any:
        try:
            return self._checkpointer.restore(folder, args=_restore_args(abstract_state))
        except (RuntimeError, MemoryError):
            raise  # out of memory, say: the files are whole, and an older one would fail alike
        except Exception as error:  # Orbax raises plain Exception among others
            raise Unreadable(short(error)) from error

    def _make_ready(self, damaged: Sequence[int] = ()) -> None:
        """Put `damaged` aside; the first time, clear what a killed process left."""

        def act() -> None:
            if not self._ready:
                self.folder.mkdir(parents=True, exist_ok=True)
                for pattern in (f"*{_TEMPORARY}*", f"*{_DELETED}"):
                    for left in self.folder.glob(pattern):
                        shutil.rmtree(left, ignore_errors=True)
            try_writing(self.folder / f"trial{_TEMPORARY}")
            if damaged or not self._ready:
                self._move_links([step for step in self.steps() if step not in damaged])
            for step in damaged:
                _put_aside(self.folder / str(step))

        self._commit.together(lambda: act() if jax.process_index() == 0 else None)
        self._ready = True

    def _kept(self) -> list[int]:
        """Return the steps to keep, ascending: the last `keep` and the best by validation."""
        steps = self.steps()
        scores: dict[int, float] = {}
        for step in steps:
            with contextlib.suppress(Unreadable):
                validation = read_manifest(self.folder / str(step))["validation"]
                if validation is not None:
                    scores[step] = validation
        best = {min(reversed(scores), key=scores.__getitem__)} if scores else set()
        return sorted(best | set(steps[-self._keep :]))

    def _move_links(self, steps: list[int]) -> None:
        """Point checkpoint_0 and checkpoint_1 to the last and the last but one of `steps`."""
        for place, link in enumerate(LINKS):
            path = self.folder / link
            if place >= len(steps):
                path.unlink(missing_ok=True)
                continue
            replace_link(path, str(steps[-1 - place]))


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Drop Orbax's log lines: what a user must know of a save, `warn` says in one line."""
    return "orbax" not in record.pathname


@cache
def _ignore_late_writes() -> None:
    """Drop what the storage library reports of a failed save's other writes.

    Orbax closes their event loop at the first failure; the writes that end later find it closed,
    each of them with a traceback on stderr.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _save_args(state: Any) -> Any:
    """Wrap the arrays for Orbax; its argument classes are dataclasses that hide their fields."""
    arguments: Any = ocp.args.StandardSave
    return arguments(state)


def _restore_args(abstract_state: Any) -> Any:
    arguments: Any = ocp.args.StandardRestore
    return arguments(abstract_state)


def _put_aside(path: Path) -> None:
    """Rename a damaged checkpoint to a name that no save uses. A read-only folder keeps it."""
    number = 1
    aside = path.with_name(f"{path.name}.unreadable")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.unreadable_{number}")
    with contextlib.suppress(OSError):
        path.rename(aside)


def _delete(path: Path) -> None:
    """Delete a checkpoint; it stops counting at once, so that a kill leaves no half of one."""
    doomed = path.with_name(path.name + _DELETED)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)
