"""Tokenizing a text file: it becomes a .bin of tokens with a manifest.

Owns the two formats of docs/formats.md, when a .bin is up to date, and the lock that lets one
process at a time build it. `python -m spectral_dist.data.build` is the worker process that
`build_all` starts for some files. Knows nothing of splits or batches, imports no JAX. Read `build`
first, then `bin_state`.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import sys
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_dist.atomic_file import replacing, temporaries, write_text
from spectral_dist.data.formats import TEXT_FIELD, Format, find_format
from spectral_dist.data.text import TextFacts, convert
from spectral_dist.data.tokenizers import BYTES, Tokenizer, open_tokenizer
from spectral_dist.file_lock import Holder, held
from spectral_dist.subprocesses import read_request, say

FORMAT_VERSION = 1
# A process that builds is taken for hung when its .bin has not grown for this long.
_STALLED_SECONDS = 600.0
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
      source_mtime_ns: the text file's modification time when it was read.
      blocks_crc32: CRC-32 of fixed blocks of the .bin (see `blocks_crc32`).
    """

    format_version: int
    dtype: str
    source_mtime_ns: int
    blocks_crc32: int
    tokenizer: str = BYTES.fingerprint
    kind: str = "txt"
    field: str = TEXT_FIELD

    @property
    def sha256(self) -> str:
        """Of what was read: of the text file, and of how it was read if it holds records."""
        if self.kind == "txt":
            return self.source_sha256
        return hashlib.sha256(f"{self.source_sha256} {self.kind} {self.field}".encode()).hexdigest()


# What manifests of earlier versions do not have, and its value then.
_LATER: dict[str, Any] = {
    "tokenizer": BYTES.fingerprint,
    "near_separators": 0,
    "first_near_line": None,
    "records_without_text": 0,
    "kind": "txt",
    "field": TEXT_FIELD,
}


def bin_path(path: Path, tokenizer: Tokenizer = BYTES, field: str = TEXT_FIELD) -> Path:
    """Return the path of a text file's .bin: beside it, in place of .txt or after another suffix.

    The names of a tokenizer other than bytes, and of a field other than text, are part of it.
    """
    if path.suffix == ".bin":
        return path
    # The fingerprint in the name: two runs with different tokenizers would otherwise overwrite each
    # other's .bin, over and over.
    stem = str(path.with_suffix("") if path.suffix == ".txt" else path)
    if field != TEXT_FIELD:
        stem += f".{urllib.parse.quote(field, safe='')}"
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


@dataclass(frozen=True)
class BinState:
    """Whether the .bin of a text file is up to date.

    Attributes:
      manifest: of the .bin, or None if it must be built.
      reason: why it must be built again, or "" if there is none yet.
      refreshed: whether the text file has a new modification time but the same content.
    """

    manifest: Manifest | None
    reason: str = ""
    refreshed: bool = False


def bin_state(
    text_file: Path, tokenizer: Tokenizer = BYTES, form: Format | None = None
) -> BinState:
    """Return whether the .bin of a text file is up to date.

    The text file is read only if its modification time has changed.

    Args:
      text_file: the text file.
      tokenizer: of the run.
      form: its format (default: by its name).

    Raises:
      OSError: if the text file cannot be read.
      ValueError: if a file that is not ours has the name of the .bin.
    """
    form = form or find_format(text_file)
    binary = bin_path(text_file, tokenizer, form.field)
    described = manifest_path(binary).exists()
    if binary.exists() and not described:
        # A build writes the manifest first: without one the file is somebody else's.
        raise ValueError(
            f"data_paths: {text_file}: {binary} is in the way: there is no"
            f" {manifest_path(binary).name} beside it, so it is not from here and is not replaced;"
            " move it away, or rename the text"
        )
    try:
        manifest = read_manifest(binary, tokenizer)
    except ValueError as error:
        return BinState(None, str(error) if described else "")
    if manifest.kind != form.kind:
        return BinState(None, f"it was read as {manifest.kind}")
    stat = text_file.stat()
    if stat.st_size != manifest.source_bytes:
        return BinState(None, "the text has changed")
    if stat.st_mtime_ns == manifest.source_mtime_ns:
        return BinState(manifest)
    # A copy or a `touch` changes the time only: then hashing saves tokenizing again.
    with text_file.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.source_sha256:
            return BinState(None, "the text has changed")
    manifest = dataclasses.replace(manifest, source_mtime_ns=stat.st_mtime_ns)
    # With the new time the next start need not hash. A read-only folder is no reason to stop.
    with contextlib.suppress(OSError):
        _write_manifest(manifest, binary)
    return BinState(manifest, refreshed=True)


