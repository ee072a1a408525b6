"""Datasets: from the files a user names to memory-mapped tokens, split into two parts.

Owns which files are built and when. The formats are build.py's, the split split.py's. Knows nothing
of batches and imports no JAX. Read `prepare` first.
"""

import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from spectral_dist.data.split import split_point
from spectral_dist.data.tokenizers import BYTES, TOKENIZERS, Tokenizer
from spectral_dist.settings.datasets import name_datasets
from spectral_dist.settings.sections import DatasetConfig
from spectral_dist.subprocesses import ModuleProcess

Report = Callable[[str], None]
# Below this many bytes in all, starting processes costs more than they save.
_PARALLEL_BYTES = 1 << 25
_REPORT_SECONDS = 2.0


@dataclass(frozen=True)
class TokenFile:
    """One dataset: its tokens, and where its held-out part begins.

    Attributes:
      name: of the dataset, unique in a run.
      path: the .bin.
      tokens: [n] of the tokenizer's dtype, memory-mapped.
      documents: in it, each with its end-of-document token.
      sha256: of the text it was made from, in hexadecimal.
      split: the first held-out token.
      tokenizer: what made the tokens.
    """

    name: str
    path: Path
    tokens: np.ndarray
    documents: int
    sha256: str
    split: int
    tokenizer: Tokenizer = BYTES

    @property
    def train(self) -> np.ndarray:
        """The tokens to train on: [split], a view."""
        return self.tokens[: self.split]

    @property
    def validation(self) -> np.ndarray:
        """The held-out tokens: [n - split], a view."""
        return self.tokens[self.split :]


def prepare(
    paths: Sequence[str],
    *,
    validation_fraction: float,
    min_tokens: int,
    names: Sequence[str] | None = None,
    tokenizer: str = "bytes",
    processes: int | None = None,
    report: Report = print,
) -> list[TokenFile]:
    """Return the datasets of a run, building the .bin of each text that has none up to date.

    Args:
      paths: one file for each dataset: a text; or a .bin with its manifest, which needs no text
        beside it.
      validation_fraction: share of each dataset's tokens to hold out, above 0 and below 1.
      min_tokens: tokens that each part of each dataset must hold, at least 1.
      names: of the datasets (default: those of the files, without the ending).
      tokenizer: its name in `TOKENIZERS`.
      processes: largest number of texts built at a time (default: the cores of this machine).
      report: takes one line for the user at a time.

    Raises:
      ValueError: names the file and what is wrong with it, in one line.
    """
    sources = [Path(path) for path in paths]
    made_by = TOKENIZERS[tokenizer]
    for source in sources:
        _check_readable(source, made_by)
    if names is None:
        given = name_datasets([DatasetConfig(paths=(path,)) for path in paths])
        names = [str(dataset.name) for dataset in given]
    texts = [source for source in dict.fromkeys(sources) if source.suffix != ".bin"]
    manifests, missing = _up_to_date(texts, made_by, report)
    if missing:
        # One process builds, of this run or another one; the others find it built.
        with turn_to_build(missing, report, made_by):
            found, missing = _up_to_date(missing, made_by, report)
            manifests |= found | _build_all(missing, tokenizer, processes, report)
    for source in sources:
        if source.suffix == ".bin":
            try:
                manifests[source] = read_manifest(source, made_by)
            except ValueError as error:
                raise ValueError(
                    f"data_paths: {source}: {error}; give the text to build it again"
                ) from error
    files = [
        _open(name, source, manifests[source], made_by)
        for name, source in zip(names, sources, strict=True)
    ]
    return [
        _split(file, source, validation_fraction, min_tokens, report)
        for file, source in zip(files, sources, strict=True)
    ]


def _up_to_date(
    texts: Iterable[Path], tokenizer: Tokenizer, report: Report
) -> tuple[dict[Path, Manifest], dict[Path, str]]:
    """Return the manifests of the texts whose .bin can be used, and why the others' cannot."""
    manifests: dict[Path, Manifest] = {}
    missing: dict[Path, str] = {}
    for text in texts:
        state = state_of(text, tokenizer)
        if state.manifest is None:
            missing[text] = state.reason
        else:
            if state.refreshed:
                report(f"{text}: a new modification time, the same content; nothing to build")
            manifests[text] = state.manifest
    return manifests, missing


def _check_readable(source: Path, tokenizer: Tokenizer) -> None:
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
        built = bin_path(source, tokenizer)
        hint = f"; {built} is there: name that to use it" if built.is_file() else ""
        raise ValueError(f"data_paths: {source}: no such file{hint}") from None
    except OSError as error:
        raise ValueError(f"data_paths: {source}: cannot be read: {error.strerror}") from error


# ---- building


class _Progress:
    """Lines about one text that is being built, at most one every two seconds."""

    def __init__(
        self, source: Path, report: Report, clock: Callable[[], float], tokenizer: Tokenizer = BYTES
    ) -> None:
        self._source, self._report, self._clock = source, report, clock
        self._binary = bin_path(source, tokenizer)
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
            f" {manifest.documents:,} documents -> {self._binary}"
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
    reasons: Mapping[Path, str], tokenizer: str, processes: int | None, report: Report
) -> dict[Path, Manifest]:
    """Build the texts, in worker processes where there are several and they are large."""
    if not reasons:
        return {}
    for source, reason in reasons.items():
        if reason:
            binary = bin_path(source, TOKENIZERS[tokenizer])
            report(f"{source}: building {binary.name} again: {reason}")
    sources = list(reasons)
    start = partial(_Progress, report=report, clock=time.monotonic, tokenizer=TOKENIZERS[tokenizer])
    progress: dict[Path, _Progress] = {}
    wanted = min(len(sources), processes or _cores())
    total = sum(source.stat().st_size for source in sources)
    built: dict[Path, Manifest] = {}
    if wanted == 1 or (processes is None and total < _PARALLEL_BYTES):
        for source in sources:
            progress[source] = start(source)
            built[source] = build(source, progress[source], TOKENIZERS[tokenizer])
            progress[source].close(built[source])
        return built
    for source, event in _run_workers(sources, tokenizer, wanted):
        if event is None:
            progress[source] = start(source)
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
    sources: Sequence[Path], tokenizer: str, count: int
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
                worker = ModuleProcess("spectral_dist.data.build", [str(source), tokenizer])
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


def _open(name: str, source: Path, manifest: Manifest, tokenizer: Tokenizer) -> TokenFile:
    """Map a .bin whose manifest has been checked."""
    path, n = bin_path(source, tokenizer), manifest.tokens
    tokens = np.memmap(path, dtype=tokenizer.dtype, mode="r", shape=(n,))
    return TokenFile(name, path, tokens, manifest.documents, manifest.source_sha256, n, tokenizer)


def _split(
    file: TokenFile, source: Path, validation_fraction: float, min_tokens: int, report: Report
) -> TokenFile:
    """Choose the held-out part of a dataset."""
    n = len(file.tokens)
    if n < 2 * min_tokens:
        raise ValueError(
            f"data_paths: {source}: too short: {n:,} tokens, and training and validation need"
            f" {min_tokens:,} each (seq_len + 1); give more text or a smaller seq_len"
        )
    split, remark = split_point(file.tokens, validation_fraction, min_tokens, file.tokenizer)
    if remark:
        report(f"{source}: {remark}")
    share = (n - split) / n
    if not validation_fraction / 2 <= share <= validation_fraction * 2:
        report(
            f"{source}: {share:.2%} of it is held out, not {validation_fraction:.2%}: the nearest"
            f" split that leaves {min_tokens:,} tokens on each side"
        )
    return dataclasses.replace(file, split=split)
