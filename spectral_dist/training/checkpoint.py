"""Checkpoints of a run: saved in the background, restored onto any mesh, verified when read.

Owns when CHECKPOINT_DIR/RUN_NAME/<step>/ counts, and how many are kept. Orbax writes and reads the
arrays; manifest.py verifies the files; checkpoint_folder.py knows the names in the folder. The
commit is Orbax's rename: a folder named by a number is complete.

It must not know what a state or a description means, nor who reads its warnings. `Checkpoints()`,
`describe` and `restore` never write: a program may use them on the folder of a running training.
`restore_latest` and `save` are for the training itself. Read `Checkpoints.save` first.
"""

import contextlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import options as ocp_options

from spectral_dist.cluster.agreement import Processes
from spectral_dist.training import orbax
from spectral_dist.training.checkpoint_folder import (
    BEST,
    TEMPORARY,
    best_step,
    clear_leftovers,
    complete_steps,
    delete,
    kept_steps,
    move_links,
    put_aside,
    resolve,
)
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

_SLOW_SECONDS = 30.0  # a wait for a save that is worth a word


class Checkpoints:
    """The checkpoints of one run. All processes make the same calls, each from one thread."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        warn: Callable[[str], None],
        report: Callable[[str], None] = lambda text: None,
        keep_every: int = 0,
        processes: Processes | None = None,
    ) -> None:
        """Look at `folder` without changing it.

        Args:
          folder: the run's folder; it need not exist yet. All processes must see the same one.
          keep: latest checkpoints kept, at least 1; the best by validation is kept as well.
          warn: takes one line for each failed save and each unreadable checkpoint. For a failed
            save it is called from the background thread, as soon as the failure is known.
          report: takes one line for each checkpoint that is committed, from that thread too.
          keep_every: a step that it divides is kept for ever; 0 keeps none.
          processes: the processes of the run, if there are several.
        """
        if keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1")
        orbax.say_nothing()
        self.folder = Path(os.path.abspath(folder))  # Orbax takes no relative paths
        self.wait_seconds = 0.0  # time that callers of save() were blocked, in seconds
        self.failed_saves = 0
        self._keep, self._keep_every = keep, keep_every
        self._warn, self._report = warn, report
        self._ready = False  # whether leftovers of killed processes have been cleared
        self._links_failed = False  # whether that has been said
        self._pending: tuple[int, dict[str, Any]] | None = None  # of the save in flight
        self._thread: threading.Thread | None = None
        self._commit = Commit(processes)
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

    def find(self, name: str) -> int:
        """Return the step of a checkpoint by name; see `checkpoint_folder.resolve`.

        Raises:
          ValueError: if there is no such checkpoint; the text lists those that exist.
        """
        # The manifests are read only for who asks: there may be many checkpoints on a slow disk.
        return resolve(self.folder, name, self.best() if name == BEST else None)

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

    def restore_part(self, abstract: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Read some arrays of one checkpoint, such as the parameters without their moments.

        Args:
          abstract: nested dict of jax.ShapeDtypeStruct with `sharding`; its keys are paths of
            arrays in the checkpoint.
          step: a step of `steps()`.

        Returns:
          The arrays in the structure and sharding of `abstract`.

        Raises:
          ValueError: as `restore` does.
        """
        self.wait()
        resolve(self.folder, str(step))
        try:
            return self._read(abstract, step, lambda description: None, part=True)[0]
        except Unreadable as reason:
            raise ValueError(f"checkpoint {self.folder / str(step)}: {reason}") from reason

    def restore_latest(
        self, abstract_state: Any, check: Callable[[dict[str, Any]], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Read the newest checkpoint that can be read, and make the folder ready for saving.

        A damaged checkpoint gives a warning. Once an older one has been read, the damaged one is
        renamed, so that a later save at its step has room.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct with `sharding`, of any mesh.
          check: called with the description before the arrays are read; what it raises propagates,
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
            # If the folder cannot be written, the next save fails and gives its own warning.
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
        """Save a checkpoint in the background; return once the arrays are copied to the host.

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
            # Orbax runs collectives. Beside those of the training step gloo ends the process.
            jax.block_until_ready(state)
            self._commit.begin()
            self._make_ready()
            if step not in self._commit.as_coordinator_sees(self.steps()):
                self._start(step, state, description, validation)
        except Exception as error:  # a full disk, say: no failed save may end a training
            self._report_failure(step, error)
        finally:
            self.wait_seconds += time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the save in flight, if there is one; say so if that takes long."""
        if self._thread is None:
            return
        self._thread.join(_SLOW_SECONDS)
        if self._thread.is_alive():
            assert self._pending is not None
            self._warn(
                f"training waits for checkpoint {self._pending[0]}, which has not been written for"
                f" {_SLOW_SECONDS:g} s: {self.folder} is slow"
            )
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
            validation = None  # NaN compares false with everything: it could stay the best
        fields = {
            "description": dict(description),
            "validation": validation,
            "arrays": array_types(state),
        }
        # What JSON cannot hold fails here rather than in the background.
        self._pending = (step, json.loads(json.dumps(fields, allow_nan=False)))
        self._checkpointer.save(self.folder / str(step), args=orbax.save_args(state))
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
            self._report(f"checkpoint {step} is saved")
            try:
                kept = self._kept()
                self._move_links(kept)  # before the deletion: no link is ever left dangling
                for old in set(self.steps()) - set(kept):
                    delete(self.folder / str(old))
            except OSError as error:
                self._warn(f"checkpoint {step} is saved, but old ones were not deleted: {error}")

    def _report_failure(self, step: int, error: Exception) -> None:
        """Warn of a failed save and remove its files."""
        self.failed_saves += 1
        self._ready = False  # writes still under way may leave more files: clear again next time
        self._warn(
            f"checkpoint {step} could not be saved in {self.folder} ({short(error)}); "
            "earlier ones are intact, the next save tries again"
        )
        self._commit.fail(short(error))
        if jax.process_index() == 0:
            # On a full disk these files are what keeps the next save from fitting.
            for left in self.folder.glob(f"{step}{TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)

    def _write_manifest(self) -> None:
        """Add checkpoint.json to Orbax's files; called on process 0 just before the commit."""
        assert self._pending is not None
        step, fields = self._pending
        (folder,) = self.folder.glob(f"{step}{TEMPORARY}*")
        write_manifest(folder, fields)

    def _read(
        self,
        abstract_state: Any,
        step: int,
        check: Callable[[dict[str, Any]], None],
        part: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        """Verify and read one checkpoint or a part, with the same outcome on every process."""
        folder = self.folder / str(step)
        manifest = self._commit.on_all(lambda: read_manifest(folder))
        description = upgrade(manifest["description"])
        # Settings before shapes: "hidden_dim was 512" explains more than an array of another shape.
        check(description)
        stored, back = as_stored(abstract_state, manifest["arrays"])
        there, wanted = manifest["arrays"], array_types(stored)
        if part:
            there = {name: there[name] for name in wanted if name in there}
        compare(folder, there, wanted)
        # 0.35 s for 400 MB, so one process reads all files and the others wait for its answer.
        self._commit.on_all(
            lambda: verify(folder, manifest["files"]) if jax.process_index() == 0 else None
        )
        state = self._commit.on_all(lambda: self._read_arrays(folder, stored, part))
        return back(state), description

    def _read_arrays(self, folder: Path, abstract_state: Any, part: bool) -> Any:
        try:
            if part:
                return orbax.read_part(folder, abstract_state)
            return self._checkpointer.restore(folder, args=orbax.restore_args(abstract_state))
        except (RuntimeError, MemoryError):
            raise  # out of memory, say: the files are whole, and an older checkpoint fails too
        except Exception as error:  # Orbax raises plain Exception among others
            raise Unreadable(short(error)) from error

    def _make_ready(self, damaged: Sequence[int] = ()) -> None:
        """Rename damaged checkpoints; the first time, delete what a killed process left."""

        def on_coordinator() -> None:
            if not self._ready:
                self.folder.mkdir(parents=True, exist_ok=True)
                clear_leftovers(self.folder)
            try_writing(self.folder / f"trial{TEMPORARY}")
            if damaged or not self._ready:
                self._move_links([step for step in self.steps() if step not in damaged])
            for step in damaged:
                put_aside(self.folder / str(step))

        self._commit.on_all(lambda: on_coordinator() if jax.process_index() == 0 else None)
        self._ready = True

    def _move_links(self, steps: list[int]) -> None:
        """Move the links, which are no condition of a save: say it once if that fails."""
        reason = move_links(self.folder, steps)
        if reason and not self._links_failed:
            self._warn(f"{reason}; checkpoints are saved all the same, under their steps")
        self._links_failed = bool(reason)

    def validation(self, step: int) -> float | None:
        """Return the bits per byte that were saved with a checkpoint; None if there are none."""
        with contextlib.suppress(Unreadable):
            return read_manifest(self.folder / str(step))["validation"]
        return None

    def best(self) -> int | None:
        """Return the step of the checkpoint with the fewest bits per byte on held-out text.

        Of those that are in the folder and were evaluated when they were saved; of equal ones the
        latest. None if there is none.
        """
        return best_step(self._validations())

    def _kept(self) -> list[int]:
        """Return the steps to keep, ascending."""
        return kept_steps(self._validations(), self._keep, self._keep_every)

    def _validations(self) -> dict[int, float | None]:
        return {step: self.validation(step) for step in self.steps()}
