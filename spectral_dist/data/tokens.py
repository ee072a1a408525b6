"""Datasets: from the files that a user names to memory-mapped tokens, train and validation.

Owns the order of that: which files there are (sources.py), which must be tokenized (build.py, many
at a time in build_all.py), what is to be said of them (remarks.py), and where the held-out part
begins (split.py). Knows nothing of batches and imports no JAX. Read `prepare`.
"""

import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spectral_dist.data.build import bin_state, build_lock
from spectral_dist.data.build_all import build_all
from spectral_dist.data.formats import SAMPLE_BYTES, Format, head_of
from spectral_dist.data.manifest import Manifest, read_manifest
from spectral_dist.data.remarks import remark_all
from spectral_dist.data.remote import cache_folder, read_head
from spectral_dist.data.shards import Shard, Tokens, allow_open_files
from spectral_dist.data.sources import Source, find_sources
from spectral_dist.data.split import split_point
from spectral_dist.data.tokenizers import BYTES, Tokenizer, open_tokenizer
from spectral_dist.data.trained import sketch
from spectral_dist.settings.datasets import DatasetConfig, name_datasets

Report = Callable[[str], None]
_REQUESTS = 16  # to a store at a time


@dataclass(frozen=True)
class TokenFile:
    """One dataset: its tokens, and the split into training and held-out part.

    Attributes:
      name: of the dataset, unique in a run.
      path: the .bin, or the first of several.
      tokens: [n] of the tokenizer's dtype, memory-mapped.
      documents: number of documents, each with its end-of-document token.
      sha256: of what it was made from, in hexadecimal.
      split: index of the first held-out token.
      tokenizer: what made the tokens.
    """

    name: str
    path: Path
    tokens: Tokens
    documents: int
    sha256: str
    split: int
    tokenizer: Tokenizer = BYTES

    @cached_property
    def sketch(self) -> dict[str, Any]:
        """What `trained.recognise` knows the trained part by; made once."""
        return sketch(self.tokens, self.split, self.tokenizer)

    @property
    def train(self) -> Tokens:
        """The tokens to train on: [split]."""
        return self.tokens.part(0, self.split)

    @property
    def validation(self) -> Tokens:
        """The held-out tokens: [n - split]."""
        return self.tokens.part(self.split, len(self.tokens))


def prepare(
    datasets: Sequence[DatasetConfig],
    *,
    validation_fraction: float,
    min_tokens: int,
    tokenizer: str = "bytes",
    processes: int | None = None,
    allow_replaced: bool = False,
    cache: str = "auto",
    report: Report = print,
) -> list[TokenFile]:
    """Return the datasets of a run; tokenize each file whose .bin is not up to date.

    Args:
      datasets: each with its files: of any format (`formats.READERS`); or .bin files with their
        manifests, which need no text beside them.
      validation_fraction: share of each dataset's tokens to hold out: 0 for none, 1 for all.
      min_tokens: tokens that each part of each dataset must hold, if it has that part; at least 1.
      tokenizer: "bytes", or the path of a tokenizer.json.
      processes: largest number of files tokenized at a time (default: the number of cores).
      allow_replaced: whether more than a thousandth of a text may be no UTF-8.
      cache: the folder for the tokens of texts behind a URL, or "auto" (`remote.cache_folder`).
      report: takes one line for the user at a time.

    Raises:
      ValueError: names the file and what is wrong with it, in one line.
      Ending: if the store of a URL cannot be reached.
    """
    made_by, folder = open_tokenizer(tokenizer), cache_folder(cache)
    datasets = name_datasets(datasets)
    found = [_files(dataset, made_by, report, folder) for dataset in datasets]
    found = _same_files(found, report)
    # Each once: two datasets may name the same text file.
    sources = list(dict.fromkeys(itertools.chain(*found)))
    manifests = _tokenize(sources, tokenizer, processes, report)
    remark_all({s: manifests[s] for s in sources}, allow_replaced, report)
    allow_open_files(sum(map(len, found)))
    files = [
        _open(str(dataset.name), [(s.binary(made_by), manifests[s]) for s in own], made_by)
        for dataset, own in zip(datasets, found, strict=True)
    ]
    return [
        _split(file, validation_fraction, min_tokens, report, dataset)
        for file, dataset in zip(files, datasets, strict=True)
    ]


