"""The manifest of a checkpoint: checkpoint.json, what the folder must hold and whether it does.

Owns the description, the validation value, the arrays' names and types, and the size and CRC32 of
every file. Orbax by itself notices a file cut short or gone, but a changed bit it restores as a
wrong number (measured on every file of a checkpoint); hence the sums.

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
# Written after the manifest, and of no use for reading (measured: the arrays are the same without).
_UNLISTED = {MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}
_BLOCK = 1 << 22  # bytes read at a time
_TRIAL_BYTES = 1 << 20  # more than Orbax writes before the arrays


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
    """Raise ValueError naming the first array of another shape or type, or without a partner."""
    for name in [*wanted, *stored]:
        if stored.get(name) != wanted.get(name):
            raise ValueError(
                f"checkpoint {folder}: array {name} is {stored.get(name, 'not there')}, "
                f"but this run has {wanted.get(name, 'no such array')}"
            )


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write checkpoint.json, once all other files of the checkpoint are in `folder`.

    Args:
      folder: the checkpoint, not yet committed (the commit, a rename, covers this file too).
      fields: description, validation and arrays, as JSON can hold them.
    """
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    names = [name for name in names if name not in _UNLISTED]
    with ThreadPoolExecutor() as pool:
        sums = pool.map(lambda name: _sum(folder / name), names)
    body = {**fields, "files": {name: list(s) for name, s in zip(names, sums, strict=True)}}
    write_text(folder / MANIFEST, json.dumps({"crc32": _sum_of_json(body), **body}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the fields of checkpoint.json, verified by their own CRC32."""
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="ascii"))
        if body.pop("crc32") != _sum_of_json(body):
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
            return None if list(_sum(folder / name)) == files[name] else f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return short(error)

    with ThreadPoolExecutor() as pool:
        for found in pool.map(fault, files):
            if found:
                raise Unreadable(found)


def _sum(path: Path) -> tuple[int, int]:
    """Return the size of a file in bytes and its CRC32."""
    size = crc = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def _sum_of_json(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode("ascii"))


def short(error: BaseException) -> str:
    """Return the first line of an error's text; of a long one its two ends, where the reason is."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else f"{text[:50]} ... {text[-105:]}"


def try_writing(trial: Path) -> None:
    """Raise OSError where nothing can be written, before all processes begin a save.

    One that fails within Orbax's beginning would leave the others waiting there.

    Args:
      trial: a folder of no use to anybody, made and removed.
    """
    trial.mkdir(exist_ok=True)
    try:
        (trial / "bytes").write_bytes(bytes(_TRIAL_BYTES))
    finally:
        (trial / "bytes").unlink(missing_ok=True)
        trial.rmdir()
