"""Token files: from the paths a user gives to memory-mapped tokens, split into two parts.

Owns which files are built and when, the names of the sources, and the split into training and
held-out tokens. The formats are build.py's, the bytes text.py's. Knows nothing of batches and
imports no JAX. Read `prepare` first.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectral_dist.data.build import (
    Manifest,
    bin_path,
    build,
    read_manifest,
    state_of,
    turn_to_build,
)
from spectral_dist.subprocesses import ModuleProcess

Report = Callable[[str], None]
# Below this many bytes in all, starting processes costs more than they save.
_PARALLEL_BYTES = 1 << 25
_REPORT_SECONDS = 2.0
# How far the split looks for a document's end, to each side: under half a second of reading.
_SEARCH_BYTES = 1 << 28
_SEARCH_BLOCK = 1 << 20


@dataclass(frozen=True)
class TokenFile:
    """One source: its tokens, and where its held-out part begins.

    Attributes:
      name: of the source, unique in a run.
      path: the .bin.
      tokens: uint8 [n], memory-mapped.
      documents: bytes 0 in it.
      sha256: of the text it was made from, in hexadecimal.
      split: the first held-out token.
    """

    name: str
    path: Path
    tokens: np.ndarray
    documents: int
    sha256: str
    split: int

    @property
    def train(self) -> np.ndarray:
        """The tokens to train on: uint8 [split], a view."""
        return self.tokens[: self.split]

    @property
    def validation(self) -> np.ndarray:
        """The held-out tokens: uint8 [n - split], a view."""
        return self.tokens[self.split :]


def prepare(
    paths: Sequence[str],
    *,
    validation_fraction: float,
    min_tokens: int,
    processes: int | None = None,
    report: Report = print,
) -> list[TokenFile]:
    """Return the sources of a run, building the .bin of each text that has none up to date.

    Args:
      paths: texts; or .bin files with their manifests, which need no text beside them.
      validation_fraction: share of each source's tokens to hold out, above 0 and below 1.
      min_tokens: tokens that each part of each source must hold, at least 1.
      processes: largest number of texts built at a time (default: the cores of this machine).
      report: takes one line for the user at a time.

    Raises:
      ValueError: names the file and what is wrong with it, in one line.
    """
    sources = [Path(path) for path in paths]
    for source in sources:
        _check_readable(source)
    texts = [source for source in dict.fromkeys(sources) if source.suffix != ".bin"]
    manifests, missing = _up_to_date(texts, report)
    if missing:
        # One process builds, of this run or another one; the others find it built.
        with turn_to_build(missing, report):
            found, missing = _up_to_date(missing, report)
            manifests |= found | _build_all(missing, processes, report)
    for source in sources:
        if source.suffix == ".bin":
            try:
                manifests[source] = read_manifest(source)
            except ValueError as error:
                raise ValueError(
                    f"data_paths: {source}: {error}; give the text to build it again"
                ) from error
    return [
        _open(name, source, manifests[source], validation_fraction, min_tokens, report)
        for name, source in zip(_names(sources), sources, strict=True)
    ]


def _up_to_date(
    texts: Iterable[Path], report: Report
) -> tuple[dict[Path, Manifest], dict[Path, str]]:
    """Return the manifests of the texts whose .bin can be used, and why the others' cannot."""
    manifests: dict[Path, Manifest] = {}
    missing: dict[Path, str] = {}
    for text in texts:
        state = state_of(text)
        if state.manifest is None:
            missing[text] = state.reason
        else:
            if state.refreshed:
                report(f"{text}: a new modification time, the same content; nothing to build")
            manifests[text] = state.manifest
    return manifests, missing


