"""The manifest: any change of the folder is noticed, and described in a few words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectral_dist.training.manifest import (
    MANIFEST,
    Unreadable,
    array_types,
    compare,
    read_manifest,
    short,
    try_writing,
    verify,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two files and their manifest."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "arrays").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "empty").write_bytes(b"")
    write_manifest(tmp_path, {"description": {"lr": 0.1, "10": 1, "9": 2}, "validation": None})
    return tmp_path


def test_what_was_written_is_accepted(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest["description"] == {"lr": 0.1, "10": 1, "9": 2}
    assert manifest["files"]["d/arrays"][0] == 25_600
    verify(folder, manifest["files"])
    (folder / "_CHECKPOINT_METADATA").write_text("added by the commit")
    verify(folder, read_manifest(folder)["files"])


@pytest.mark.parametrize("place", [0, 12_800, 25_599])
def test_a_changed_byte_is_noticed(folder: Path, place: int) -> None:
    content = bytearray((folder / "d" / "arrays").read_bytes())
    content[place] ^= 1
    (folder / "d" / "arrays").write_bytes(content)
    with pytest.raises(Unreadable, match="d/arrays is damaged"):
        verify(folder, read_manifest(folder)["files"])


def test_a_missing_or_a_cut_file_is_named(folder: Path) -> None:
    (folder / "empty").write_bytes(b"x")
    with pytest.raises(Unreadable, match="empty has lost or gained bytes"):
        verify(folder, read_manifest(folder)["files"])
    (folder / "d" / "arrays").unlink()
    with pytest.raises(Unreadable, match="d/arrays is missing"):
        verify(folder, read_manifest(folder)["files"])


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"crc32": 1}', "{}", "\xff"])
def test_a_manifest_that_is_not_one_is_unreadable(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content, encoding="latin-1")
    with pytest.raises(Unreadable, match=r"checkpoint\.json"):
        read_manifest(folder)


def test_an_edited_manifest_is_damaged(folder: Path) -> None:
    fields: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    fields["description"]["lr"] = 0.2
    (folder / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(Unreadable, match="is damaged"):
        read_manifest(folder)


def test_compare_names_the_first_difference(tmp_path: Path) -> None:
    tree = {"a": {"w": np.zeros((2, 3), np.float32)}, "n": np.int32(1)}
    types = array_types(tree)
    assert types == {"a/w": "float32[2,3]", "n": "int32[]"}
    compare(tmp_path, types, types)
    with pytest.raises(
        ValueError, match=r"array a/w is float32\[2,3\], but this run has int8\[1\]"
    ):
        compare(tmp_path, types, {**types, "a/w": "int8[1]"})
    with pytest.raises(ValueError, match=r"array n is int32.*, but this run has no such array"):
        compare(tmp_path, types, {"a/w": "float32[2,3]"})


def test_short_keeps_one_line() -> None:
    assert short(ValueError("first\nsecond")) == "first"
    assert short(KeyError()) == "KeyError"
    long = short(OSError("Error writing " + "x" * 1000 + ": No space left on device"))
    assert len(long) == 160
    assert long.startswith("Error writing x")
    assert long.endswith(": No space left on device")


def test_a_trial_leaves_nothing_and_fails_where_nothing_can_be_written(tmp_path: Path) -> None:
    try_writing(tmp_path / "trial")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        try_writing(tmp_path / "none" / "trial")
