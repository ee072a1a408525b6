"""Results by content: found again, told apart, and never trusted when damaged."""

from pathlib import Path

import pytest

from spectral_dist.planning.search import cache as caching
from spectral_dist.planning.search.cache import Cache, default_cache, package_hash

QUESTION = {"config": {"hidden_dim": 8}, "gpu": "l4"}


def test_an_answer_is_found_by_its_question(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "folder")
    assert cache.read(QUESTION) is None
    cache.write(QUESTION, {"peak": 3, "text": "x" * 10_000})
    assert Cache(cache.folder).read(dict(reversed(QUESTION.items()))) == {
        "peak": 3,
        "text": "x" * 10_000,
    }
    assert cache.read(QUESTION | {"gpu": "h100"}) is None
    (file,) = cache.folder.iterdir()
    assert file.name.endswith(".json.gz")
    assert file.stat().st_size < 1000


def test_another_package_has_other_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    cache.write(QUESTION, {"peak": 3})
    monkeypatch.setattr(caching, "package_hash", lambda: "another")
    assert cache.read(QUESTION) is None


def test_the_package_hash_follows_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "PACKAGE", tmp_path)
    seen = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.txtpb", "2"), ("notes.md", "3")):
        (tmp_path / name).write_text(text)
        package_hash.cache_clear()
        seen.add(package_hash())
    package_hash.cache_clear()
    assert len(seen) == 3, "notes are no source"


@pytest.mark.parametrize("damage", ["empty", "torn", "flipped", "text", "list"])
def test_a_damaged_file_is_no_answer_and_is_written_anew(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    cache.write(QUESTION, {"peak": 3, "values": list(range(100))})
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    by_kind = {
        "empty": b"",
        "torn": file.read_bytes()[:-9],
        "flipped": bytes(content),
        "text": b"no gzip",
        "list": __import__("gzip").compress(b"[1]"),
    }
    file.write_bytes(by_kind[damage])
    assert cache.read(QUESTION) is None
    cache.write(QUESTION, {"peak": 4})
    assert cache.read(QUESTION) == {"peak": 4}
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = Cache(tmp_path / "file")
    cache.write(QUESTION, {"peak": 3})
    assert cache.read(QUESTION) is None


def test_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache().folder == tmp_path / "spectral_dist"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache().folder == tmp_path / "home" / ".cache" / "spectral_dist"
