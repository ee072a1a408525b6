"""Names in a run folder: steps and links wherever they lie, and what forbids a start from zero."""

import shutil
from pathlib import Path

import pytest

from spectral_dist.training import checkpoint_folder
from spectral_dist.training.checkpoint_folder import (
    clear_leftovers,
    complete_steps,
    delete,
    move_links,
    put_aside,
    resolve,
    unread_work,
)


def checkpoint(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "checkpoint.json").touch()
    return folder / name


def test_a_step_counts_wherever_it_lies(tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    for name in ("5", "10", "012", "x", "7.unreadable"):
        checkpoint(run, name)
    checkpoint(disk, "15")
    (run / "15").symlink_to(disk / "15")
    (run / "20").symlink_to(disk / "20")  # not there
    assert complete_steps(run) == [5, 10, 15]
    assert resolve(run, "checkpoint_0") == 15
    assert resolve(run, "checkpoint_1") == 10
    with pytest.raises(ValueError, match=r"there: checkpoint_0, checkpoint_1, 5, 10, 15$"):
        resolve(run, "20")
    assert complete_steps(tmp_path / "none") == []


def test_of_a_linked_checkpoint_only_the_link_is_deleted(tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    checkpoint(run, "5")
    checkpoint(disk, "10")
    (run / "10").symlink_to(disk / "10")
    delete(run / "5")
    delete(run / "10")
    assert list(run.iterdir()) == []
    assert (disk / "10" / "checkpoint.json").is_file()


def test_links_follow_the_steps(tmp_path: Path) -> None:
    for name in ("5", "10"):
        checkpoint(tmp_path, name)
    assert move_links(tmp_path, [5, 10]) == ""
    assert (tmp_path / "checkpoint_0").readlink() == Path("10")
    assert (tmp_path / "checkpoint_1").readlink() == Path("5")
    assert move_links(tmp_path, [10]) == ""
    assert not (tmp_path / "checkpoint_1").is_symlink()


def test_a_copied_link_is_left_as_it_is(tmp_path: Path) -> None:
    checkpoint(tmp_path, "checkpoint_0")
    reason = move_links(tmp_path, [10])
    assert reason == (
        f"{tmp_path / 'checkpoint_0'} is a folder and no link, as in a copy of a run: it is left as"
        " it is"
    )
    assert (tmp_path / "checkpoint_0" / "checkpoint.json").is_file()


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: str) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(checkpoint_folder, "replace_link", refuse)
    reason = move_links(tmp_path, [10])
    assert reason == (
        f"the link {tmp_path / 'checkpoint_0'} could not be moved (Operation not supported)"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("checkpoint_0", "checkpoint_0 is a checkpoint, but not named by its step"),
        ("step_500", "step_500 is a checkpoint, but not named by its step"),
        ("5.unreadable", "5.unreadable is a checkpoint, but not named by its step"),
    ],
)
def test_what_looks_like_a_checkpoint_forbids_a_start(
    tmp_path: Path, name: str, reason: str
) -> None:
    checkpoint(tmp_path, name)
    assert unread_work(tmp_path) == reason


@pytest.mark.parametrize("name", ["500", "checkpoint_0"])
def test_a_link_to_nothing_forbids_a_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/nowhere/500")
    assert unread_work(tmp_path) == f"{name} is a link to /nowhere/500, which is not there"


def test_leftovers_of_a_killed_save_are_no_work(tmp_path: Path) -> None:
    for name in ("5.orbax-checkpoint-tmp", "4.deleted"):
        checkpoint(tmp_path, name)
    for name in ("profile", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.yaml").touch()
    (tmp_path / "notes").symlink_to("/nowhere")
    assert unread_work(tmp_path) == ""
    assert unread_work(tmp_path / "none") == ""
    clear_leftovers(tmp_path)
    assert not list(tmp_path.glob("[45]*"))


def test_a_damaged_one_is_put_aside_under_a_free_name(tmp_path: Path) -> None:
    for _ in range(2):
        put_aside(checkpoint(tmp_path, "5"))
    assert {path.name for path in tmp_path.iterdir()} == {"5.unreadable", "5.unreadable_2"}
    shutil.rmtree(tmp_path)
