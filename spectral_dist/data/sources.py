"""The files of a dataset: paths, URLs, folders and patterns that a user names, in one fixed order.

Owns what stands for many files, and which files of a folder count. Opens none of them, and imports
no JAX. Read `find_sources`.
"""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from spectral_dist.data.formats import ENDINGS, PACKINGS, TXT, Format, find_format
from spectral_dist.data.manifest import bin_path
from spectral_dist.data.remote import Remote, find_remote, is_url, path_of, place_of, shown
from spectral_dist.data.tokenizers import Tokenizer
from spectral_dist.settings.datasets import DatasetConfig

_SHOWN = 3  # names in a message
_P = TypeVar("_P", bound=PurePath)


@dataclass(frozen=True)
class Source:
    """One file of a dataset.

    Attributes:
      path: of the file; a .bin is taken as it is. Of one behind a URL: its place in the cache,
        where its tokens are and it is not.
      form: its format.
      remote: the file behind a URL, or None for one on a disk.
    """

    path: Path
    form: Format = TXT
    remote: Remote | None = None

    @property
    def name(self) -> str:
        """Its path or its URL, for the user."""
        return str(self.path) if self.remote is None else self.remote.url

    @property
    def size(self) -> int:
        """In bytes; 0 where a web server does not say."""
        return self.path.stat().st_size if self.remote is None else self.remote.size or 0

    @property
    def is_empty(self) -> bool:
        """Whether it is known to hold no byte."""
        if self.remote is not None:
            return self.remote.size == 0
        return self.path.is_file() and self.size == 0

    @property
    def is_binary(self) -> bool:
        """Whether it holds tokens already."""
        return self.path.suffix == ".bin"

    def binary(self, tokenizer: Tokenizer) -> Path:
        """Return the path of its tokens."""
        return bin_path(self.path, tokenizer, self.form)


def find_sources(
    dataset: DatasetConfig, report: Callable[[str], None], cache: Path
) -> list[Source]:
    """Return the files of a dataset, in the order of its paths, sorted where one names many.

    Args:
      dataset: its paths are files, folders (with all that is in them), patterns (* ? [ **), and
        URLs of these.
      report: takes a line about files that are left out.
      cache: the folder for the tokens of files behind a URL.

    Raises:
      ValueError: names a path that is no file and stands for none.
      Ending: if the store of a URL cannot be reached.
    """
    found: list[Path] = []
    remotes: dict[Path, Remote] = {}  # by their place in the cache
    for text in dataset.paths:
        if "\0" in text:
            raise ValueError(f"data_paths: {text!r}: a path holds no NUL")
        if is_url(text):
            try:
                behind = _behind_url(text, report)
            except ValueError as error:
                raise ValueError(f"data_paths: {shown(text)}: {error}") from error
            places = {place_of(remote.url, cache): remote for remote in behind}
            found += places
            remotes |= places
            continue
        # Not Path.expanduser, which fails where "~x" is no user's folder.
        path = Path(os.path.expanduser(text))
        if path.is_dir():
            found += _in_folder(path, report)
        elif not path.exists() and glob.has_magic(text):
            found += _matching(str(path))
        else:
            found.append(path)
    # One file may be named by two patterns: it is read once.
    first: dict[str, Path] = {}
    for path in found:
        first.setdefault(os.path.realpath(path), path)  # not `resolve`, which fails in a loop
    if (again := len(found) - len(first)) and len(dataset.paths) > 1:
        report(f"{dataset.name}: {again:,} files are named twice, and are read once")
    names = {str(path) for path in first.values()}
    twice = [
        path
        for path in first.values()
        if path.suffix.lower()[1:] in PACKINGS and str(path.with_suffix("")) in names
    ]
    if twice:
        report(
            f"warning: {dataset.name}: {len(twice):,} files are there packed and unpacked, such as"
            f" {twice[0]}, and both are read"
        )
    return [_source(path, remotes.get(path), dataset) for path in first.values()]