def prepare_share(
    datasets: Sequence[DatasetConfig],
    share: tuple[int, int],
    *,
    tokenizer: str = "bytes",
    processes: int | None = None,
    cache: str = "auto",
    report: Report = print,
) -> int:
    """Tokenize one share of the files of some datasets; the other shares are others' work.

    Which files they are follows from their sorted paths alone, and each has a .bin of its own: the
    tokens do not depend on who made them, in which order, or how often it was tried.

    Args:
      datasets: all of them.
      share: which one, from 0, and how many there are.
      tokenizer: "bytes", or the path of a tokenizer.json.
      processes: largest number of files tokenized at a time (default: the number of cores).
      cache: the folder for the tokens of texts behind a URL, or "auto".
      report: takes one line for the user at a time.

    Returns:
      the number of files in the share.

    Raises:
      ValueError: names the file and what is wrong with it, in one line.
      Ending: if the store of a URL cannot be reached.
    """
    number, count = share
    made_by, folder = open_tokenizer(tokenizer), cache_folder(cache)
    # Found, but not opened: that is for those whose share they are.
    found = [find_sources(dataset, report, folder) for dataset in datasets]
    found = _same_files(found, lambda line: None)
    # By name: where the cache is may differ between those who share the work.
    own = sorted(set(itertools.chain(*found)), key=lambda s: (s.name, s.form.field))[number::count]
    filled = [source for source in own if not source.is_empty]
    _check_all(filled, made_by)
    _tokenize(filled, tokenizer, processes, report)
    return len(own)


def _files(
    dataset: DatasetConfig, tokenizer: Tokenizer, report: Report, cache: Path
) -> list[Source]:
    """Return the files of a dataset, each looked at."""
    sources = _without_empty(find_sources(dataset, report, cache), report)
    # All of them before any work: a mistake in the last path must not cost an hour first.
    _check_all(sources, tokenizer)
    return sources


def _check_all(sources: Sequence[Source], tokenizer: Tokenizer) -> None:
    """Raise ValueError if a source cannot be read as what it is said to be."""
    for source in sources:
        if source.remote is None:
            _check_readable(source, tokenizer)
    # Only those that will be read, and many at a time: each is a request or two.
    behind = [
        source
        for source in sources
        if source.remote is not None
        and bin_state(source.path, tokenizer, source.form, source.remote).manifest is None
    ]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(_check_remote, behind))


def _tokenize(
    sources: Sequence[Source], tokenizer: str, processes: int | None, report: Report
) -> dict[Source, Manifest]:
    """Tokenize the files whose .bin is not up to date; return the manifests of all."""
    made_by = open_tokenizer(tokenizer)
    texts = [source for source in sources if not source.is_binary]
    _check_outputs(texts, made_by)
    manifests, missing = _up_to_date(texts, made_by, report)
    if missing:
        _make_folders(missing)
        allow_open_files(len(missing))  # each has a lock
        # One process builds, of this run or another; the others wait, and then find the .bin up to
        # date when they look again.
        with build_lock({s.path: s.binary(made_by) for s in missing}, report):
            later, missing = _up_to_date(missing, made_by, report)
            manifests |= later | build_all(missing, tokenizer, processes, report)
    return manifests | {s: _given(s.path, made_by) for s in sources if s.is_binary}


def _make_folders(sources: Iterable[Source]) -> None:
    """Make the folders of the cache for files behind a URL."""
    for source in sources:
        if source.remote is not None:
            folder = source.path.parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"data_cache: {folder}: {error.strerror}") from error


def _without_empty(sources: list[Source], report: Report) -> list[Source]:
    """Leave out the files without a byte, if a dataset has others; say how many."""
    # Engines that write a part of a table for each worker leave such files behind.
    filled = [source for source in sources if not source.is_empty]
    if len(filled) == len(sources) or not filled:
        return sources  # a single one that is empty is named as a mistake
    first = next(s.name for s in sources if s not in filled)
    report(f"{len(sources) - len(filled):,} empty files are left out, the first is {first}")
    return filled


def _given(binary: Path, tokenizer: Tokenizer) -> Manifest:
    """Return the manifest of a .bin that the user names himself."""
    try:
        return read_manifest(binary, tokenizer)
    except ValueError as error:
        raise ValueError(
            f"data_paths: {binary}: {error}; give the text to build it again"
        ) from error


def _same_files(found: Sequence[Sequence[Source]], report: Report) -> list[list[Source]]:
    """Return the sources, with one spelling for each file; say which file comes more than once."""
    first: dict[tuple[str, Format], Source] = {}
    same = [[first.setdefault((os.path.realpath(s.path), s.form), s) for s in own] for own in found]
    times = Counter(itertools.chain(*same))
    for source in (s for s in dict.fromkeys(itertools.chain(*same)) if times[s] > 1):
        report(
            f"{source.name}: is named {times[source]} times, so its text has the share of all of"
            " them"
        )
    return same


