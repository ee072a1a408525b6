"""Results kept from one call to the next, found again by the content of what was asked.

Owns the folder, the key and the form of the files. Nothing here is ever needed: a file that is
missing or damaged is a result that is not known. Read `Cache`.
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
    """JSON objects by the content of the questions that they answer."""

    def __init__(self, folder: Path) -> None:
        """Keep results in a folder; it is made when the first one is written."""
        self.folder = folder

    def read(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer to a question, or None if it is not known or its file is damaged."""
        with contextlib.suppress(OSError, EOFError, ValueError):
            with gzip.open(self._path(question), "rb") as file:  # checks its CRC-32 at the end
                answer = json.loads(file.read())
            return answer if isinstance(answer, dict) else None
        return None

    def write(self, question: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep an answer, whole or not at all; a folder that cannot be written keeps nothing."""
        path = self._path(question)
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, gzip.compress(json.dumps(answer).encode(), 6, mtime=0))

    def _path(self, question: dict[str, Any]) -> Path:
        text = json.dumps(question | {"package": package_hash()}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json.gz"


def default_cache() -> Cache:
    """Return the user's: in $XDG_CACHE_HOME, which is ~/.cache unless set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Cache((Path(base) if base else Path.home() / ".cache") / "spectral_dist")


@functools.cache
def package_hash() -> str:
    """Return the SHA-256 of the package's source and descriptions: another one, other answers."""
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.txtpb")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