def _check_readable(source: Path) -> None:
    """Raise ValueError if a path is not a file with content that this process may read."""
    try:
        if "\0" in str(source):
            raise ValueError(f"data_paths: {str(source)!r}: a path holds no NUL")
        if source.is_dir():
            raise ValueError(f"data_paths: {source}: is a folder; name the text files in it")
        # A pipe or a device would block, or never end.
        if source.exists() and not source.is_file():
            raise ValueError(f"data_paths: {source}: is not a regular file")
        with source.open("rb") as file:
            if not file.read(1):
                raise ValueError(f"data_paths: {source}: is empty")
    except FileNotFoundError:
        built = bin_path(source)
        hint = f"; {built} is there: name that to use it" if built.is_file() else ""
        raise ValueError(f"data_paths: {source}: no such file{hint}") from None
    except OSError as error:
        raise ValueError(f"data_paths: {source}: cannot be read: {error.strerror}") from error


def _names(sources: Sequence[Path]) -> list[str]:
    """Return the stems, made unique by _2, _3, ..."""
    names: list[str] = []
    for source in sources:
        name, number = source.stem, 1
        while name in names:
            number += 1
            name = f"{source.stem}_{number}"
        names.append(name)
    return names


# ---- building


class _Progress:
    """Lines about one text that is being built, at most one every two seconds."""

    def __init__(self, source: Path, report: Report, clock: Callable[[], float]) -> None:
        self._source, self._report, self._clock = source, report, clock
        self._size = source.stat().st_size
        self._start = self._told = clock()

    def __call__(self, done: int) -> None:
        now = self._clock()
        if now - self._told >= _REPORT_SECONDS:
            self._told = now
            share = done / max(self._size, done, 1)
            rate = done / 1e6 / (now - self._start)
            self._report(f"{self._source}: {share:.0%} of {_size(self._size)}, {rate:.0f} MB/s")

    def close(self, manifest: Manifest) -> None:
        seconds = max(self._clock() - self._start, 1e-9)
        rate = manifest.source_bytes / 1e6 / seconds
        self._report(
            f"{self._source}: {_size(manifest.source_bytes)} in {seconds:.1f} s ({rate:.0f} MB/s),"
            f" {manifest.documents:,} documents -> {bin_path(self._source)}"
        )
        if manifest.nul_bytes or manifest.invalid_sequences:
            self._report(
                f"{self._source}: {manifest.nul_bytes:,} NUL bytes and"
                f" {manifest.invalid_sequences:,} pieces of invalid UTF-8 replaced by U+FFFD, the"
                f" first in line {manifest.first_replaced_line:,}"
            )


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 10_000 else f"{count / 1e6:,.1f} MB"


def _build_all(
    reasons: Mapping[Path, str], processes: int | None, report: Report
) -> dict[Path, Manifest]:
    """Build the texts, in worker processes where there are several and they are large."""
    if not reasons:
        return {}
    for source, reason in reasons.items():
        if reason:
            report(f"{source}: building {bin_path(source).name} again: {reason}")
    sources = list(reasons)
    progress: dict[Path, _Progress] = {}
    wanted = min(len(sources), processes or _cores())
    total = sum(source.stat().st_size for source in sources)
    built: dict[Path, Manifest] = {}
    if wanted == 1 or (processes is None and total < _PARALLEL_BYTES):
        for source in sources:
            progress[source] = _Progress(source, report, time.monotonic)
            built[source] = build(source, progress[source])
            progress[source].close(built[source])
        return built
    for source, event in _run_workers(sources, wanted):
        if event is None:
            progress[source] = _Progress(source, report, time.monotonic)
        elif "done" in event:
            progress[source](event["done"])
        elif "manifest" in event:
            built[source] = Manifest(**event["manifest"])
            progress[source].close(built[source])
        else:
            raise ValueError(event["error"])
    return built


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_workers(
    sources: Sequence[Path], count: int
) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Build texts in `count` processes at a time; yield their events, each one's first is None."""
    # The largest first: the last one to finish then is a small one.
    waiting = sorted(sources, key=lambda source: source.stat().st_size)
    events: queue.SimpleQueue[tuple[Path, dict[str, Any] | None]] = queue.SimpleQueue()
    running: dict[Path, ModuleProcess] = {}
    finished: set[Path] = set()

    def listen(source: Path, worker: ModuleProcess) -> None:
        for event in worker.events():
            events.put((source, event))
        events.put((source, None))

    with contextlib.ExitStack() as stopping:
        while waiting or running:
            while waiting and len(running) < count:
                source = waiting.pop()
                worker = ModuleProcess("spectral_dist.data.build", [str(source)])
                running[source] = stopping.enter_context(worker)
                threading.Thread(target=listen, args=(source, worker), daemon=True).start()
                yield source, None
            source, event = events.get()
            if event is not None:
                finished |= {source} if "manifest" in event else set()
                yield source, event
                continue
            ending = running.pop(source).ending()
            if source not in finished:
                raise ValueError(f"data_paths: {source}: its worker process {ending}")


