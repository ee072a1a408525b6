"""The run folder's two notes about the run itself: config.yaml and environment.json.

Owns what is written about a run beside its metrics and checkpoints. No secret enters: only the
settings, and of the environment only versions, devices and the commit.
"""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import yaml

from spectral_dist.config import Config

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
    """Write config.yaml (loads with --config) and environment.json.

    Args:
      folder: of the run; made if missing.
      config: resolved.
      argv: the command line.
      enabled: False writes nothing, for the processes that are not the lead.

    Raises:
      ValueError: if the folder cannot be made or written.
    """
    if not enabled:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "config.yaml", yaml.safe_dump(config.flat(), sort_keys=False))
        _replace(folder / "environment.json", json.dumps(_environment(argv), indent=2) + "\n")
    except OSError as error:
        raise ValueError(
            f"checkpoint_dir={config.run.checkpoint_dir!r}: {folder} cannot be written:"
            f" {error.strerror}"
        ) from error


def _environment(argv: Sequence[str]) -> dict[str, Any]:
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
    """Return the commit of the checkout that this package runs from, if it is one."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
