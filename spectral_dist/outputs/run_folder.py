"""The run folder: its lock, and the files config.yaml and environment.json.

Owns what is written about a run beside its metrics and checkpoints. Read `write_run_folder`.
"""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from spectral_dist.atomic_file import write_text
from spectral_dist.data.tokenizers import find_tokenizer
from spectral_dist.file_lock import NO_LOCKS, FileLock, Holder, held
from spectral_dist.settings import Config
from spectral_dist.settings.files import to_yaml

LOCK = ".lock"
# What decides the numbers of a run, beside its settings; a missing one is noted as null.
_PACKAGES = (
    "spectral-dist",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
)


def write_run_folder(
    folder: Path, config: Config, argv: Sequence[str], *, enabled: bool = True
) -> None:
    """Write config.yaml, which `--config` can load, environment.json, and the tokenizer's file.

    Args:
      folder: the run folder; created if missing.
      config: the settings, complete.
      argv: the command line.
      enabled: False writes nothing, as in all processes but the coordinator.

    Raises:
      ValueError: if the folder cannot be made or written.
    """
    if not enabled:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", to_yaml(config))
        # The run must be readable when the file that was named is no longer there.
        find_tokenizer(config).write_to(folder)
        write_text(folder / "environment.json", json.dumps(environment(argv), indent=2) + "\n")
    except OSError as error:
        raise _unwritable(config, folder, error) from error


@contextlib.contextmanager
def locked(
    folder: Path, config: Config, report: Callable[[str], None]
) -> Iterator[FileLock | None]:
    """Lock the run folder, so that no other process trains in it.

    If a process of the same SLURM job holds it, wait for at most start_timeout. Yields the lock,
    or None with `--lock false`.

    Args:
      folder: the run folder; created if missing.
      config: the settings, complete.
      report: called with one line if there is a wait.

    Raises:
      ValueError: if another process holds the lock, or the folder cannot be created or written.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    until, reported = time.monotonic() + config.run.start_timeout, False

    def wait(holder: Holder) -> None:
        nonlocal reported
        # A scheduler may restart a job before the last of its old processes is gone. A holder of
        # another job is a mistake of the user, who must hear of it now.
        if holder.job != job or not job or time.monotonic() > until:
            raise ValueError(
                f"run_name={config.run.run_name!r}: {holder} is training in {folder}; stop it, or"
                " choose another --run_name"
            )
        if not reported:
            report(f"waiting for {holder}, of the same job, to leave {folder}")
        reported = True

    with contextlib.ExitStack() as holding:
        lock = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if config.run.lock:
                lock = holding.enter_context(held(folder / LOCK, wait, job=job))
            else:
                report(f"lock=false: nothing keeps another process from training in {folder}")
        except OSError as error:
            if error.errno in NO_LOCKS:
                (folder / LOCK).unlink(missing_ok=True)
                raise ValueError(
                    f"checkpoint_dir={config.run.checkpoint_dir!r}: {folder} is on a file system"
                    f" without locks ({error.strerror}), which keep two runs out of one folder;"
                    " --lock false trains without one"
                ) from error
            raise _unwritable(config, folder, error) from error
        yield lock


def restore(folder: Path, config: Config, argv: Sequence[str], lock: FileLock | None) -> None:
    """Write the files of a run folder again that was deleted while the run trains.

    Raises:
      OSError: if it cannot be locked.
      ValueError: if it cannot be written.
    """
    write_run_folder(folder, config, argv)
    if lock is not None:
        lock.renew()


def _unwritable(config: Config, folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"checkpoint_dir={config.run.checkpoint_dir!r}: {folder} cannot be written:"
        f" {error.strerror}"
    )


def code_version() -> dict[str, str]:
    """Return what must be the same in all processes: versions, and a hash of our source files."""
    # With other code a process would compile another program, and hang in its collectives. A hash,
    # because checkouts on two hosts differ without a difference in version.
    package = Path(__file__).parents[1]
    sources = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        sources.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    found = {
        name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "orbax-checkpoint")
    }
    return found | {"spectral_dist sources": sources.hexdigest()[:16]}


def environment(argv: Sequence[str]) -> dict[str, Any]:
    """Return what a start of a run stands on: command, versions, devices, commit."""
    # No environment variables and no host names: run folders are shared, and W&B gets this file.
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    devices = jax.devices()
    return {
        "command": ["python", "-m", "spectral_dist.train", *argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return the git commit of the checkout that this package runs from, or None."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",  # a commit alone would not tell that files were changed after it
        "--abbrev=40",
    ]
    try:
        # The commit is good to have, and never worth stopping a run: no git, no commit.
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
