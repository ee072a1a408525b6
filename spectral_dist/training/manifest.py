"""The manifest of a checkpoint: checkpoint.json, its checksums, and how they are verified.

Owns the description, the validation value, the arrays' names and types, and the size and CRC32 of
every file. Orbax by itself notices a file that is cut short or missing, but restores a flipped bit
as a wrong number (measured on every file of a checkpoint). That is why there are checksums.

It must not know when checkpoints are made, kept or read. Read `write_manifest` first.
"""

import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from spectral_dist.atomic_file import write_text

MANIFEST = "checkpoint.json"
# Orbax writes these after the manifest, and does not need them to read: without them the restored
# arrays were the same.
_UNLISTED = {MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}
_BLOCK = 1 << 22  # bytes read at a time, so that a file of any size fits in memory
# More than the small files that Orbax writes before the arrays.
_TRIAL_BYTES = 1 << 20


class Unreadable(Exception):
    """A checkpoint is damaged; the text says how, in a few words."""


def array_types(tree: Any) -> dict[str, str]:
    """Return each array's name and type, as in {"params/embedding": "float32[256,512]"}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}[{','.join(str(size) for size in leaf.shape)}]"
        )
        for path, leaf in leaves
    }


def compare(folder: Path, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Compare the arrays of a checkpoint with the run's; raise ValueError for the first difference.

    Args:
      folder: the checkpoint, for the message.
      stored: name and type of each of its arrays.
      wanted: of each array of the run.
    """
    for name in [*wanted, *stored]:
        if stored.get(name) != wanted.get(name):
            raise ValueError(
                f"checkpoint {folder}: array {name} is {stored.get(name, 'not there')}, "
                f"but this run has {wanted.get(name, 'no such array')}"
            )


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write checkpoint.json, once all other files of the checkpoint are in `folder`.

    Args:
      folder: the checkpoint, not yet committed; the commit renames the folder with this file in it.
      fields: description, validation and arrays, as JSON can hold them.
    """
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    names = [name for name in names if name not in _UNLISTED]
    # In threads: zlib and the disk release the interpreter lock (400 MB took 0.35 s).
    with ThreadPoolExecutor() as pool:
        sums = pool.map(lambda name: _checksum(folder / name), names)
    body = {**fields, "files": {name: list(s) for name, s in zip(names, sums, strict=True)}}
    write_text(folder / MANIFEST, json.dumps({"crc32": _checksum_of_json(body), **body}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the fields of checkpoint.json, verified by their own CRC32."""
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="ascii"))
        if body.pop("crc32") != _checksum_of_json(body):
            raise Unreadable(f"{MANIFEST} is damaged")
        return body
    except FileNotFoundError as error:
        raise Unreadable(f"{MANIFEST} is missing") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Unreadable(f"{MANIFEST}: {short(error)}") from error


def verify(folder: Path, files: Mapping[str, list[int]]) -> None:
    """Compare the size and the CRC32 of every file with the manifest."""

    def fault(name: str) -> str | None:
        try:
            if os.path.getsize(folder / name) != files[name][0]:
                return f"{name} has lost or gained bytes"
            return None if list(_checksum(folder / name)) == files[name] else f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return short(error)

    with ThreadPoolExecutor() as pool:
        for found in pool.map(fault, files):
            if found:
                raise Unreadable(found)


def _checksum(path: Path) -> tuple[int, int]:
    """Return the size of a file in bytes and its CRC32."""
    size = crc = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def _checksum_of_json(body: Mapping[str, Any]) -> int:
    # Sorted: reading JSON and writing it again must give the same bytes.
    return zlib.crc32(json.dumps(body, sort_keys=True).encode("ascii"))


def short(error: BaseException) -> str:
    """Return an error's first line, shortened in the middle if it is long."""
    # Both ends stay: the operation stands at the beginning, the system's reason at the end.
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else f"{text[:50]} ... {text[-105:]}"


def try_writing(trial: Path) -> None:
    """Write and delete a file, to find a full or read-only disk before a save begins.

    A process that fails inside the first part of Orbax's save would leave the others waiting there.

    Args:
      trial: a folder that does not exist; it is made and removed.

    Raises:
      OSError: if nothing can be written.
    """
    trial.mkdir(exist_ok=True)
    try:
        (trial / "bytes").write_bytes(bytes(_TRIAL_BYTES))
    finally:
        (trial / "bytes").unlink(missing_ok=True)
        trial.rmdir()
