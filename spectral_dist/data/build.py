"""Building one token file from one text: the .bin, its manifest, and when they can be trusted.

Owns the two formats of docs/formats.md, and whose turn it is to build: one process's at a time, of
this run or of another one. Also the worker process that `tokens.prepare` starts where several texts
are to be built: `python -m spectral_dist.data.build SOURCE TOKENIZER`, which says the progress, the
manifest or the error. Knows nothing of splits or batches, imports no JAX. Read `build` first, then
`state_of`.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_dist.atomic_file import replacing, temporaries, write_text
from spectral_dist.data.readers import find_reader
from spectral_dist.data.text import TextFacts, convert
from spectral_dist.data.tokenizers import BYTES, TOKENIZERS, Tokenizer
from spectral_dist.file_lock import Holder, held
from spectral_dist.subprocesses import say

FORMAT_VERSION = 1
# Another process that builds is given up after so long a standstill.
_STALLED_SECONDS = 600.0
_CHECK_BLOCKS, _CHECK_BYTES = 16, 1 << 16


@dataclass(frozen=True, kw_only=True)
class Manifest(TextFacts):
    """The facts of the text, and what tells whether source and tokens are still the same.

    Attributes:
      format_version: of the .bin and this manifest.
      dtype: of a token.
      tokenizer: its fingerprint.
      source_mtime_ns: the text's modification time when it was read.
      blocks_crc32: CRC-32 of fixed blocks of the .bin (see `blocks_crc32`).
    """

    format_version: int
    dtype: str
    source_mtime_ns: int
    blocks_crc32: int
    tokenizer: str = BYTES.fingerprint


def bin_path(path: Path, tokenizer: Tokenizer = BYTES) -> Path:
    """Return the .bin of a text: beside it, in place of .txt or after any other suffix.

    That of a tokenizer other than bytes has its fingerprint in the name, so that two runs with
    different ones do not build each other's file anew.
    """
    if path.suffix == ".bin":
        return path
    stem = path.with_suffix("") if path.suffix == ".txt" else path
    return Path(f"{stem}.bin" if tokenizer is BYTES else f"{stem}.{tokenizer.fingerprint}.bin")


def manifest_path(binary: Path) -> Path:
    """Return the manifest of a .bin."""
    return Path(f"{binary}.json")


def blocks_crc32(binary: Path) -> int:
    """Return the CRC-32 of 16 blocks of 64 kB, from the first byte to the last, evenly spread.

    The cost is the same for any size: it notices a file of zeros, a swapped or a torn one. A file
    of up to 1 MB is read whole.
    """
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
    """Read the manifest of a .bin and check both against each other.

    Args:
      binary: the .bin.
      tokenizer: that it must have been made with.

    Raises:
      ValueError: says in what way they cannot be trusted (without the file's name).
    """
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
    """Return the manifest of a .bin if it is whole."""
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
    # Those of bytes were written before there were others, and do not name it to this day.
    values.setdefault("tokenizer", BYTES.fingerprint)
    declared: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Manifest)}
    if values.keys() != declared.keys() or not all(
        isinstance(values[name], kind) for name, kind in declared.items()
    ):
        raise ValueError("its manifest is damaged")
    return Manifest(**values)


@dataclass(frozen=True)
class State:
    """Whether a text's .bin can be used as it is.

    Attributes:
      manifest: of the .bin, or None if it must be built.
      reason: why it must be built, or "" where there never was one.
      refreshed: whether the text has a new modification time and the same content.
    """

    manifest: Manifest | None
    reason: str = ""
    refreshed: bool = False


def state_of(source: Path, tokenizer: Tokenizer = BYTES) -> State:
    """Return whether the .bin of a text is up to date; reads the text only if its time changed.

    Args:
      source: the text.
      tokenizer: of the run.

    Raises:
      OSError: if the text cannot be read.
    """
    binary = bin_path(source, tokenizer)
    try:
        manifest = read_manifest(binary, tokenizer)
    except ValueError as error:
        fresh = not binary.exists() and not manifest_path(binary).exists()
        return State(None, "" if fresh else str(error))
    stat = source.stat()
    if stat.st_size != manifest.source_bytes:
        return State(None, "the text has changed")
    if stat.st_mtime_ns == manifest.source_mtime_ns:
        return State(manifest)
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.source_sha256:
            return State(None, "the text has changed")
    manifest = dataclasses.replace(manifest, source_mtime_ns=stat.st_mtime_ns)
    # Only saves the hashing next time: a folder that cannot be written is no reason to stop.
    with contextlib.suppress(OSError):
        _write_manifest(manifest, binary)
    return State(manifest, refreshed=True)


def build(
    source: Path,
    progress: Callable[[int], None] = lambda done: None,
    tokenizer: Tokenizer = BYTES,
) -> Manifest:
    """Write the .bin and then the manifest of a text, each under a temporary name first.

    Two processes that build the same text do not disturb each other: the later rename wins, with
    the same content.

    Args:
      source: the text.
      progress: told the number of bytes read so far.
      tokenizer: of the tokens.

    Raises:
      ValueError: names the text and what is wrong, in one line.
    """
    binary = bin_path(source, tokenizer)
    try:
        with source.open("rb") as text:
            before = os.fstat(text.fileno())
            changed = ValueError("changed while it was read; start again")

            def watch(done: int) -> None:
                # A text that is still being written might never end.
                if done > before.st_size:
                    raise changed
                progress(done)

            with replacing(binary) as file:
                facts = convert(
                    text,
                    file.write,
                    reader=find_reader(source),
                    tokenizer=tokenizer,
                    progress=watch,
                )
                file.flush()
                crc = blocks_crc32(Path(file.name))
                after = os.fstat(text.fileno())
                if (after.st_size, after.st_mtime_ns) != (facts.source_bytes, before.st_mtime_ns):
                    raise changed
        manifest = Manifest(
            **dataclasses.asdict(facts),
            format_version=FORMAT_VERSION,
            dtype=tokenizer.dtype.name,
            tokenizer=tokenizer.fingerprint,
            source_mtime_ns=before.st_mtime_ns,
            blocks_crc32=crc,
        )
        _write_manifest(manifest, binary)
    except OSError as error:
        raise ValueError(f"data_paths: {source}: {_os_reason(error, binary)}") from error
    except ValueError as error:
        raise ValueError(f"data_paths: {source}: {error}") from error
    return manifest


def _os_reason(error: OSError, binary: Path) -> str:
    """Return what an operating system's error during a build means to the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {binary}; it needs as many bytes as the text"
    return f"cannot build {binary.name}: {error.strerror or error}"


def _write_manifest(manifest: Manifest, binary: Path) -> None:
    values = dataclasses.asdict(manifest)
    if manifest.tokenizer == BYTES.fingerprint:
        del values["tokenizer"]  # so that earlier versions can read it
    write_text(manifest_path(binary), json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def turn_to_build(
    texts: Iterable[Path], report: Callable[[str], None], tokenizer: Tokenizer = BYTES
) -> Iterator[None]:
    """Hold the right to build some texts; wait while another process builds one of them.

    Args:
      texts: to build.
      report: told every two seconds of a wait.
      tokenizer: of the run.

    Raises:
      ValueError: if that process makes no progress for a long time.
    """
    with contextlib.ExitStack() as turns:
        for text in sorted(texts):  # in one order, so that no two processes wait for each other
            binary = bin_path(text, tokenizer)
            lock = binary.with_name(f".{binary.name}.lock")
            # Where no lock can be had, the building itself says why, or works without.
            with contextlib.suppress(OSError):
                turns.enter_context(held(lock, _patience(text, binary, report)))
        yield


def _patience(text: Path, binary: Path, report: Callable[[str], None]) -> Callable[[Holder], None]:
    """Return what tells of a wait for a builder, and gives up one that stands still."""
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
    """Return the bytes of a .bin that are written so far, while it is being built."""
    with contextlib.suppress(OSError):
        return sum(part.stat().st_size for part in temporaries(binary))
    return 0


def _work(source: Path, tokenizer: Tokenizer) -> int:
    """Build one text for another process; tell it of the progress, the manifest or the error."""
    told = 0

    def progress(done: int) -> None:
        nonlocal told
        if done - told >= 1 << 24:
            told = done
            say({"done": done})

    try:
        say({"manifest": dataclasses.asdict(build(source, progress, tokenizer))})
    except ValueError as error:
        say({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_work(Path(sys.argv[1]), TOKENIZERS[sys.argv[2]]))
