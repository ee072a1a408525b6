"""Tokenizing many files at a time, in worker processes, with progress.

Owns how many processes there are, and what is told of their work. build.py tokenizes one file.
Imports no JAX. Read `build_all`.
"""

import contextlib
import dataclasses
import heapq
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from spectral_dist.command_line import Ending
from spectral_dist.data.build import build
from spectral_dist.data.manifest import Manifest
from spectral_dist.data.sources import Source
from spectral_dist.data.tokenizers import open_tokenizer
from spectral_dist.subprocesses import ModuleProcess

# Below this many bytes in all (0.1 s of work), starting processes costs more than it saves.
_PARALLEL_BYTES = 1 << 25
_REPORT_SECONDS = 2.0
_TOLD_FILES = 8  # of more files at a time only the sum is told
_WORKER = "spectral_dist.data.build"
# Of files that a worker builds in its life: its start takes half a second.
_BATCH_BYTES = 1 << 28


def build_all(
    reasons: Mapping[Source, str],
    tokenizer: str,
    processes: int | None,
    report: Callable[[str], None],
) -> dict[Source, Manifest]:
    """Tokenize files: in worker processes if there are several and they are large.

    Args:
      reasons: the files, and why each is built again; "" for the first time.
      tokenizer: "bytes", or the path of a tokenizer.json.
      processes: how many at a time (default: the number of cores).
      report: takes one line at a time.

    Raises:
      ValueError: names a file and what is wrong with it.
      Ending: if the store of a URL cannot be reached.
    """
    if not reasons:  # another process has built them all meanwhile
        return {}
    sources, made_by = list(reasons), open_tokenizer(tokenizer)
    for source, reason in reasons.items():
        if reason:
            report(f"{source.name}: building {source.binary(made_by).name} again: {reason}")
    progress = _Progress(sources, tokenizer, report, time.monotonic)
    wanted = min(len(sources), processes or _cores())
    built: dict[Source, Manifest] = {}
    # `processes` that the user gave is taken at its word, however small the files are.
    if wanted == 1 or (processes is None and progress.total < _PARALLEL_BYTES):
        for source in sources:
            progress.begin(source)
            told = lambda done, s=source: progress(s, done)  # noqa: E731
            manifest = build(source.path, told, made_by, source.form, source.remote)
            built[source] = manifest
            progress.end(source, manifest)
    else:
        for source, event in _run_workers(sources, tokenizer, wanted):
            if "begun" in event:
                progress.begin(source)
            elif "done" in event:
                progress(source, event["done"])
            elif "manifest" in event:
                built[source] = Manifest(**event["manifest"])
                progress.end(source, built[source])
            else:
                code = event.get("code")
                raise Ending(event["error"], code) if code else ValueError(event["error"])
    progress.close()
    return built


class _Progress:
    """Reports the progress of tokenizing files, at most one line every two seconds for each.

    Of many files it tells the sum.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: str,
        report: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._sizes = {source: source.size for source in sources}
        self.total = sum(self._sizes.values())
        self._each = len(sources) <= _TOLD_FILES
        self._tokenizer, self._report, self._clock = open_tokenizer(tokenizer), report, clock
        self._done = dict.fromkeys(sources, 0)
        self._documents = 0
        now = clock()
        self._begun, self._reported = dict.fromkeys(sources, now), dict.fromkeys(sources, now)
        self._start = self._told = now

    def begin(self, source: Source) -> None:
        """Start the clock of a file."""
        self._begun[source] = self._reported[source] = self._clock()

    def __call__(self, source: Source, done: int) -> None:
        """Note how many bytes of a file are done."""
        self._done[source] = done
        now = self._clock()
        if self._each and now - self._reported[source] >= _REPORT_SECONDS:
            self._reported[source] = now
            self._tell(source.name, done, self._sizes[source], now - self._begun[source])
        if not self._each and now - self._told >= _REPORT_SECONDS:
            self._told = now
            what = f"{len(self._sizes):,} files"
            self._tell(what, sum(self._done.values()), self.total, now - self._start)

    def _tell(self, what: str, done: int, size: int, seconds: float) -> None:
        share = done / max(size, done, 1)
        rate = done / 1e6 / max(seconds, 1e-9)
        left = f", {max(size - done, 0) / 1e6 / rate:.0f} s left" if rate and seconds > 10 else ""
        self._report(f"{what}: {share:.0%} of {_size(size)}, {rate:.0f} MB/s{left}")

    def end(self, source: Source, manifest: Manifest) -> None:
        """Note that a file is done."""
        self._done[source] = manifest.source_bytes
        self._documents += manifest.documents
        if self._each:
            where = f" -> {source.binary(self._tokenizer)}"
            begun, done = self._begun[source], manifest.source_bytes
            self._finish(source.name, done, begun, manifest.documents, where)

    def close(self) -> None:
        """Tell the sum of many files."""
        if not self._each:
            what, done = f"{len(self._sizes):,} files", sum(self._done.values())
            self._finish(what, done, self._start, self._documents)

    def _finish(self, what: str, done: int, begun: float, documents: int, where: str = "") -> None:
        seconds = max(self._clock() - begun, 1e-9)
        self._report(
            f"{what}: {_size(done)} in {seconds:.1f} s ({done / 1e6 / seconds:.0f} MB/s),"
            f" {documents:,} documents{where}"
        )


def _size(count: int) -> str:
    return f"{count:,} bytes" if count < 10_000 else f"{count / 1e6:,.1f} MB"


def _cores() -> int:
    # Those that this process may use: in a SLURM job often fewer than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _batches(sources: Sequence[Source], count: int) -> list[list[Source]]:
    """Divide files among at least `count` batches of like sizes, one for each worker's life."""
    sizes = {source: source.size for source in sources}
    wanted = max(count, sum(sizes.values()) // _BATCH_BYTES)
    batches: list[list[Source]] = [[] for _ in range(min(wanted, len(sources)))]
    loads = [(0, number) for number in range(len(batches))]
    for source in sorted(sources, key=sizes.__getitem__, reverse=True):
        load, number = heapq.heappop(loads)
        batches[number].append(source)
        heapq.heappush(loads, (load + sizes[source], number))
    return batches


def _run_workers(
    sources: Sequence[Source], tokenizer: str, count: int
) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Tokenize files in `count` processes at a time; yield their events."""
    waiting = _batches(sources, count)
    events: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
    batches, running = list(waiting), dict[int, ModuleProcess]()
    finished: set[Source] = set()

    def listen(number: int, worker: ModuleProcess) -> None:
        for event in worker.events():
            events.put((number, event))
        events.put((number, None))

    with contextlib.ExitStack() as stopping:
        while waiting or running:
            while waiting and len(running) < count:
                number = len(batches) - len(waiting)
                files = [
                    (
                        str(s.path),
                        dataclasses.astuple(s.form),
                        dataclasses.astuple(s.remote) if s.remote else None,
                    )
                    for s in waiting.pop(0)
                ]
                worker = ModuleProcess(_WORKER, request={"tokenizer": tokenizer, "files": files})
                running[number] = stopping.enter_context(worker)
                threading.Thread(target=listen, args=(number, worker), daemon=True).start()
            number, event = events.get()
            if event is not None:
                source = batches[number][event["file"]]
                finished |= {source} if "manifest" in event else set()
                yield source, event
                continue
            # A worker that was killed (out of memory, say) sends no error of its own.
            ending = running.pop(number).ending()
            for source in batches[number]:
                if source not in finished:
                    raise ValueError(f"data_paths: {source.name}: its worker process {ending}")
