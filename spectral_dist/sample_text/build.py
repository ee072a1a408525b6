"""The sample text (demo datasets) that the demo and the tests train on, made without a network.

Owns four text files: Turkish and arithmetic from this package's own generators, code and English
from the Python installation. It must not know of tokens or of training. Read `build_sample` first.
"""

import importlib
import inspect
import json
import os
import platform
import re
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

from spectral_dist.atomic_file import write_bytes, write_text
from spectral_dist.file_lock import held
from spectral_dist.sample_text.arithmetic import worksheet
from spectral_dist.sample_text.turkish_documents import turkish_document

SOURCES = ("turkish", "code", "english", "math")
SEPARATOR = "<|endoftext|>"
BYTES_PER_SOURCE = 2_000_000
_RECIPE = 1  # raise it when the same seed would write other text, so that old files are replaced
# Long files are cut at the first statement after this many characters. Otherwise the held-out part,
# the last few percent of the documents, could be a single file.
_PIECE = 12_000
_SHORT = 3_000
# Docstrings, and also comments and plain strings, so that quotes inside those open nothing. A
# pattern takes a tenth of the time of ast.parse over the whole library.
_LITERAL = re.compile(
    r"""\#[^\n]* | (?P<quote>\"{3}|'{3})(?P<body>.*?)(?<!\\)(?P=quote)"""
    r"""| "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'""",
    re.DOTALL | re.VERBOSE,
)
# Tests, tables of encodings and installed packages: no text to learn from, or not on every machine.
_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("encodings", "pydoc_data", "lib-dynload", "ensurepip"),
}


def build_sample(
    folder: Path,
    *,
    seed: int = 0,
    bytes_per_source: int = BYTES_PER_SOURCE,
    report: Callable[[str], None],
) -> list[Path]:
    """Write the four sample text files; return at once if they exist already.

    Each file appears whole or not at all. The same seed, size and Python version give the same
    bytes.

    Args:
      folder: where the files are written; made if missing.
      seed: of the random text, 0 or more.
      bytes_per_source: the size of each file, in bytes, 1 or more; the last document may run over,
        and code and English end where the Python installation has no more.
      report: takes one line of progress at a time.

    Returns:
      The paths of turkish.txt, code.txt, english.txt and math.txt, in this order. Documents are
      separated by a line `<|endoftext|>`.

    Raises:
      ValueError: if seed or bytes_per_source is out of range, or the Python installation comes
        without the sources of its standard library.
      OSError: if the folder cannot be written.
    """
    if bytes_per_source < 1:
        raise ValueError(f"bytes_per_source: {bytes_per_source} must be 1 or more")
    if seed < 0:
        raise ValueError(f"seed: {seed} must be 0 or more")
    paths = [folder / f"{source}.txt" for source in SOURCES]
    recipe = {
        "recipe": _RECIPE,
        "seed": seed,
        "bytes_per_source": bytes_per_source,
        "python": platform.python_version(),
    }
    if _is_complete(folder, paths, recipe):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    with held(
        folder / ".sample.lock",
        lambda holder: report(f"waiting for {holder}, which writes the text in {folder}"),
    ):
        if not _is_complete(folder, paths, recipe):
            _build(folder, paths, seed, recipe, bytes_per_source, report)
    return paths


def _build(
    folder: Path,
    paths: list[Path],
    seed: int,
    recipe: dict[str, object],
    bytes_per_source: int,
    report: Callable[[str], None],
) -> None:
    # sample.json is written last: an interrupted build has none, and is not taken for complete.
    (folder / "sample.json").unlink(missing_ok=True)
    sizes = {}
    for source, path in zip(SOURCES, paths, strict=True):
        start = time.perf_counter()
        rng = Random(f"{source} {seed}")
        text = _join(_documents(source, rng), bytes_per_source)
        if not text:
            library = sysconfig.get_path("stdlib")
            raise ValueError(f"sample text: no Python sources with text for {source} in {library}")
        write_bytes(path, text)
        sizes[path.name] = len(text)
        seconds = time.perf_counter() - start
        report(f"sample text: {path} ({len(text) / 1e6:.1f} MB in {seconds:.1f} s)")
    write_text(folder / "sample.json", json.dumps({**recipe, "sizes": sizes}, indent=2))


