"""Datasets: from the files that a user names to memory-mapped tokens, train and validation.

Owns which text files are tokenized, and in how many processes. build.py tokenizes one of them,
split.py chooses the held-out part. Knows nothing of batches and imports no JAX. Read `prepare`.
"""

import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from spectral_dist.data.build import (
    Manifest,
    bin_path,
    bin_state,
    build,
    build_lock,
    read_manifest,
)
from spectral_dist.data.remarks import remark
from spectral_dist.data.split import split_point
from spectral_dist.data.tokenizers import BYTES, TOKENIZERS, Tokenizer
from spectral_dist.data.trained import sketch
from spectral_dist.settings.datasets import name_datasets
from spectral_dist.settings.sections import DatasetConfig
from spectral_dist.subprocesses import ModuleProcess

Report = Callable[[str], None]
# Below this many bytes in all (0.1 s of work), starting processes costs more than it saves.
_PARALLEL_BYTES = 1 << 25
_REPORT_SECONDS = 2.0


@dataclass(frozen=True)
class TokenFile:
    """One dataset: its tokens, and the split into training and held-out part.

    Attributes:
      name: of the dataset, unique in a run.
      path: the .bin.
      tokens: [n] of the tokenizer's dtype, memory-mapped.
      documents: number of documents, each with its end-of-document token.
      sha256: of the text file it was made from, in hexadecimal.
      split: index of the first held-out token.
      tokenizer: what made the tokens.
    """

    name: str
    path: Path
    tokens: np.ndarray
    documents: int
    sha256: str
    split: int
    tokenizer: Tokenizer = BYTES

    @cached_property
    def sketch(self) -> dict[str, Any]:
        """What `trained.recognise` knows the trained part by; made once."""
        return sketch(self.tokens, self.split, self.tokenizer)

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
    allow_replaced: bool = False,
    report: Report = print,
) -> list[TokenFile]:
    """Return the datasets of a run; tokenize each text file whose .bin is not up to date.

    Args:
      paths: one file for each dataset: a text file; or a .bin with its manifest, which needs no
        text file beside it.
      validation_fraction: share of each dataset's tokens to hold out, above 0 and below 1.
      min_tokens: tokens that each part of each dataset must hold, at least 1.
      names: of the datasets (default: those of the files, without the suffix).
      tokenizer: its name in `TOKENIZERS`.
      processes: largest number of text files tokenized at a time (default: the number of cores).
      allow_replaced: whether more than a thousandth of a text may be no UTF-8.
      report: takes one line for the user at a time.

    Raises:
      ValueError: names the file and what is wrong with it, in one line.
    """
    # Not Path.expanduser, which fails where "~x" is no user's folder.
    given = [Path(os.path.expanduser(path)) for path in paths]
    made_by = TOKENIZERS[tokenizer]
    # All of them before any work: a mistake in the last path must not cost an hour first.
    for path in given:
        _check_readable(path, made_by)
    inputs = _same_files(given, report)
    if names is None:
        datasets = name_datasets([DatasetConfig(paths=(path,)) for path in paths])
        names = [str(dataset.name) for dataset in datasets]
    # Each once: two datasets may name the same text file.
    texts = [path for path in dict.fromkeys(inputs) if path.suffix != ".bin"]
    _check_outputs(texts, made_by)
    manifests, missing = _up_to_date(texts, made_by, report)
    if missing:
        # One process builds, of this run or another; the others wait, and then find the .bin up to
        # date when they look again.
        with build_lock(missing, report, made_by):
            found, missing = _up_to_date(missing, made_by, report)
            manifests |= found | _build_all(missing, tokenizer, processes, report)
    manifests |= {path: _given(path, made_by) for path in inputs if path.suffix == ".bin"}
    for path in dict.fromkeys(inputs):
        remark(path, manifests[path], allow_replaced, report)
    files = [
        _open(name, path, manifests[path], made_by)
        for name, path in zip(names, inputs, strict=True)
    ]
    return [
        _split(file, path, validation_fraction, min_tokens, report)
        for file, path in zip(files, inputs, strict=True)
    ]