def _check_outputs(texts: Sequence[Source], tokenizer: Tokenizer) -> None:
    """Raise ValueError if two files would become the same .bin."""
    made: dict[Path, Source] = {}
    for text in texts:
        binary = text.binary(tokenizer)
        other = made.setdefault(binary.resolve(), text)
        if other == text:
            continue
        if other.path == text.path:
            raise ValueError(
                f"datasets: {text.name} is read as {other.form.kind} and as {text.form.kind}; give"
                " it one format"
            )
        raise ValueError(
            f"data_paths: {other.name} and {text.name}: both become {binary.name}; rename one"
        )


def _up_to_date(
    texts: Iterable[Source], tokenizer: Tokenizer, report: Report
) -> tuple[dict[Source, Manifest], dict[Source, str]]:
    """Return the manifests of the .bin files that are up to date, and why the others are not."""
    manifests: dict[Source, Manifest] = {}
    missing: dict[Source, str] = {}
    for text in texts:
        state = bin_state(text.path, tokenizer, text.form, text.remote)
        if state.manifest is None:
            missing[text] = state.reason
        else:
            if state.refreshed:
                report(f"{text.name}: a new modification time, the same content; nothing to build")
            manifests[text] = state.manifest
    return manifests, missing


def _check_readable(source: Source, tokenizer: Tokenizer) -> None:
    """Raise ValueError if a path is not a file of its format that this process may read."""
    path = source.path
    try:
        # Reading a pipe or a device could block for ever.
        if path.exists() and not path.is_file():
            raise ValueError(f"data_paths: {path}: is not a regular file")
        with path.open("rb") as file:
            if not file.read(1):  # also finds out whether this user may read it
                raise ValueError(f"data_paths: {path}: is empty")
            file.seek(0)
            if not source.is_binary:
                try:
                    head = head_of(file, source.form.packing)
                    source.form.check(head)
                except ValueError as error:
                    raise ValueError(f"data_paths: {path}: {error}") from error
    except FileNotFoundError:
        built = source.binary(tokenizer)
        hint = f"; {built} is there: name that to use it" if built.is_file() else ""
        raise ValueError(f"data_paths: {path}: no such file{hint}") from None
    except OSError as error:
        raise ValueError(f"data_paths: {path}: cannot be read: {error.strerror}") from error


def _check_remote(source: Source) -> None:
    """Raise ValueError if a file behind a URL is not of its format."""
    assert source.remote is not None
    try:
        head = b"" if source.is_empty else read_head(source.remote, SAMPLE_BYTES)
        if not head:
            raise ValueError("is empty")
        # Of a packed file the beginning alone may not be unpacked: it is checked once it is here.
        if not source.form.packing:
            source.form.check(head)
    except ValueError as error:
        raise ValueError(f"data_paths: {source.name}: {error}") from error


def _open(name: str, files: Sequence[tuple[Path, Manifest]], tokenizer: Tokenizer) -> TokenFile:
    """Memory-map .bin files whose manifests have been checked; nothing is split yet."""
    # A file may hold no record: nothing of it can be mapped.
    shards = [Shard.open(binary, tokenizer.dtype) for binary, m in files if m.tokens]
    hashes = [manifest.sha256 for _, manifest in files]
    joined = hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    tokens = Tokens(shards or [np.empty(0, tokenizer.dtype)])
    return TokenFile(
        name=name,
        path=files[0][0],
        tokens=tokens,
        documents=sum(manifest.documents for _, manifest in files),
        sha256=hashes[0] if len(hashes) == 1 else joined,
        split=len(tokens),
        tokenizer=tokenizer,
    )


def _split(
    file: TokenFile,
    validation_fraction: float,
    min_tokens: int,
    report: Report,
    dataset: DatasetConfig,
) -> TokenFile:
    """Split a dataset into training and held-out part."""
    path, n = ", ".join(dataset.paths), len(file.tokens)
    if validation_fraction in (0, 1):
        if n < min_tokens:
            raise ValueError(
                f"data_paths: {path}: too short: {n:,} tokens, and {min_tokens:,} are needed"
                " (seq_len + 1); give more text or a smaller seq_len"
            )
        return dataclasses.replace(file, split=0 if validation_fraction else n)
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
