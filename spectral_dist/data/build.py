"""Tokenizing a text file: it becomes a .bin of tokens with a manifest.

Owns when a .bin is up to date, and the lock that lets one process at a time build it.
`python -m spectral_dist.data.build` is the worker process that `build_all` starts for some files.
Knows nothing of splits or batches, imports no JAX. Read `build` first, then `bin_state`.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_dist.atomic_file import replacing, temporaries
from spectral_dist.command_line import Ending
from spectral_dist.data.formats import Format, find_format, head_of
from spectral_dist.data.manifest import (
    FORMAT_VERSION,
    Manifest,
    bin_path,
    blocks_crc32,
    manifest_path,
    read_manifest,
    write_manifest,
)
from spectral_dist.data.remote import Remote, fetched
from spectral_dist.data.text import convert
from spectral_dist.data.tokenizers import BYTES, Tokenizer, open_tokenizer
from spectral_dist.file_lock import Holder, held
from spectral_dist.subprocesses import read_request, say

# A process that builds is taken for hung when its .bin has not grown for this long.
_STALLED_SECONDS = 600.0


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
    text_file: Path,
    tokenizer: Tokenizer = BYTES,
    form: Format | None = None,
    remote: Remote | None = None,
) -> BinState:
    """Return whether the .bin of a text file is up to date.

    The text file is read only if its modification time has changed.

    Args:
      text_file: the text file.
      tokenizer: of the run.
      form: its format (default: by its name).
      remote: the file behind a URL, if that is where it is.

    Raises:
      OSError: if the text file cannot be read.
      ValueError: if a file that is not ours has the name of the .bin.
    """
    form = form or find_format(text_file)
    binary = bin_path(text_file, tokenizer, form)
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
    if remote is not None:
        same = remote.size in (None, manifest.source_bytes)
        same = same and remote.version == manifest.source_version
        return BinState(manifest) if same else BinState(None, "the text has changed")
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
        write_manifest(manifest, binary)
    return BinState(manifest, refreshed=True)


def build(
    text_file: Path,
    progress: Callable[[int], None] = lambda done: None,
    tokenizer: Tokenizer = BYTES,
    form: Format | None = None,
    remote: Remote | None = None,
) -> Manifest:
    """Tokenize a text file: write its manifest and then its .bin.

    Args:
      text_file: the text file, or its place in the cache.
      progress: called with the number of bytes read so far.
      tokenizer: of the tokens.
      form: its format (default: by its name).
      remote: the file behind a URL, if that is where it is.

    Raises:
      ValueError: names the text file and what is wrong, in one line.
      Ending: if the store of a URL cannot be reached.
    """
    form = form or find_format(text_file)
    binary = bin_path(text_file, tokenizer, form)
    try:
        if remote is None:
            return _build_from(text_file, binary, progress, tokenizer, form)
        # It is copied and then read: half of the way each.
        with fetched(remote, binary, lambda done: progress(done // 2)) as copy:
            with copy.open("rb") as stream:
                form.check(head_of(stream, form.packing))
            size = copy.stat().st_size
            second = lambda done: progress((size + done) // 2)  # noqa: E731
            return _build_from(copy, binary, second, tokenizer, form, remote.version)
    except OSError as error:
        name = text_file if remote is None else remote.url
        raise ValueError(f"data_paths: {name}: {_os_reason(error, binary)}") from error
    except ValueError as error:
        name = text_file if remote is None else remote.url
        raise ValueError(f"data_paths: {name}: {error}") from error


def _build_from(
    text_file: Path,
    binary: Path,
    progress: Callable[[int], None],
    tokenizer: Tokenizer,
    form: Format,
    version: str = "",
) -> Manifest:
    """Tokenize a text file on this disk; as `build`, with what its errors are."""
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
            read |= {"kind": form.kind, "field": form.field, "normalize": form.normalize}
            read |= {"source_version": version}
            manifest = Manifest(
                **read,
                format_version=FORMAT_VERSION,
                dtype=tokenizer.dtype.name,
                tokenizer=tokenizer.fingerprint,
                source_mtime_ns=before.st_mtime_ns,
                blocks_crc32=crc,
            )
            # Before the .bin has its name: a kill in between leaves a manifest without it, or with
            # an older one, and it is built again; a .bin without a manifest is not ours.
            write_manifest(manifest, binary)
    return manifest


def _os_reason(error: OSError, binary: Path) -> str:
    """Return an operating system's error during a build in the user's words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {binary}; it needs as many bytes as the text"
    return f"cannot build {binary.name}: {error.strerror or error}"


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
    for number, (path, form, remote) in enumerate(request["files"]):
        say({"file": number, "begun": True})
        behind = Remote(*remote) if remote else None
        try:
            manifest = build(Path(path), _Told(number), tokenizer, Format(*form), behind)
        except ValueError as error:
            say({"file": number, "error": str(error)})
            return 1
        except Ending as error:
            say({"file": number, "error": str(error), "code": error.code})
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
