"""Token files: names, what is built when, the split, and one clear line for every mistake."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from spectral_dist.data.manifest import bin_path, manifest_path
from spectral_dist.data.tokens import TokenFile, prepare
from spectral_dist.settings import DatasetConfig


def document(number: int, size: int = 200) -> str:
    """Return a document of about `size` bytes, with its separator."""
    line = f"belge {number}: ışığı görünce şaşırdı\n"
    return line * max(1, size // len(line.encode())) + "<|endoftext|>\n"


def write(path: Path, documents: int = 100, size: int = 200) -> Path:
    path.write_text("".join(document(i, size) for i in range(documents)), encoding="utf-8")
    return path


def datasets(*paths: str) -> list[DatasetConfig]:
    """Return a dataset for each path."""
    return [DatasetConfig(paths=(path,)) for path in paths]


def run(
    *paths: Path | str, share: float = 0.1, min_tokens: int = 50, processes: int | None = 1
) -> tuple[list[TokenFile], list[str]]:
    """Prepare the paths; return the files and the reported lines."""
    lines: list[str] = []
    files = prepare(
        [DatasetConfig(paths=(str(path),)) for path in paths],
        validation_fraction=share,
        min_tokens=min_tokens,
        processes=processes,
        report=lines.append,
    )
    return files, lines


def test_a_text_is_built_once_and_split_by_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    (file,), lines = run(path)
    assert len(lines) == 1
    assert "100 documents" in lines[0]
    assert (file.name, file.path, file.documents) == ("a", tmp_path / "a.bin", 100)
    assert file.tokens.dtype == np.uint8
    assert len(file.sha256) == 64
    assert file.train[-1] == 0
    assert file.validation[-1] == 0
    assert bytes(file.validation[:]).startswith(b"belge ")
    assert abs(len(file.validation) / len(file.tokens) - 0.1) < 0.01
    assert len(file.train) + len(file.validation) == len(file.tokens)
    stamp = file.path.stat().st_mtime_ns
    (again,), lines = run(path)
    assert lines == []
    assert again.path.stat().st_mtime_ns == stamp
    assert again.split == file.split


@pytest.mark.parametrize("processes", [1, 2])
def test_several_texts_in_processes_give_the_same_files(tmp_path: Path, processes: int) -> None:
    paths = [write(tmp_path / f"{name}.txt", 50 + i) for i, name in enumerate("abc")]
    files, lines = run(*paths, processes=processes)
    assert [file.name for file in files] == ["a", "b", "c"]
    assert [file.documents for file in files] == [50, 51, 52]
    assert len(lines) == 3
    assert len(list(tmp_path.iterdir())) == 9


def test_an_error_in_a_worker_is_the_same_line_and_stops_the_others(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.txt"), tmp_path / "b.txt"
    bad.write_bytes(os.urandom(4096))
    messages = []
    for processes in (1, 2):
        with pytest.raises(ValueError, match=r"b\.txt: does not look like text") as caught:
            run(good, bad, processes=processes)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert not bin_path(bad).exists()


def test_equal_stems_get_numbers_and_one_text_twice_is_built_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    first, second = write(tmp_path / "a.txt"), write(tmp_path / "d" / "a.txt")
    third = write(tmp_path / "a_2.md")
    files, lines = run(first, second, third, first)
    assert [file.name for file in files] == ["a", "a_2", "a_2_2", "a_3"]
    assert len(lines) == 4  # and that it is named twice
    assert files[2].path == tmp_path / "a_2.md.bin"


def test_a_prepared_file_needs_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    (file,), _ = run(path)
    path.unlink()
    (alone,), lines = run(file.path)
    assert (alone.split, alone.sha256, alone.name) == (file.split, file.sha256, "a")
    assert lines == []
    with pytest.raises(ValueError, match=r"a\.txt: no such file; .*a\.bin is there"):
        run(path)
    file.path.write_bytes(bytes(len(file.tokens)))
    with pytest.raises(ValueError, match=r"a\.bin: its content does not match its manifest"):
        run(file.path)
    manifest_path(file.path).unlink()
    with pytest.raises(ValueError, match=r"a\.bin: its manifest is missing"):
        run(file.path)


def test_replaced_bytes_and_rebuilds_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    path.write_bytes(path.read_bytes() + b"bad \0 \xff\n")
    _, lines = run(path)
    assert "1 NUL bytes and 1 pieces of invalid UTF-8" in lines[1]
    assert f"line {path.read_bytes().count(bytes([10]))}" in lines[1]
    _, again = run(path)  # nothing is built, and it is said all the same
    assert again == lines[1:]
    write(path)
    _, lines = run(path)
    assert "building a.bin again: the text has changed" in lines[0]
    os.utime(path, ns=(1, 1))
    _, lines = run(path)
    assert len(lines) == 1
    assert "same content" in lines[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder without data files"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\x7fELF" + bytes(5000)), "does not look like text"),
        (lambda path: path.write_bytes(b"short\n"), "too short: 7 tokens"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
    ],
)
def test_bad_files_are_one_line_that_names_them(tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "source.txt"
    make(path)
    with pytest.raises(ValueError, match=r"^data_paths: ") as caught:
        run(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_and_a_read_only_folder(tmp_path: Path) -> None:
    """On real file systems, where this process may mount them."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a file system is not allowed here")
    try:
        path = write(small / "a.txt", documents=200)
        with pytest.raises(ValueError, match="no space left") as caught:
            run(path)
        assert str(path) in str(caught.value)
        assert [entry.name for entry in small.iterdir()] == ["a.txt"]
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(ValueError, match=r"a\.txt: cannot build a\.bin: Read-only"):
            run(path)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_each_part_must_hold_a_window(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"line\n" * 20)
    (file,), _ = run(path, min_tokens=50)
    assert (len(file.train), len(file.validation)) == (50, 51)
    with pytest.raises(ValueError, match=r"a\.txt: too short: 101 tokens.* 51 each"):
        run(path, min_tokens=51)


