"""Which files the paths of a dataset stand for, and in which order."""

import os
from pathlib import Path

import pytest

from spectral_dist.data.formats import Format
from spectral_dist.data.sources import Source, find_sources
from spectral_dist.settings import DatasetConfig


def found(*paths: str, **others: str) -> tuple[list[Source], list[str]]:
    lines: list[str] = []
    dataset = DatasetConfig(name="d", paths=paths, **others)
    return find_sources(dataset, lines.append, Path("cache")), lines


def names(*paths: str) -> list[str]:
    return [str(source.path) for source in found(*paths)[0]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files = (
        *("data/b.txt", "data/a.jsonl.gz", "data/sub/c.parquet", "data/a.bin", "data/a.bin.json"),
        *("data/.hidden.txt", "data/.git/x.txt", "data/README.md", "data/x.csv", "other/1.txt"),
    )
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")
    return tmp_path


def test_a_folder_is_its_data_files_sorted(here: Path) -> None:
    sources, lines = found("data")
    assert [str(s.path) for s in sources] == ["data/a.jsonl.gz", "data/b.txt", "data/sub/c.parquet"]
    assert [s.form for s in sources] == [Format("jsonl", "gzip"), Format(), Format("parquet")]
    assert lines == ["data: 2 files are no data and are left out (README.md, x.csv)"]
    # What is there already is no other dataset tomorrow, however the system lists a folder.
    assert names("data/") == [str(s.path) for s in sources]


def test_patterns_are_sorted_and_none_of_ours_matches() -> None:
    assert names("data/*") == ["data/README.md", "data/a.jsonl.gz", "data/b.txt", "data/x.csv"]
    assert names("**/*.txt") == ["data/b.txt", "other/1.txt"]
    assert names("data/[ab].txt", "other/?.txt") == ["data/b.txt", "other/1.txt"]
    assert names("data/*.bin") == ["data/a.bin"]
    with pytest.raises(ValueError, match=r"^data_paths: none/\*\.txt: no file matches$"):
        found("none/*.txt")


def test_paths_keep_their_order_and_a_file_is_read_once(here: Path) -> None:
    (here / "link.txt").symlink_to(here / "other/1.txt")
    sources, lines = found("other/1.txt", "data/b.txt", "link.txt", "data/b.*")
    assert [str(s.path) for s in sources] == ["other/1.txt", "data/b.txt"]
    assert lines == ["d: 2 files are named twice, and are read once"]


def test_a_file_that_is_there_packed_too_is_warned_of(here: Path) -> None:
    (here / "other" / "1.txt.gz").write_text("x")
    sources, lines = found("other")
    assert [str(s.path) for s in sources] == ["other/1.txt", "other/1.txt.gz"]
    assert lines == [
        "warning: d: 1 files are there packed and unpacked, such as other/1.txt.gz, and both are"
        " read"
    ]


def test_a_file_may_have_the_name_of_a_pattern(here: Path) -> None:
    (here / "a[1].txt").write_text("x")
    assert names("a[1].txt") == ["a[1].txt"]
    os.mkdir(here / "b*")
    (here / "b*" / "c.txt").write_text("x")
    assert names("b*") == ["b*/c.txt"]


def test_a_folder_of_prepared_files_or_of_a_hugging_face_dataset(here: Path) -> None:
    folder = here / "prepared"
    folder.mkdir()
    for name in ("b.bin", "b.bin.json", "a.bin", "a.bin.json"):
        (folder / name).write_text("x")
    assert names("prepared") == ["prepared/a.bin", "prepared/b.bin"]
    (folder / "data-00000-of-00001.arrow").write_text("x")
    (folder / "state.json").write_text("x")
    sources, lines = found("prepared")
    assert [str(s.path) for s in sources] == ["prepared/data-00000-of-00001.arrow"]
    assert lines == ["prepared: 1 files are no data and are left out (state.json)"]
    for path in folder.iterdir():
        path.unlink()
    (folder / "records.json").write_text("x")
    assert names("prepared") == ["prepared/records.json"]


def test_links_to_folders_are_followed_once(here: Path) -> None:
    (here / "disk").mkdir()
    (here / "disk" / "z.txt").write_text("x")
    (here / "other" / "linked").symlink_to(here / "disk")
    (here / "disk" / "back").symlink_to(here / "other")
    assert names("other") == ["other/1.txt", "other/linked/z.txt"]


def test_the_settings_format_and_field() -> None:
    sources, _ = found("data/x.csv", format="jsonl", text_field="body")
    assert sources == [Source(Path("data/x.csv"), Format("jsonl", "", "body"))]
    assert sources[0].form.given
    sources, _ = found("data/b.txt", text_field="body")  # plain text has no fields
    assert sources[0].form == Format()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a\0b", "a path holds no NUL"),
        ("x.parquet.gz", "is packed by gzip: unpack it; parquet is packed inside already"),
        ("empty", "is a folder without data files; their names end in .txt, .jsonl"),
    ],
)
def test_what_stands_for_no_file_is_refused(here: Path, path: str, words: str) -> None:
    (here / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^data_paths: ") as caught:
        found(path)
    assert words in str(caught.value)