def build(
    text_file: Path,
    progress: Callable[[int], None] = lambda done: None,
    tokenizer: Tokenizer = BYTES,
    form: Format | None = None,
) -> Manifest:
    """Tokenize a text file: write its manifest and then its .bin.

    Args:
      text_file: the text file.
      progress: called with the number of bytes read so far.
      tokenizer: of the tokens.
      form: its format (default: by its name).

    Raises:
      ValueError: names the text file and what is wrong, in one line.
    """
    form = form or find_format(text_file)
    binary = bin_path(text_file, tokenizer, form.field)
    try:
        with text_file.open("rb") as stream:
            before = os.fstat(stream.fileno())
            changed = ValueError("changed while it was read; start again")

            def watch(done: int) -> None:
                # A file that grows while it is read might never end.
                if done > before.st_size:
                    raise changed
                progress(done)

            # Under a temporary name first. Where no lock could be had, two processes may build the
            # same .bin: the later rename wins, with the same content.
            with replacing(binary) as file:
                facts = convert(stream, file.write, form=form, tokenizer=tokenizer, progress=watch)
                file.flush()
                crc = blocks_crc32(Path(file.name))
                after = os.fstat(stream.fileno())
                if (after.st_size, after.st_mtime_ns) != (facts.source_bytes, before.st_mtime_ns):
                    raise changed
                read: dict[str, Any] = dataclasses.asdict(facts)
                read |= {"kind": form.kind, "field": form.field}
                manifest = Manifest(
                    **read,
                    format_version=FORMAT_VERSION,
                    dtype=tokenizer.dtype.name,
                    tokenizer=tokenizer.fingerprint,
                    source_mtime_ns=before.st_mtime_ns,
                    blocks_crc32=crc,
                )
                # Before the .bin has its name: a kill in between leaves a manifest without it, or
                # with an older one, and it is built again; a .bin without a manifest is not ours.
                _write_manifest(manifest, binary)
    except OSError as error:
        raise ValueError(f"data_paths: {text_file}: {_os_reason(error, binary)}") from error
    except ValueError as error:
        raise ValueError(f"data_paths: {text_file}: {error}") from error
    return manifest


def _os_reason(error: OSError, binary: Path) -> str:
    """Return an operating system's error during a build in the user's words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {binary}; it needs as many bytes as the text"
    return f"cannot build {binary.name}: {error.strerror or error}"


def _write_manifest(manifest: Manifest, binary: Path) -> None:
    # What says nothing is left out, so that earlier versions can read it.
    every = dataclasses.asdict(manifest)
    values = {name: value for name, value in every.items() if _LATER.get(name, ...) != value}
    write_text(manifest_path(binary), json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def build_lock(binaries: Mapping[Path, Path], report: Callable[[str], None]) -> Iterator[None]:
    """Hold the locks of some text files while they are built; wait for a process that has one.

    Args:
      binaries: the text files to build, and the .bin of each.
      report: takes one line every two seconds of waiting.

    Raises:
      ValueError: if that process makes no progress for ten minutes.
    """
    with contextlib.ExitStack() as locks:
        # In one order: otherwise two processes could deadlock.
        for text, binary in sorted(binaries.items()):
            lock = binary.with_name(f".{binary.name}.lock")
            # Some file systems have no locks, and a folder may be read-only. Then the build goes on
            # without a lock, and reports any error of its own.
            with contextlib.suppress(OSError):
                locks.enter_context(held(lock, _watch_builder(text, binary, report)))
        yield


def _watch_builder(
    text: Path, binary: Path, report: Callable[[str], None]
) -> Callable[[Holder], None]:
    """Return a function that reports the wait for a builder, and raises if it is hung."""
    # Judged by progress and not by time alone: a large text file takes as long as it takes.
    written, since = -1, time.monotonic()

    def wait(builder: Holder) -> None:
        nonlocal written, since
        now = time.monotonic()
        if (size := _unfinished_bytes(binary)) != written:
            written, since = size, now
        if now - since > _STALLED_SECONDS:
            raise ValueError(
                f"data_paths: {text}: {builder} has been building {binary.name} without progress"
                f" for {now - since:.0f} s; end it and start again"
            )
        report(f"{text}: waiting for {builder}, which builds {binary.name}")

    return wait


def _unfinished_bytes(binary: Path) -> int:
    """Return the number of bytes written so far of a .bin that is being built."""
    with contextlib.suppress(OSError):
        return sum(part.stat().st_size for part in temporaries(binary))
    return 0


def _build_for_parent(request: dict[str, Any]) -> int:
    """Build the files that the parent names; report progress, manifests or an error to it."""
    # Workers are as many as cores: each with a thread for every core would only get in the way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = open_tokenizer(request["tokenizer"])
    for number, (path, form) in enumerate(request["files"]):
        say({"file": number, "begun": True})
        try:
            manifest = build(Path(path), _Told(number), tokenizer, Format(*form))
        except ValueError as error:
            say({"file": number, "error": str(error)})
            return 1
        say({"file": number, "manifest": dataclasses.asdict(manifest)})
    return 0


class _Told:
    """Tells the parent of a file's progress, every 16 MB: some ten lines a second at most."""

    def __init__(self, number: int) -> None:
        self._number, self._reported = number, 0

    def __call__(self, done: int) -> None:
        if done - self._reported >= 1 << 24:
            self._reported = done
            say({"file": self._number, "done": done})


if __name__ == "__main__":
    sys.exit(_build_for_parent(read_request()))
