"""The manifest of a .bin: where it is, what it says, and whether the two belong together.

Owns the two formats of docs/formats.md. Makes no tokens, and imports no JAX. Read `Manifest`, then
`read_manifest`.
"""

import dataclasses
import hashlib
import json
import urllib.parse
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_dist.atomic_file import write_text
from spectral_dist.data.formats import TEXT_FIELD, TXT, Format
from spectral_dist.data.text import TextFacts
from spectral_dist.data.tokenizers import BYTES, Tokenizer

FORMAT_VERSION = 1
_CHECK_BLOCKS, _CHECK_BYTES = 16, 1 << 16  # 1 MB in all: milliseconds at every start


@dataclass(frozen=True, kw_only=True)
class Manifest(TextFacts):
    """The manifest of a .bin: facts about the text file, and checksums of both files.

    Attributes:
      format_version: of the .bin and this manifest.
      dtype: of a token.
      tokenizer: its fingerprint.
      kind: how the file was read, a name in `formats.READERS`.
      field: of its records, that held the text; "text" for plain text.
      normalize: of its letters, as in `formats.Format`.
      source_mtime_ns: the text file's modification time when it was read.
      source_version: what its store called its content, if it came from behind a URL.
      blocks_crc32: CRC-32 of fixed blocks of the .bin (see `blocks_crc32`).
    """

    format_version: int
    dtype: str
    source_mtime_ns: int
    blocks_crc32: int
    tokenizer: str = BYTES.fingerprint
    kind: str = "txt"
    field: str = TEXT_FIELD
    normalize: str = "none"
    source_version: str = ""

    @property
    def sha256(self) -> str:
        """Of what was read: of the text file, and of how it was read if not as it is."""
        how = [] if self.kind == "txt" else [self.kind, self.field]
        how += [] if self.normalize == "none" else [self.normalize]
        if not how:
            return self.source_sha256
        return hashlib.sha256(" ".join([self.source_sha256, *how]).encode()).hexdigest()


# What manifests of earlier versions do not have, and its value then.
_LATER: dict[str, Any] = {
    "tokenizer": BYTES.fingerprint,
    "near_separators": 0,
    "first_near_line": None,
    "records_without_text": 0,
    "kind": "txt",
    "field": TEXT_FIELD,
    "normalize": "none",
    "decomposed": 0,
    "source_version": "",
}


def bin_path(path: Path, tokenizer: Tokenizer = BYTES, form: Format = TXT) -> Path:
    """Return the path of a text file's .bin: beside it, in place of .txt or after another suffix.

    The names of a tokenizer other than bytes, of a field other than text, and of a normalization
    are part of it.
    """
    if path.suffix == ".bin":
        return path
    # The fingerprint in the name: two runs with different tokenizers would otherwise overwrite each
    # other's .bin, over and over.
    stem = str(path.with_suffix("") if path.suffix == ".txt" else path)
    if form.field != TEXT_FIELD:
        stem += f".{urllib.parse.quote(form.field, safe='')}"
    if form.normalize != "none":
        stem += f"+{form.normalize}"  # no field's name has a +, as it is quoted
    return Path(f"{stem}.bin" if tokenizer is BYTES else f"{stem}.{tokenizer.fingerprint}.bin")


def manifest_path(binary: Path) -> Path:
    """Return the path of the manifest of a .bin."""
    return Path(f"{binary}.json")


def blocks_crc32(binary: Path) -> int:
    """Return the CRC-32 of 16 blocks of 64 kB, evenly spread from the first byte to the last.

    A file of up to 1 MB is read whole.
    """
    # Blocks and not the whole: the cost is the same for any size, and a file of zeros, a swapped or
    # a half-copied one is noticed.
    size = binary.stat().st_size
    room = size - _CHECK_BYTES
    starts = [i * room // (_CHECK_BLOCKS - 1) for i in range(_CHECK_BLOCKS)]
    blocks = [(start, _CHECK_BYTES) for start in starts]
    if size <= _CHECK_BLOCKS * _CHECK_BYTES:
        blocks = [(0, size)]
    crc = 0
    with binary.open("rb") as file:
        for start, length in blocks:
            file.seek(start)
            crc = zlib.crc32(file.read(length), crc)
    return crc


def read_manifest(binary: Path, tokenizer: Tokenizer = BYTES) -> Manifest:
    """Read the manifest of a .bin and check that the two belong together.

    Args:
      binary: the .bin.
      tokenizer: that it must have been made with.

    Raises:
      ValueError: says why the .bin cannot be used (without the file's name).
    """
    # From the cheapest check to the dearest.
    manifest = _parse_manifest(binary)
    if manifest.tokenizer != tokenizer.fingerprint:
        raise ValueError(
            f"its tokenizer is {manifest.tokenizer!r}, and the run's {tokenizer.fingerprint!r}"
        )
    if manifest.dtype != tokenizer.dtype.name:
        raise ValueError("its manifest is damaged")
    if not binary.is_file():
        raise ValueError("it is missing")
    wanted = manifest.tokens * tokenizer.dtype.itemsize
    if (size := binary.stat().st_size) != wanted:
        raise ValueError(f"it holds {size:,} bytes where its manifest says {wanted:,}")
    if blocks_crc32(binary) != manifest.blocks_crc32:
        raise ValueError("its content does not match its manifest")
    return manifest


def _parse_manifest(binary: Path) -> Manifest:
    """Return the manifest of a .bin; raise ValueError if it is missing or damaged."""
    try:
        values = json.loads(manifest_path(binary).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError("its manifest is missing") from None
    except (OSError, ValueError) as error:
        raise ValueError("its manifest cannot be read") from error
    if not isinstance(values, dict) or not isinstance(values.get("format_version"), int):
        raise ValueError("its manifest is damaged")
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format version is {values['format_version']}, not {FORMAT_VERSION}")
    values = _LATER | values
    declared: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Manifest)}
    if values.keys() != declared.keys() or not all(
        isinstance(values[name], kind) for name, kind in declared.items()
    ):
        raise ValueError("its manifest is damaged")
    return Manifest(**values)


def write_manifest(manifest: Manifest, binary: Path) -> None:
    """Write the manifest of a .bin, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    # What says nothing is left out, so that earlier versions can read it.
    every = dataclasses.asdict(manifest)
    values = {name: value for name, value in every.items() if _LATER.get(name, ...) != value}
    write_text(manifest_path(binary), json.dumps(values, indent=2) + "\n")