def test_a_share_that_cannot_be_met_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", documents=2, size=1000)
    (file,), lines = run(path, share=0.01)
    assert file.validation[:].tobytes().count(0) == 1
    assert "is held out, not 1.00%" in lines[-1]


def test_one_file_under_two_names_is_built_once_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "x.txt"
    text.write_text("bir iki uc\n<|endoftext|>\n" * 200, encoding="utf-8")
    (tmp_path / "link.txt").symlink_to(text)
    said: list[str] = []
    paths = ["x.txt", str(text), "link.txt"]
    files = prepare(datasets(*paths), validation_fraction=0.1, min_tokens=10, report=said.append)
    assert len(files) == 3
    assert len({file.path.resolve() for file in files}) == 1
    assert "x.txt: is named 3 times, so its text has the share of all of them" in said
    assert not any("waiting" in line for line in said)


def test_two_texts_that_would_become_one_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("foo", "foo.txt"):
        (tmp_path / name).write_text("bir iki uc\n" * 200, encoding="utf-8")
    words = r"^data_paths: foo\.txt and foo: both become foo\.bin; rename one$"
    with pytest.raises(ValueError, match=words):
        prepare(datasets("foo.txt", "foo"), validation_fraction=0.1, min_tokens=10)
    assert not (tmp_path / "foo.bin").exists()


def test_a_home_folder_may_be_written_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("bir iki uc\n" * 200, encoding="utf-8")
    (file,) = prepare(datasets("~/a.txt"), validation_fraction=0.1, min_tokens=10)
    assert file.path == tmp_path / "a.bin"
    with pytest.raises(ValueError, match=r"^data_paths: ~nobody-here/a\.txt: no such file"):
        prepare(datasets("~nobody-here/a.txt"), validation_fraction=0.1, min_tokens=10)


def test_parts_without_text_are_left_out(tmp_path: Path) -> None:
    """parts_without text: of a dataset of many files, some may hold no byte or no record."""
    table = pa.table({"text": ["bir iki üç\n" * 20] * 9})
    parquet.write_table(table, tmp_path / "part-0.parquet")
    parquet.write_table(table.slice(0, 0), tmp_path / "part-1.parquet")
    (tmp_path / "part-2.jsonl").touch()
    (tmp_path / "part-3.jsonl").write_text('{"text": null}\n')
    (file,), lines = run(tmp_path)
    assert file.documents == 9
    assert len(file.tokens) == 9 * (len("bir iki üç\n".encode()) * 20 + 1)
    assert any("1 empty files are left out, the first is " in line for line in lines)
    assert any("1 records have no text (null)" in line for line in lines)
    with pytest.raises(ValueError, match="too short: 0 tokens"):
        run(tmp_path / "part-1.parquet")
    with pytest.raises(ValueError, match=r"part-2\.jsonl: is empty"):
        run(tmp_path / "part-2.jsonl")