def _source(path: Path, remote: Remote | None, dataset: DatasetConfig) -> Source:
    if path.suffix == ".bin" and remote is None:
        if dataset.normalize != "none":
            raise ValueError(
                f"data_paths: {path}: holds tokens, whose letters normalize={dataset.normalize} can"
                " no longer compose; give the text"
            )
        return Source(path)
    name = path if remote is None else path_of(remote.url)
    try:
        if path.suffix == ".bin":
            raise ValueError(
                "tokens are read from a disk; copy them and their manifest, or give the text"
            )
        form = find_format(name, dataset.format, dataset.text_field, dataset.normalize)
    except ValueError as error:
        raise ValueError(f"data_paths: {remote.url if remote else path}: {error}") from error
    return Source(path, form, remote)


def _behind_url(url: str, report: Callable[[str], None]) -> list[Remote]:
    """Return the files that a URL stands for, sorted."""
    found, folder = find_remote(url)
    by_path = {path_of(remote.url): remote for remote in found}
    if len(by_path) < len(found):
        raise ValueError("two of its files differ by a doubled slash alone; rename one")
    if folder:
        root = path_of(url)
        seen = [path for path in by_path if not _is_hidden(path.relative_to(root))]
        paths = _data_files(url, root, sorted(seen), report)
    else:
        paths = sorted(by_path)
        if len(paths) != 1 or str(paths[0]) != str(path_of(url)):  # of a pattern
            paths = [path for path in paths if not _is_ours(path)]
    if not paths:
        raise ValueError("no file matches")
    for remote in (by_path[path] for path in paths):
        if not remote.version and remote.size is None:
            report(
                f"{remote.url}: its server does not tell whether it changes; tokens that are there"
                " already are used"
            )
    return [by_path[path] for path in paths]


def _is_hidden(path: PurePath) -> bool:
    return any(name.startswith(".") for name in path.parts)


def _matching(pattern: str) -> list[Path]:
    paths = [Path(name) for name in glob.glob(pattern, recursive=True)]
    found = [path for path in paths if path.is_file()]
    if not pattern.endswith(".bin"):
        found = [path for path in found if not _is_ours(path)]
    if not found:
        raise ValueError(f"data_paths: {pattern}: no file matches")
    return sorted(found)


def _in_folder(folder: Path, report: Callable[[str], None]) -> list[Path]:
    """Return the data files below a folder, sorted; say which files are left out."""
    try:
        return _data_files(str(folder), folder, sorted(_below(folder)), report)
    except ValueError as error:
        raise ValueError(f"data_paths: {folder}: {error}") from error


def _data_files(
    name: str, folder: _P, every: Sequence[_P], report: Callable[[str], None]
) -> list[_P]:
    """Return those files of a folder that are data; say which are left out."""
    texts = [path for path in every if _is_data(path)]
    # A .json beside others describes them: dataset_info.json, state.json, a README of a kind.
    if others := [path for path in texts if path.suffix != ".json"]:
        texts = others
    binaries = [path for path in every if path.suffix == ".bin"]
    found = texts or binaries
    if not found:
        raise ValueError(
            "is a folder without data files; their names end in"
            f" {', '.join('.' + e for e in ENDINGS)}, also packed (.{', .'.join(PACKINGS)})"
        )
    taken = set(found)
    if left := [path for path in every if path not in taken and not _is_ours(path)]:
        names = ", ".join(str(path.relative_to(folder)) for path in left[:_SHOWN])
        more = ", ..." if len(left) > _SHOWN else ""
        report(f"{name}: {len(left):,} files are no data and are left out ({names}{more})")
    return found


def _is_data(path: PurePath) -> bool:
    endings = [suffix.lower().removeprefix(".") for suffix in path.suffixes[-2:]]
    if endings and endings[-1] in PACKINGS:
        endings.pop()
    return bool(endings) and endings[-1] in ENDINGS and not path.name.endswith(".bin.json")


def _is_ours(path: PurePath) -> bool:
    """Return whether a file is what a build leaves: tokens, their manifest, a lock."""
    return path.suffix == ".bin" or path.name.endswith(".bin.json") or path.name.startswith(".")


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, hidden ones aside; links to folders are followed."""
    # Path.rglob passes over links to folders without a word, and texts often lie on another disk.
    entered: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in entered:  # a link to where we come from
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(here, name)
            if not name.startswith(".") and path.is_file():
                yield path
