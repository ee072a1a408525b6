"""A store: copies of a run's checkpoints under a URL, such as s3://bucket/runs or gs://bucket/runs.

The run folder comes first and the store behind it: a checkpoint is copied once it is committed, its
manifest last, so that one that counts in the store is whole. On the way back every file is verified
by the manifest. Any store that fsspec knows will do. Knows nothing of training. Read `Store.push`
and `Store.pull`.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec

from spectral_dist.atomic_file import write_text
from spectral_dist.training.checkpoint_folder import (
    TEMPORARY,
    complete_steps,
    is_step,
    kept_steps,
)
from spectral_dist.training.manifest import MANIFEST, Unreadable, read_manifest, verify

_ID = "store_id.txt"  # in the run folder and in its copy: they are of one run
# Files of a run folder beside its checkpoints.
_BESIDE = (
    *("config.yaml", "environment.json", "metrics.jsonl"),
    *("tokenizer.json", "tokenizer_config.json"),
)


class Store:
    """The copy of one run under a URL. Calls raise whatever the store's library raises."""

    def __init__(self, url: str, run_name: str) -> None:
        """Open the store; reads and writes nothing.

        Args:
          url: of the folder that holds the copies of all runs.
          run_name: the folder of the run in it.

        Raises:
          ValueError: if no library for such a URL is installed, or there is none.
        """
        self.url = f"{url.rstrip('/')}/{run_name}"
        try:
            # No cached listings: another machine may have written meanwhile.
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            self._files, self._root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            hint = "pip install 'spectral-dist[store]'"
            raise ValueError(f"store={url!r}: {error}; {hint}") from error
        except ValueError as error:
            raise ValueError(f"store={url!r}: {error}") from error
        self._validations: dict[int, float | None] = {}

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints in the store, ascending."""
        try:
            names = [path.rstrip("/").rpartition("/")[2] for path in self._listed(self._root)]
        except FileNotFoundError:
            return []
        steps = sorted(int(name) for name in names if is_step(name))
        return [step for step in steps if self._files.exists(self._path(step, MANIFEST))]

    def push(self, folder: Path, step: int) -> bool:
        """Copy a committed checkpoint; return False if the store had it already.

        Args:
          folder: the run folder.
          step: a checkpoint in it.
        """
        self.claim(folder)
        source, manifest = folder / str(step), self._path(step, MANIFEST)
        ours = (source / MANIFEST).read_bytes()
        if self._files.exists(manifest):
            if self._files.cat_file(manifest) == ours:
                return False
            self._files.rm_file(manifest)  # of an earlier start: what replaces it is not whole yet
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.name != MANIFEST:
                self._put(path, self._path(step, path.relative_to(source).as_posix()))
        self._put(source / MANIFEST, manifest)
        return True

    def claim(self, folder: Path) -> None:
        """Check that the copy belongs to this run: an id that both have is written the first time.

        A run folder without a checkpoint takes the id of what is in the store.

        Args:
          folder: the run folder, which must exist.

        Raises:
          ValueError: if the store holds another run of this name, which would be replaced.
        """
        path, there = folder / _ID, f"{self._root}/{_ID}"
        ours = path.read_text(encoding="ascii").strip() if path.exists() else ""
        theirs = self._files.cat_file(there).decode().strip() if self._files.exists(there) else ""
        if not theirs:
            if self.steps():
                raise ValueError(f"store: {self.url} holds checkpoints, and no {_ID} says whose")
            theirs = ours or secrets.token_hex(8)
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(there, f"{theirs}\n".encode())
        elif ours != theirs and complete_steps(folder):
            raise ValueError(
                f"store: {self.url} holds another run of this name, which would be replaced; choose"
                " another --run_name or --store"
            )
        if ours != theirs:
            write_text(path, f"{theirs}\n")

    def push_beside(self, folder: Path) -> None:
        """Copy config.yaml, environment.json and metrics.jsonl."""
        for name in _BESIDE:
            if (folder / name).is_file():
                self._put(folder / name, f"{self._root}/{name}")

    def tidy(self, keep: int, keep_every: int) -> None:
        """Delete the checkpoints in the store that the run folder would not keep.

        Args:
          keep: latest ones kept, as in the settings.
          keep_every: steps between those that are kept for ever.
        """
        found = {step: self._validation(step) for step in self.steps()}
        for step in set(found) - set(kept_steps(found, keep, keep_every)):
            self._files.rm_file(self._path(step, MANIFEST))  # first: now it does not count
            self._files.rm(self._path(step), recursive=True)

    def pull(self, folder: Path, step: int, progress: Callable[[], None] = lambda: None) -> None:
        """Copy a checkpoint from the store into a run folder, whole or not at all.

        Args:
          folder: the run folder; created if missing.
          step: a step of `steps()`.
          progress: called after each file.

        Raises:
          Unreadable: if what was copied is not what the manifest says.
        """
        target = folder / f"{step}{TEMPORARY}-store"  # cleared like an unfinished save
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        try:
            root = self._path(step)
            for path in self._files.find(root):
                local = target / path[path.index(root) + len(root) + 1 :]
                local.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(path, str(local))
                progress()
            verify(target, read_manifest(target)["files"])
            target.rename(folder / str(step))
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def pull_beside(self, folder: Path) -> None:
        """Copy metrics.jsonl and the other files beside the checkpoints, if there are none."""
        for name in _BESIDE:
            with contextlib.suppress(FileNotFoundError):
                if not (folder / name).exists():
                    self._files.get_file(f"{self._root}/{name}", str(folder / name))

    def _validation(self, step: int) -> float | None:
        if step not in self._validations:
            body = json.loads(self._files.cat_file(self._path(step, MANIFEST)))
            self._validations[step] = body.get("validation")
        return self._validations[step]

    def _put(self, source: Path, path: str) -> None:
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)  # where there are folders
        self._files.put_file(str(source), path)
        if (there := self._files.size(path)) != (here := source.stat().st_size):
            raise OSError(f"{path} has {there} bytes in the store, and {here} here")

    def _listed(self, path: str) -> list[str]:
        return list(self._files.ls(path, detail=False))

    def _path(self, step: int, name: str = "") -> str:
        return "/".join(filter(None, (self._root, str(step), name)))


def pull_newest(
    store: Store, folder: Path, report: Callable[[str], None], progress: Callable[[], None]
) -> None:
    """Copy the newest checkpoint that is whole from a store, if it is newer than the run folder's.

    Args:
      store: of the run.
      folder: the run folder.
      report: takes a line about what was copied, or could not be read.
      progress: called after each file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store.claim(folder)
    here = max(complete_steps(folder), default=-1)
    for step in reversed(store.steps()):
        if step <= here:
            return
        try:
            store.pull(folder, step, progress)
        except Unreadable as reason:
            report(f"checkpoint {step} in {store.url} cannot be read ({reason})")
            continue
        store.pull_beside(folder)
        report(f"checkpoint {step} was copied from {store.url}")
        return