def _given(binary: Path, tokenizer: Tokenizer) -> Manifest:
    """Return the manifest of a .bin that the user names himself."""
    try:
        return read_manifest(binary, tokenizer)
    except ValueError as error:
        raise ValueError(
            f"data_paths: {binary}: {error}; give the text to build it again"
        ) from error


def _same_files(paths: Sequence[Path], report: Report) -> list[Path]:
    """Return the paths, with one spelling for each file; say which file comes more than once."""
    first: dict[Path, Path] = {}
    found = [first.setdefault(path.resolve(), path) for path in paths]
    for path in dict.fromkeys(found):
        if (times := found.count(path)) > 1:
            report(f"{path}: is named {times} times, so its text has the share of all of them")
    return found


def _check_outputs(texts: Sequence[Path], tokenizer: Tokenizer) -> None:
    """Raise ValueError if two text files would become the same .bin."""
    made: dict[Path, Path] = {}
    for text in texts:
        other = made.setdefault(bin_path(text, tokenizer).resolve(), text)
        if other != text:
            binary = bin_path(text, tokenizer).name
            raise ValueError(f"data_paths: {other} and {text}: both become {binary}; rename one")


def _up_to_date(
    texts: Iterable[Path], tokenizer: Tokenizer, report: Report
) -> tuple[dict[Path, Manifest], dict[Path, str]]:
    """Return the manifests of the .bin files that are up to date, and why the others are not."""
    manifests: dict[Path, Manifest] = {}
    missing: dict[Path, str] = {}
    for text in texts:
        state = bin_state(text, tokenizer)
        if state.manifest is None:
            missing[text] = state.reason
        else:
            if state.refreshed:
                report(f"{text}: a new modification time, the same content; nothing to build")
            manifests[text] = state.manifest
    return manifests, missing


def _check_readable(path: Path, tokenizer: Tokenizer) -> None:
    """Raise ValueError if a path is not a file with content that this process may read."""
    try:
        if "\0" in str(path):
            raise ValueError(f"data_paths: {str(path)!r}: a path holds no NUL")
        if path.is_dir():
            raise ValueError(f"data_paths: {path}: is a folder; name the text files in it")
        # Reading a pipe or a device could block for ever.
        if path.exists() and not path.is_file():
            raise ValueError(f"data_paths: {path}: is not a regular file")
        with path.open("rb") as file:
            if not file.read(1):  # also finds out whether this user may read it
                raise ValueError(f"data_paths: {path}: is empty")
    except FileNotFoundError:
        built = bin_path(path, tokenizer)
        hint = f"; {built} is there: name that to use it" if built.is_file() else ""
        raise ValueError(f"data_paths: {path}: no such file{hint}") from None
    except OSError as error:
        raise ValueError(f"data_paths: {path}: cannot be read: {error.strerror}") from error


# ---- building


class _Progress:
    """Reports the progress of tokenizing one text file, at most one line every two seconds."""

    def __init__(
        self,
        text_file: Path,
        report: Report,
        clock: Callable[[], float],
        tokenizer: Tokenizer = BYTES,
    ) -> None:
        self._path, self._report, self._clock = text_file, report, clock
        self._binary = bin_path(text_file, tokenizer)
        self._size = text_file.stat().st_size
        self._start = self._reported = clock()

    def __call__(self, done: int) -> None:
        now = self._clock()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            share = done / max(self._size, done, 1)
            rate = done / 1e6 / (now - self._start)
            self._report(f"{self._path}: {share:.0%} of {_size(self._size)}, {rate:.0f} MB/s")

    def close(self, manifest: Manifest) -> None:
        seconds = max(self._clock() - self._start, 1e-9)
        rate = manifest.source_bytes / 1e6 / seconds
        self._report(
            f"{self._path}: {_size(manifest.source_bytes)} in {seconds:.1f} s ({rate:.0f} MB/s),"
            f" {manifest.documents:,} documents -> {self._binary}"
        )


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 10_000 else f"{count / 1e6:,.1f} MB"


