"""Files behind a URL: which there are, what tells that one has changed, and a copy to read.

Any store that fsspec knows: s3://, gs://, hf://, https:// and others. A file is copied whole beside
the place of its tokens, read there, and the copy is removed: every reader finds a file on a disk.
Credentials are the store's own affair (its environment variables and files), never part of a URL.
Knows nothing of formats and imports no JAX. Read `find_remote`, then `fetched`.
"""

import contextlib
import errno
import glob
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

import fsspec

from spectral_dist.atomic_file import scratch
from spectral_dist.command_line import FAULT, Ending, one_line

_WEB = ("http", "https")  # servers that list no files
_WAITS = (1.0, 4.0, 16.0)  # seconds before the second, third and fourth try
_CONNECT_SECONDS, _SILENT_SECONDS = 30, 60  # of a web server, not of a whole file
# What a store says of a file that is another for another content; the first that is there counts.
_VERSIONS = (
    *("ETag", "etag", "generation", "md5Hash", "content_md5", "sha", "blob_id"),
    *("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
)
_SECRET = re.compile(r"signature|token|secret|password|credential|^sig$|key$", re.IGNORECASE)
# Raised where there are no credentials: a mistake in the environment, not a fault of the network.
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Remote:
    """A file behind a URL, as its store described it.

    Attributes:
      url: of the file.
      size: in bytes; None where a web server does not say.
      version: another text for another content, such as an ETag; "" where there is none.
    """

    url: str
    size: int | None = None
    version: str = ""


def is_url(text: str) -> bool:
    """Return whether a path of a dataset is a URL."""
    return "://" in text


def find_remote(url: str) -> tuple[list[Remote], bool]:
    """Return the files that a URL stands for, in no order, and whether it is a folder.

    Args:
      url: of a file; of a folder, or with a pattern (* ? [ **), where the store lists its files.

    Raises:
      ValueError: if there is no such file, it may not be read, or no library for it is installed.
      Ending: if the store cannot be reached.
    """
    _check(url)
    files, root = _open_store(url)
    return _reaching(url, lambda: _listed(files, root, url))


@contextlib.contextmanager
def fetched(remote: Remote, binary: Path, progress: Callable[[int], None]) -> Iterator[Path]:
    """Copy a file to a temporary one in a block, beside the place of its tokens.

    Args:
      remote: as it was found.
      binary: the path of its tokens, in an existing folder.
      progress: called with the number of bytes copied so far.

    Raises:
      OSError: if the copy cannot be written.
      ValueError: if the file is another one by now.
      Ending: if the store cannot be reached.
    """
    files, root = _open_store(remote.url)
    callback = _Copied(progress)
    with scratch(binary) as file:
        copy = Path(file.name)
        _reaching(remote.url, lambda: files.get_file(root, str(copy), callback=callback))
        after = _reaching(remote.url, lambda: _described(remote.url, files.info(root)))
        size = copy.stat().st_size
        if after != remote or (remote.size is not None and size != remote.size):
            raise ValueError("changed while it was read; start again")
        yield copy


def read_head(remote: Remote, size: int) -> bytes:
    """Return the first bytes of a file: `size`, or fewer if it is shorter.

    Raises:
      ValueError: if there is no such file, or it may not be read.
      Ending: if the store cannot be reached.
    """
    files, root = _open_store(remote.url)

    def read() -> bytes:
        with files.open(root, "rb", cache_type="none") as file:
            return file.read(size)

    return _reaching(remote.url, read)


def shown(url: str) -> str:
    """Return a URL without what may be secret in it."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    if scheme in _WEB:
        path = path.partition("?")[0]
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def place_of(url: str, cache: Path) -> Path:
    """Return the place of a file in the cache: its URL as folders and a name."""
    scheme, _, rest = url.partition("://")
    query = ""
    if scheme in _WEB:  # in a store ? and # are letters of a name
        parts = urlsplit(url)
        rest, query = parts.netloc + parts.path, parts.query
    # A key of a store may hold anything: ".." must not lead out of the cache, and no two keys may
    # have one place.
    names = [quote(name, safe=" ") for name in rest.split("/")]
    names = [f"%{name}" if name in ("", ".", "..") else name for name in names]
    if query:
        names.insert(-1, quote(query, safe=""))
    return cache.joinpath(scheme, *names)


def path_of(url: str) -> PurePosixPath:
    """Return the path in a URL, whose last name has the file's endings."""
    return PurePosixPath(urlsplit(url).path if url.startswith(_WEB) else url.partition("://")[2])


def cache_folder(setting: str) -> Path:
    """Return the folder for the tokens of files behind a URL.

    Args:
      setting: a path; or "auto" for a folder in the user's cache (XDG_CACHE_HOME, or ~/.cache).
    """
    if setting != "auto":
        return Path(os.path.expanduser(setting))
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spectral_dist" / "data"


def _check(url: str) -> None:
    """Raise ValueError for a URL that would put a secret into logs, or that is no URL."""
    try:
        parts = urlsplit(url)
        named = parts.username or parts.password
    except ValueError as error:
        raise ValueError(str(error)) from error
    if named:
        raise ValueError(
            "a name or password in a URL would be written to logs; put it into ~/.netrc, or into"
            " the store's own settings"
        )
    secrets = [name for name, _ in parse_qsl(parts.query) if _SECRET.search(name)]
    if parts.scheme in _WEB and secrets:
        raise ValueError(
            f"{secrets[0]} in a URL is a secret that would be written to logs; name the file in its"
            " store (s3://, gs://), with credentials in the environment"
        )
    if "::" in url:
        raise ValueError("holds '::'; a file inside another is not read")
    if parts.scheme in _WEB and glob.has_magic(parts.path):
        raise ValueError("a web server lists no files; name each of them")


def _open_store(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it."""
    scheme = url.partition("://")[0]
    # No listing kept from before: a file may have changed since.
    options: dict[str, Any] = {"use_listings_cache": False}
    try:
        if scheme in _WEB:
            options |= {"client_kwargs": _web_client()}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise ValueError(f"{one_line(error)}; pip install 'spectral-dist[store]'") from error
    except ValueError as error:
        raise ValueError(one_line(error)) from error


def _web_client() -> dict[str, Any]:
    """Return settings of the web client."""
    import aiohttp

    return {
        # By default a file that takes longer than five minutes is cut.
        "timeout": aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS
        ),
        "trust_env": True,  # ~/.netrc and proxies
        # A .gz must arrive as it is, whatever the server says of its encoding.
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
    }


def _listed(files: Any, root: str, url: str) -> tuple[list[Remote], bool]:
    if url.startswith(_WEB):
        return [_described(url, files.info(root))], False
    # A name may hold a bracket: a pattern is what is no file.
    if glob.has_magic(root) and not files.exists(root):
        found: Mapping[str, Any] = files.glob(root, detail=True)
        folder = False
    else:
        info = files.info(root)
        folder = info["type"] == "directory"
        found = files.find(root, detail=True) if folder else {root: info}
    return [
        _described(files.unstrip_protocol(path), info)
        for path, info in found.items()
        if info["type"] == "file"
    ], folder


def _described(url: str, info: Mapping[str, Any]) -> Remote:
    size = info.get("size")
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return Remote(url, None if size is None else int(size), version)


def _reaching(url: str, work: Callable[[], _T]) -> _T:
    """Ask a store for something, up to four times; its errors become a line for the user."""
    for wait in (*_WAITS, None):
        try:
            return work()
        except Exception as raised:  # whatever its library raises
            error = raised
            # fsspec says of every answer of a web server that there is no such file.
            if url.startswith(_WEB) and isinstance(raised.__cause__, Exception):
                error = raised.__cause__
            if isinstance(error, FileNotFoundError) or _status(error) in (404, 410):
                raise ValueError("no such file") from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            if _is_refused(error):
                raise ValueError(
                    f"may not be read: {one_line(error)}; credentials are taken from where the"
                    " store's own programs take them"
                ) from error
            if wait is None:
                raise Ending(f"data_paths: {url}: {one_line(error)}", FAULT) from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_refused(error: Exception) -> bool:
    """Return whether a store refused a request, so that asking again is of no use."""
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
        return True
    status = _status(error)
    return 400 <= status < 500 and status not in (408, 429)  # those two ask for patience


def _status(error: Exception) -> int:
    """Return the status of a web server's answer, or 0."""
    answers = (error, getattr(error, "response", None))
    found = (getattr(answer, name, 0) for answer in answers for name in ("status", "status_code"))
    return next((status for status in found if status and isinstance(status, int)), 0)


class _Copied(fsspec.callbacks.Callback):
    """Tells how many bytes of a file are copied."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        super().__init__()
        self._progress = progress

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Take the count that fsspec has reached."""
        self._progress(self.value)
