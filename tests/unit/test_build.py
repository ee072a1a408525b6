"""Building one token file: when it is trusted, and what a failure leaves behind."""

import contextlib
import dataclasses
import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spectral_dist.command_line import FAULT, Ending
from spectral_dist.data import build as module
from spectral_dist.data.build import bin_state, build
from spectral_dist.data.formats import find_format
from spectral_dist.data.manifest import (
    Manifest,
    bin_path,
    blocks_crc32,
    manifest_path,
    read_manifest,
)
from spectral_dist.data.readers import write_txt
from spectral_dist.subprocesses import ModuleProcess

TEXT = "Çağrı, ığdırlı İsmail'e şöyle öğüt verdi.\n<|endoftext|>\nüçüncü\n".encode() * 50


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a text that was never built."""
    path = tmp_path / "türkçe metin.txt"
    path.write_bytes(TEXT)
    return path


def entries(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_paths_of_the_token_file() -> None:
    assert bin_path(Path("d/a.txt")) == Path("d/a.bin")
    assert bin_path(Path("d/a.b.txt")) == Path("d/a.b.bin")
    assert bin_path(Path("d/a.md")) == Path("d/a.md.bin")
    assert bin_path(Path("d/a")) == Path("d/a.bin")
    assert bin_path(Path("d/a.bin")) == Path("d/a.bin")
    assert manifest_path(Path("d/a.bin")) == Path("d/a.bin.json")


def test_a_build_gives_the_text_back_and_is_trusted(source: Path) -> None:
    assert bin_state(source).manifest is None
    assert bin_state(source).reason == ""
    manifest = build(source)
    assert entries(source.parent) == sorted(
        [source.name, "türkçe metin.bin", "türkçe metin.bin.json"]
    )
    binary = bin_path(source)
    assert manifest.exact
    assert write_txt(binary.read_bytes().split(b"\0"), ending=manifest.ending) == TEXT
    assert read_manifest(binary) == manifest == bin_state(source).manifest
    assert manifest.documents == binary.read_bytes().count(0) == 51
    assert (manifest.format_version, manifest.dtype) == (1, "uint8")


def test_a_new_time_with_the_same_content_refreshes_the_manifest(source: Path) -> None:
    manifest = build(source)
    os.utime(source, ns=(1, 1))
    state = bin_state(source)
    assert state.refreshed
    assert state.manifest == dataclasses.replace(manifest, source_mtime_ns=1)
    assert not bin_state(source).refreshed


def change_text(source: Path) -> None:
    source.write_bytes(TEXT.replace(b"verdi", b"vardi"))


def grow_text(source: Path) -> None:
    source.write_bytes(TEXT + b"more\n")


def cut_tokens(source: Path) -> None:
    binary = bin_path(source)
    binary.write_bytes(binary.read_bytes()[:-1])


def zero_tokens(source: Path) -> None:
    binary = bin_path(source)
    binary.write_bytes(bytes(binary.stat().st_size))


def change_manifest(name: str, value: Any) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        path = manifest_path(bin_path(source))
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (change_text, "the text has changed"),
        (grow_text, "the text has changed"),
        (cut_tokens, "bytes where its manifest says"),
        (zero_tokens, "content does not match"),
        (lambda source: bin_path(source).unlink(), "it is missing"),
        (lambda source: manifest_path(bin_path(source)).write_text('{"for'), "cannot be read"),
        (lambda source: manifest_path(bin_path(source)).write_bytes(b"\xff\0"), "cannot be read"),
        (lambda source: manifest_path(bin_path(source)).write_text("[]"), "damaged"),
        (lambda source: manifest_path(bin_path(source)).write_text("{}"), "damaged"),
        (change_manifest("tokens", "many"), "damaged"),
        (change_manifest("surprise", 1), "damaged"),
        (change_manifest("format_version", 0), "format version is 0, not 1"),
    ],
)
def test_anything_else_is_built_again(
    source: Path, harm: Callable[[Path], None], reason: str
) -> None:
    build(source)
    harm(source)
    os.utime(source, ns=(1, 1))
    state = bin_state(source)
    assert state.manifest is None
    assert reason in state.reason
    build(source)
    assert bin_state(source).manifest is not None


def test_the_content_check_reads_both_ends_and_costs_the_same_for_any_size(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    size = 1 << 34  # sparse: 16 GB that take no room
    with path.open("wb") as file:
        file.truncate(size)
    start = time.process_time()
    zeros = blocks_crc32(path)
    assert time.process_time() - start < 1
    for place in (0, size - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert blocks_crc32(path) != zeros
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\0")
    assert blocks_crc32(path) == zeros


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left for"),
        (errno.EROFS, "Read-only file system"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_a_failed_write_names_the_text_and_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    build(source)
    before = bin_path(source).read_bytes()
    grow_text(source)

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(ValueError, match=words) as caught:
        build(source)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(entries(source.parent)) == 3
    assert bin_path(source).read_bytes() == before


def test_a_text_that_changes_while_it_is_read_is_refused(source: Path) -> None:
    def grow(done: int) -> None:
        with source.open("ab") as file:
            file.write(b"more\n")
        os.utime(source, ns=(2, 2))

    with pytest.raises(ValueError, match=r"metin\.txt: changed while it was read"):
        build(source, grow)
    assert entries(source.parent) == [source.name]


def test_the_worker_tells_of_its_manifests_or_its_error(source: Path) -> None:
    def request(*paths: Path) -> dict[str, Any]:
        files = [(str(path), dataclasses.astuple(find_format(path)), None) for path in paths]
        return {"tokenizer": "bytes", "files": files}

    other = source.with_name("b.jsonl")
    other.write_text('{"text": "a"}\n')
    none = source.with_name("none.txt")
    wanted = (request(source, other), request(source), request(none, source))
    with contextlib.ExitStack() as stopping:
        workers = [
            stopping.enter_context(ModuleProcess("spectral_dist.data.build", request=files))
            for files in wanted
        ]
        told = [list(worker.events()) for worker in workers]
        codes = [worker.wait() for worker in workers]
    assert codes == [0, 0, 1]
    assert [event["file"] for event in told[0]] == [0, 0, 1, 1]
    assert [sorted(event) for event in told[2]] == [["begun", "file"], ["error", "file"]]
    assert "none.txt" in told[2][1]["error"]  # and what comes after it is not begun
    # Two at once on one text: either's files are whole.
    assert Manifest(**told[0][1]["manifest"]) == read_manifest(bin_path(source))
    assert bin_state(source).manifest is not None
    assert Manifest(**told[0][3]["manifest"]) == read_manifest(bin_path(other))
    assert len(entries(source.parent)) == 6


def test_a_file_that_is_not_ours_is_never_replaced(source: Path) -> None:
    binary = bin_path(source)
    binary.write_bytes(b"another program's")
    words = rf"^data_paths: {source}: {binary} is in the way: there is no {binary.name}\.json "
    with pytest.raises(ValueError, match=words):
        bin_state(source)
    assert binary.read_bytes() == b"another program's"


def test_a_kill_before_the_tokens_have_their_name_leaves_what_is_built_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    build(source)
    source.write_text(source.read_text() + "more\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            build(source)
    assert bin_state(source).manifest is None  # and not: a file that is not ours
    build(source)
    assert bin_state(source).manifest is not None


def test_a_worker_tells_a_fault_from_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []

    def gone(*_: object) -> None:
        raise Ending("data_paths: s3://b/x.txt: no answer", FAULT)

    monkeypatch.setattr(module, "say", said.append)
    monkeypatch.setattr(module, "build", gone)
    request = {"tokenizer": "bytes", "files": [(str(tmp_path), ("txt", "", "text", False), None)]}
    assert module._build_for_parent(request) == 1
    answer = {"file": 0, "error": "data_paths: s3://b/x.txt: no answer", "code": FAULT}
    assert said == [{"file": 0, "begun": True}, answer]