def _build_all(
    reasons: Mapping[Path, str], tokenizer: str, processes: int | None, report: Report
) -> dict[Path, Manifest]:
    """Tokenize the text files: in worker processes if there are several and they are large."""
    if not reasons:  # another process has built them all meanwhile
        return {}
    for text_file, reason in reasons.items():
        if reason:
            binary = bin_path(text_file, TOKENIZERS[tokenizer])
            report(f"{text_file}: building {binary.name} again: {reason}")
    text_files = list(reasons)
    start = partial(_Progress, report=report, clock=time.monotonic, tokenizer=TOKENIZERS[tokenizer])
    progress: dict[Path, _Progress] = {}
    wanted = min(len(text_files), processes or _cores())
    total = sum(text_file.stat().st_size for text_file in text_files)
    built: dict[Path, Manifest] = {}
    # `processes` that the user gave is taken at its word, however small the files are.
    if wanted == 1 or (processes is None and total < _PARALLEL_BYTES):
        for text_file in text_files:
            progress[text_file] = start(text_file)
            built[text_file] = build(text_file, progress[text_file], TOKENIZERS[tokenizer])
            progress[text_file].close(built[text_file])
        return built
    for text_file, event in _run_workers(text_files, tokenizer, wanted):
        if event is None:
            progress[text_file] = start(text_file)
        elif "done" in event:
            progress[text_file](event["done"])
        elif "manifest" in event:
            built[text_file] = Manifest(**event["manifest"])
            progress[text_file].close(built[text_file])
        else:
            raise ValueError(event["error"])
    return built


def _cores() -> int:
    # Those that this process may use: in a SLURM job often fewer than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_workers(
    text_files: Sequence[Path], tokenizer: str, count: int
) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Tokenize text files in `count` processes; yield their events, None when one starts."""
    # `pop` takes the largest first, so that no large one is left over for the end.
    waiting = sorted(text_files, key=lambda text_file: text_file.stat().st_size)
    events: queue.SimpleQueue[tuple[Path, dict[str, Any] | None]] = queue.SimpleQueue()
    running: dict[Path, ModuleProcess] = {}
    finished: set[Path] = set()

    def listen(text_file: Path, worker: ModuleProcess) -> None:
        for event in worker.events():
            events.put((text_file, event))
        events.put((text_file, None))

    with contextlib.ExitStack() as stopping:
        while waiting or running:
            while waiting and len(running) < count:
                text_file = waiting.pop()
                worker = ModuleProcess("spectral_dist.data.build", [str(text_file), tokenizer])
                running[text_file] = stopping.enter_context(worker)
                threading.Thread(target=listen, args=(text_file, worker), daemon=True).start()
                yield text_file, None
            text_file, event = events.get()
            if event is not None:
                finished |= {text_file} if "manifest" in event else set()
                yield text_file, event
                continue
            # A worker that was killed (out of memory, say) sends no error of its own.
            ending = running.pop(text_file).ending()
            if text_file not in finished:
                raise ValueError(f"data_paths: {text_file}: its worker process {ending}")


# ---- opening and splitting


def _open(name: str, path: Path, manifest: Manifest, tokenizer: Tokenizer) -> TokenFile:
    """Memory-map a .bin whose manifest has been checked; nothing is split yet."""
    binary, n = bin_path(path, tokenizer), manifest.tokens
    tokens = np.memmap(binary, dtype=tokenizer.dtype, mode="r", shape=(n,))
    return TokenFile(name, binary, tokens, manifest.documents, manifest.source_sha256, n, tokenizer)


def _split(
    file: TokenFile, path: Path, validation_fraction: float, min_tokens: int, report: Report
) -> TokenFile:
    """Split a dataset into training and held-out part."""
    n = len(file.tokens)
    if n < 2 * min_tokens:
        raise ValueError(
            f"data_paths: {path}: too short: {n:,} tokens, and training and validation need"
            f" {min_tokens:,} each (seq_len + 1); give more text or a smaller seq_len"
        )
    split, remark = split_point(file.tokens, validation_fraction, min_tokens, file.tokenizer)
    if remark:
        report(f"{path}: {remark}")
    # In few long documents the nearest boundary may be far from the wanted share.
    share = (n - split) / n
    if not validation_fraction / 2 <= share <= validation_fraction * 2:
        report(
            f"{path}: {share:.2%} of it is held out, not {validation_fraction:.2%}: the nearest"
            f" split that leaves {min_tokens:,} tokens on each side"
        )
    return dataclasses.replace(file, split=split)