# ---- opening and splitting


def _open(
    name: str,
    source: Path,
    manifest: Manifest,
    validation_fraction: float,
    min_tokens: int,
    report: Report,
) -> TokenFile:
    """Map a .bin whose manifest has been checked, and split it."""
    n = manifest.tokens
    if n < 2 * min_tokens:
        raise ValueError(
            f"data_paths: {source}: too short: {n:,} tokens, and training and validation need"
            f" {min_tokens:,} each (seq_len + 1); give more text or a smaller seq_len"
        )
    path = bin_path(source)
    tokens = np.memmap(path, dtype=np.uint8, mode="r", shape=(n,))
    split, remark = split_point(tokens, validation_fraction, min_tokens)
    if remark:
        report(f"{source}: {remark}")
    share = (n - split) / n
    if not validation_fraction / 2 <= share <= validation_fraction * 2:
        report(
            f"{source}: {share:.2%} of it is held out, not {validation_fraction:.2%}: the nearest"
            f" split that leaves {min_tokens:,} tokens on each side"
        )
    return TokenFile(name, path, tokens, manifest.documents, manifest.source_sha256, split)


def split_point(
    tokens: np.ndarray, validation_fraction: float, min_tokens: int
) -> tuple[int, str | None]:
    """Return the first held-out token, and a remark where it does not begin a document.

    The document boundary nearest to the wanted share is taken, if it leaves at least half of the
    tokens to training. Only the neighbourhood of the wanted place is read.

    Args:
      tokens: uint8 [n], n >= 2 * min_tokens.
      validation_fraction: share to hold out, above 0 and below 1.
      min_tokens: tokens to leave on each side, at least 1.
    """
    n = len(tokens)
    low, high = max(min_tokens, n // 2 if validation_fraction <= 0.5 else 1), n - min_tokens
    target = min(max(round((1 - validation_fraction) * n), low), high)
    for value, remark in ((0, None), (ord("\n"), "a line break")):
        # The held-out part begins after the byte: boundary p has tokens[p - 1] == value.
        before = _nearest(tokens, value, target - 1, low - 1, high - 1)
        if before is not None:
            if remark:
                remark = f"no document ends near the held-out share: split at {remark} instead"
            return before + 1, remark
    while target < high and tokens[target] & 0xC0 == 0x80:
        target += 1
    return target, "no document or line ends near the held-out share: split inside a line"


def _nearest(tokens: np.ndarray, value: int, target: int, low: int, high: int) -> int | None:
    """Return the index in [low, high] nearest to `target` where `value` stands, or None."""
    for distance in range(0, _SEARCH_BYTES, _SEARCH_BLOCK):
        left_end, left_start = target - distance + 1, target - distance - _SEARCH_BLOCK + 1
        left = np.flatnonzero(tokens[max(left_start, low) : max(left_end, low)] == value)
        right_start, right_end = target + distance, target + distance + _SEARCH_BLOCK
        right = np.flatnonzero(tokens[right_start : min(right_end, high + 1)] == value)
        found = []
        if len(left):
            found.append(max(left_start, low) + int(left[-1]))
        if len(right):
            found.append(right_start + int(right[0]))
        if found:
            return min(found, key=lambda index: abs(index - target))
        if left_start <= low and right_end > high:
            return None
    return None