def _is_complete(folder: Path, paths: list[Path], recipe: dict[str, object]) -> bool:
    """Return whether sample.json holds this recipe and the files have the sizes it lists."""
    try:
        record = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
        sizes = {path.name: path.stat().st_size for path in paths}
    except (OSError, ValueError):
        return False
    return record == {**recipe, "sizes": sizes}


def _documents(source: str, rng: Random) -> Iterator[str]:
    """Return the documents of one text file: without end, or all of the Python installation."""
    if source in ("turkish", "math"):
        return _generated(turkish_document if source == "turkish" else worksheet, rng)
    if source == "code":
        return _code(rng)
    return _english(rng)


def _generated(write: Callable[[Random, int], str], rng: Random) -> Iterator[str]:
    """Yield documents without end, from 1 to 16 kB, half of them over 7 kB."""
    # Long ones too, because the extrapolation to long contexts needs windows inside one document.
    while True:
        low, high = rng.choice(((1_000, 3_000), (3_000, 7_000), (7_000, 11_000), (9_000, 16_000)))
        yield write(rng, rng.randint(low, high))


def _join(documents: Iterable[str], limit: int) -> bytes:
    """Join documents with separator lines, up to `limit` bytes or a little over."""
    parts: list[bytes] = []
    size = 0
    for document in documents:
        text = document.strip("\n")
        # A document that holds the separator would become two.
        if not text or SEPARATOR in text:
            continue
        parts.append(f"{text}\n".encode())
        size += len(parts[-1]) + len(SEPARATOR) + 1
        if size >= limit:
            break
    return f"{SEPARATOR}\n".encode().join(parts)


def library_files(library: Path) -> list[Path]:
    """Return the Python files under a standard library folder, without tests, sorted."""
    files: list[Path] = []
    for folder, inner, names in os.walk(library):
        # In place: os.walk then skips the others. Sorted: the order of a folder differs by machine.
        inner[:] = sorted(name for name in inner if name not in _SKIPPED_FOLDERS)
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return files


def _read(path: Path) -> str | None:
    """Return a file's text, or None if it cannot be read, is not UTF-8 or holds NUL."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text.replace("\r\n", "\n")


def _shuffled_library(rng: Random) -> Iterator[str]:
    """Yield the texts of the standard library's files in a random order."""
    files = library_files(Path(sysconfig.get_path("stdlib")))
    rng.shuffle(files)
    for path in files:
        text = _read(path)
        if text is not None:
            yield text


def _code(rng: Random) -> Iterator[str]:
    """Yield standard library modules, the long ones in pieces."""
    for text in _shuffled_library(rng):
        if len(text) >= 500:  # not the many files that are next to empty
            yield from _pieces(text, ("def ", "class ", "@"))


def _pieces(text: str, beginnings: tuple[str, ...]) -> Iterator[str]:
    """Cut a long text before lines that begin with one of `beginnings` ("" for any line)."""
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        # A decorator stays with its function.
        previous_ends = not lines or not lines[-1].startswith("@")
        # A long table has no such line; it is cut anywhere.
        if (size > _PIECE and line.startswith(beginnings) and previous_ends) or size > 2 * _PIECE:
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield "".join(lines)


def _english(rng: Random) -> Iterator[str]:
    """Yield English text: the language reference of pydoc, then the docstrings of each module."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        # Some distributions leave pydoc's texts out; the docstrings remain.
        topics = {}
    names = sorted(topics)
    rng.shuffle(names)
    yield from _gathered(topics[name] for name in names)
    yield from _gathered(_documentation(text) for text in _shuffled_library(rng))


def _gathered(texts: Iterable[str]) -> Iterator[str]:
    """Cut long texts into pieces, and join short ones to documents of 7 kB or more."""
    short: list[str] = []
    for text in texts:
        if len(text) >= _SHORT:
            yield from _pieces(text, ("",))
        elif text:
            short.append(text.strip("\n"))
        if sum(map(len, short)) >= 7_000:
            yield "\n\n".join(short)
            short = []
    if short:
        yield "\n\n".join(short)


def _documentation(code: str) -> str:
    """Return the longer docstrings of a module: strings that stand alone as statements."""
    found = []
    for match in _LITERAL.finditer(code):
        body = match["body"]
        start = code.rfind("\n", 0, match.start()) + 1
        # A docstring has at most an "r" before it on its line; most other strings have more.
        if body and len(body) >= 80 and code[start : match.start()].strip() in ("", "r"):
            found.append(inspect.cleandoc(body).strip())
    return "\n\n".join(found)
