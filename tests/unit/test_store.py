"""Checkpoints in a store: whole or not at all, verified on the way back."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spectral_dist.command_line import FAULT, Ending
from spectral_dist.flags import load_config
from spectral_dist.outputs.store import fetch
from spectral_dist.outputs.store_mirror import follow
from spectral_dist.store import main
from spectral_dist.training.manifest import write_manifest
from spectral_dist.training.store import Store, pull_newest

NAMES = ("_METADATA", "d/one", "ocdbt.process_0/d/two")


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place in a store that nobody has written to."""
    root = request.getfixturevalue("s3") if request.param == "s3" else f"file://{tmp_path}/store"
    return f"{root}/{tmp_path.name}"


def checkpoint(folder: Path, step: int, validation: float | None = None) -> Path:
    """Write a committed checkpoint of some files, and the files beside it."""
    path = folder / str(step)
    for name in NAMES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(os.urandom(1000 + step))
    write_manifest(path, {"description": {}, "validation": validation, "arrays": {}})
    (path / "_CHECKPOINT_METADATA").write_text("after the manifest")
    (folder / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_there_and_back_byte_by_byte(url: str, tmp_path: Path) -> None:
    here, there = tmp_path / "run", tmp_path / "elsewhere" / "run"
    checkpoint(here, 5)
    store = Store(url, "run")
    assert store.steps() == []
    assert store.push(here, 5)
    assert not store.push(here, 5)  # it is there
    store.push_beside(here)
    assert store.steps() == [5]
    said: list[str] = []
    pull_newest(Store(url, "run"), there, said.append, lambda: None)
    assert content(there) == content(here)
    assert (here / "store_id.txt").is_file()
    assert said == [f"checkpoint 5 was copied from {url}/run"]
    pull_newest(Store(url, "run"), there, said.append, lambda: None)  # nothing newer
    assert len(said) == 1


def test_a_copy_that_breaks_off_does_not_count(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "run", 5)
    store = Store(url, "run")
    put, left = store._files.put_file, [len(NAMES)]

    def broken(*given: Any, **others: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the network is gone")
        put(*given, **others)

    monkeypatch.setattr(store._files, "put_file", broken)
    with pytest.raises(OSError, match="the network is gone"):
        store.push(tmp_path / "run", 5)
    assert Store(url, "run").steps() == []
    monkeypatch.setattr(store._files, "put_file", put)
    assert store.push(tmp_path / "run", 5)
    assert Store(url, "run").steps() == [5]


def test_another_checkpoint_of_the_same_step_takes_its_place(url: str, tmp_path: Path) -> None:
    here, store = tmp_path / "run", Store(url, "run")
    checkpoint(here, 5)
    store.push(here, 5)
    shutil.rmtree(here / "5")
    checkpoint(here, 5)
    assert store.push(here, 5)
    pull_newest(store, tmp_path / "back", lambda text: None, lambda: None)
    assert content(tmp_path / "back" / "5") == content(here / "5")


def test_a_damaged_one_is_named_and_the_one_before_taken(url: str, tmp_path: Path) -> None:
    here, store = tmp_path / "run", Store(url, "run")
    for step in (3, 5):
        checkpoint(here, step)
        store.push(here, step)
    store._files.pipe_file(store._path(5, "d/one"), b"x" * 1005)
    said: list[str] = []
    pull_newest(store, tmp_path / "back", said.append, lambda: None)
    assert said[0] == f"checkpoint 5 in {url}/run cannot be read (d/one is damaged)"
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["3", "store_id.txt"]
    assert content(tmp_path / "back" / "3") == content(here / "3")


def test_another_run_of_the_name_is_not_replaced(url: str, tmp_path: Path) -> None:
    first, second = tmp_path / "one" / "run", tmp_path / "two" / "run"
    checkpoint(first, 5)
    Store(url, "run").push(first, 5)
    checkpoint(second, 9)
    for act in (
        lambda: Store(url, "run").push(second, 9),
        lambda: pull_newest(Store(url, "run"), second, print, lambda: None),
    ):
        with pytest.raises(ValueError, match="holds another run of this name"):
            act()
    assert Store(url, "run").steps() == [5]
    pull_newest(Store(url, "run"), tmp_path / "new" / "run", print, lambda: None)
    assert Store(url, "run").push(first, 5) is False


def test_the_store_keeps_what_a_run_folder_keeps(url: str, tmp_path: Path) -> None:
    here, store = tmp_path / "run", Store(url, "run")
    for step, validation in {3: 1.0, 4: None, 5: 2.0, 10: None, 11: None, 12: 3.0}.items():
        checkpoint(here, step, validation)
        store.push(here, step)
    store.tidy(2, 5)
    assert Store(url, "run").steps() == [3, 5, 10, 11, 12]
    left = {path.rpartition("/run/")[2] for path in store._files.find(store._root)}
    assert not [path for path in left if path.startswith("4/")]


def config(tmp_path: Path, store: str) -> Any:
    flags = ["--data_paths", "a.txt", "--run_name", "run", "--checkpoint_dir", str(tmp_path)]
    return load_config([*flags, "--store", store])


def test_a_store_that_is_down_stops_a_new_run_and_no_old_one(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said: list[str] = []
    folder = tmp_path / "run"
    with pytest.raises(Ending, match=f"store={s3}/run: .*Could not connect") as caught:
        fetch(config(tmp_path, s3), folder, said.append, lambda: None)
    assert caught.value.code == FAULT
    checkpoint(folder, 5)
    fetch(config(tmp_path, s3), folder, said.append, lambda: None)
    assert said[0].endswith("going on from the run folder")


@pytest.mark.parametrize("url", ["bucket/runs", "s3:/bucket", "s3://a b"])
def test_what_is_no_url_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"store=.*must be a URL such as s3://bucket/runs"):
        config(tmp_path, url)


def test_a_kind_of_store_that_nobody_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"store='nowhere://x': .*nowhere"):
        fetch(config(tmp_path, "nowhere://x"), tmp_path / "run", print, lambda: None)


def test_each_new_checkpoint_is_copied_and_a_failure_is_tried_again(tmp_path: Path) -> None:
    """By a clock of its own: one warning, and the next try a minute later."""
    now, pushed, said, ended = [0.0], list[int](), list[str](), threading.Event()
    script: Iterator[Callable[[], None]] = iter(
        [
            lambda: checkpoint(tmp_path, 1) and None,
            lambda: None,
            lambda: checkpoint(tmp_path, 2) and None,
            lambda: now.__setitem__(0, 30.0),
            lambda: now.__setitem__(0, 100.0),
            lambda: checkpoint(tmp_path, 3) and None,
            ended.set,
        ]
    )

    def push() -> None:
        newest = max(int(p.name) for p in tmp_path.iterdir() if p.is_dir())
        if newest == 2 and now[0] < 100:
            raise OSError("down")
        pushed.append(newest)

    ended.wait = lambda timeout=None: bool(next(script)() or True)  # type: ignore[method-assign]
    assert follow(push, tmp_path, ended, said.append, lambda: now[0])
    assert pushed == [1, 2, 3]
    assert len(said) == 1
    assert said[0].startswith("checkpoint 2 is not copied to the store (OSError: down)")


def test_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, url = tmp_path / "run", f"file://{tmp_path}/store"
    checkpoint(here, 7)
    assert main(["push", str(here), url]) == 0
    assert capsys.readouterr().out == f"checkpoint 7 is in {url}/run\n"
    shutil.rmtree(here)
    with pytest.raises(ValueError, match="there is no checkpoint in it"):
        main(["push", str(here), url])
    assert main(["pull", str(here), url]) == 0
    assert (here / "7" / "checkpoint.json").is_file()
