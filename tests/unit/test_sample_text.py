"""The sample files: whole, repeatable, readable, and long enough for extrapolation."""

import os
import sysconfig
from pathlib import Path
from random import Random

import pytest

from spectral_dist.sample_text import build as sample
from spectral_dist.sample_text.build import SEPARATOR, build_sample, library_files
from spectral_dist.sample_text.turkish_documents import turkish_document
from spectral_dist.sample_text.turkish_lexicon import lexicon, roots

SIZE = 200_000


def _silent(_: str) -> None:
    """Take a progress line and forget it."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Build one sample for the tests that only read."""
    return build_sample(
        tmp_path_factory.mktemp("sample"), seed=3, bytes_per_source=SIZE, report=_silent
    )


def test_the_four_files_in_order_and_of_the_size_asked(built: list[Path]) -> None:
    """Each source is there, a little over the size asked."""
    assert [path.name for path in built] == ["turkish.txt", "code.txt", "english.txt", "math.txt"]
    for path in built:
        assert SIZE - 100 <= path.stat().st_size < SIZE + 60_000, path
    assert sorted(p.name for p in built[0].parent.iterdir()) == sorted(
        [*(p.name for p in built), "sample.json"]
    )


def test_the_text_is_utf8_without_nul_and_a_third_of_it_long(built: list[Path]) -> None:
    """Strict UTF-8, and at least a third of the documents over 6 kB."""
    for path in built:
        text = path.read_bytes().decode("utf-8", errors="strict")
        assert "\0" not in text
        documents = text.split(f"{SEPARATOR}\n")
        long = [d for d in documents if len(d.encode()) > 6000]
        assert len(documents) >= 10
        assert max(map(len, documents)) < 26_000
        assert len(long) * 3 >= len(documents), path.name
        assert all(document.strip() for document in documents)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two builds agree; another seed differs."""
    a, b, c = (
        build_sample(tmp_path / name, seed=seed, bytes_per_source=30_000, report=_silent)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for x, y, z in zip(a, b, c, strict=True):
        assert x.read_bytes() == y.read_bytes() != z.read_bytes()


def test_a_complete_sample_is_left_alone_and_a_damaged_one_rebuilt(tmp_path: Path) -> None:
    """The second call writes nothing; a lost, cut or otherwise made file is made again."""
    lines: list[str] = []

    def build(seed: int = 0) -> list[Path]:
        lines.clear()
        return build_sample(tmp_path, seed=seed, bytes_per_source=20_000, report=lines.append)

    paths = build()
    assert len(lines) == 4
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert build() == paths
    assert not lines
    assert [path.stat().st_mtime_ns for path in paths] == stamps
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:100])
    build()
    assert paths[0].read_bytes() == whole
    paths[3].unlink()
    build()
    assert paths[3].exists()
    (tmp_path / "sample.json").write_text("not json")
    build()
    assert len(lines) == 4
    build(seed=1)
    assert paths[0].read_bytes() != whole


def test_an_interrupted_build_is_not_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure half way leaves no partial file, and the next call finishes."""
    rename = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == "english.txt":
            raise OSError(28, "No space left on device", str(target))
        rename(source, target)

    folder = tmp_path / "new"
    build_sample(tmp_path, bytes_per_source=20_000, report=_silent)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"english\.txt"):
        build_sample(folder, bytes_per_source=20_000, report=_silent)
    assert sorted(p.name for p in folder.iterdir()) == ["code.txt", "turkish.txt"]
    # A rebuild that fails half way leaves no record that speaks for the mixture.
    with pytest.raises(OSError, match=r"english\.txt"):
        build_sample(tmp_path, seed=5, bytes_per_source=20_000, report=_silent)
    assert not (tmp_path / "sample.json").exists()
    monkeypatch.undo()
    assert all(p.exists() for p in build_sample(tmp_path, bytes_per_source=20_000, report=_silent))


def test_a_setting_out_of_range_is_named(tmp_path: Path) -> None:
    """The message names the setting and its value."""
    with pytest.raises(ValueError, match="seed: -1 must be"):
        build_sample(tmp_path, seed=-1, report=_silent)
    with pytest.raises(ValueError, match="bytes_per_source: 0 must be"):
        build_sample(tmp_path, bytes_per_source=0, report=_silent)


def test_files_that_are_not_text_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latin-1, NUL and test folders are left out; a library without sources is an error."""
    library = tmp_path / "lib"
    (library / "test").mkdir(parents=True)
    words = "\n".join(f"def function_{i}():\n    return {i}\n" for i in range(300))
    (library / "good.py").write_text(f'"""{"Long text about good things. " * 9}"""\n{words}')
    (library / "latin.py").write_bytes(b"# caf\xe9\n" + words.encode())
    (library / "nul.py").write_bytes(b"\0" + words.encode())
    (library / "test" / "test_good.py").write_text(words)
    (library / "folder.py").mkdir()
    names = [path.name for path in library_files(library)]
    assert names == ["good.py", "latin.py", "nul.py"]
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(library))
    paths = build_sample(tmp_path / "out", bytes_per_source=100_000, report=_silent)
    assert b"\0" not in paths[1].read_bytes()
    assert paths[1].read_text().startswith('"""Long text about good things.')
    for path in library.glob("*.py"):
        if path.is_file():
            path.unlink()
    with pytest.raises(ValueError, match="no Python sources with text for code in"):
        build_sample(tmp_path / "other", bytes_per_source=9_000, report=_silent)


def test_documentation_strings_are_told_from_other_strings() -> None:
    """Quotes in comments and plain strings open nothing, and assigned text is not documentation."""
    long = "words and more words " * 5
    code = (
        f'x = "\\"" # """\ny = """{"z" * 90}"""\ndef f():\n    r"""{long}"""\n    return \'"""\'\n'
    )
    assert sample._documentation(code) == long.strip()


def test_the_lexicon_is_large() -> None:
    """At least 400 roots, of several parts of speech."""
    parts = {part for part, _ in lexicon()}
    assert len(lexicon()) >= 400
    assert parts == {"noun", "name", "adjective", "verb", "other"}
    with pytest.raises(KeyError):
        roots("no such group")


def test_turkish_documents_vary_and_repeat_by_seed() -> None:
    """Documents are of the length asked, well formed, and full of different words."""
    words: set[str] = set()
    for seed in range(60):
        text = turkish_document(Random(seed), 4000)
        assert text == turkish_document(Random(seed), 4000)
        assert 4000 <= len(text) < 7000
        assert not any(wrong in text for wrong in ("  ", "{", "..", " .", ",,"))
        for line in text.splitlines():
            assert not line or line[0].isupper() or line[0].isdigit() or line[0] == "“", line
        words.update(text.split())
    assert len(words) > 4000
