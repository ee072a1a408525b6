"""Cache on disk of compilation results, keyed by a hash of the whole request.

Owns the folder, the key and the format of the files. A missing or damaged file is a cache miss, so
the folder can be deleted at any time. Read `Cache`.
"""

import contextlib
import functools
import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from spectral_dist.atomic_file import write_bytes

PACKAGE = Path(__file__).parents[2]


class Cache:
    """A folder of JSON answers, each named by the hash of its question."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created with the first result."""
        self.folder = folder

    def read(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """Return the cached answer to a question, or None if there is none or it is damaged."""
        with contextlib.suppress(OSError, EOFError, ValueError):
            with gzip.open(self._path(question), "rb") as file:  # verifies its CRC-32
                answer = json.loads(file.read())
            return answer if isinstance(answer, dict) else None
        return None

    def write(self, question: dict[str, Any], answer: dict[str, Any]) -> None:
        """Store an answer, whole or not at all; a folder that cannot be written stores nothing."""
        path = self._path(question)
        # A full disk or a read-only home must not stop a search: the next one compiles again.
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Compressed, as it may hold the HLO of a step. mtime=0: equal answers are equal bytes.
            write_bytes(path, gzip.compress(json.dumps(answer).encode(), 6, mtime=0))

    def _path(self, question: dict[str, Any]) -> Path:
        # Sorted keys: the hash must not depend on the order in which the question was built.
        text = json.dumps(question | {"package": package_hash()}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json.gz"


def default_cache() -> Cache:
    """Return the cache of the user, in $XDG_CACHE_HOME or else in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Cache((Path(base) if base else Path.home() / ".cache") / "spectral_dist")


@functools.cache
def package_hash() -> str:
    """Return the SHA-256 of the package's source and GPU descriptions.

    It is a part of every key, so that changed code never finds answers of the old one.
    """
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.txtpb")]):
        content = path.read_bytes()
        # With the length, so that text cannot move from one file to the next unnoticed.
        digest.update(f"{path.relative_to(PACKAGE)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
