"""The names in a run folder: which are checkpoints, which are links to them, which are leftovers.

A checkpoint is a folder named by its step, wherever it really lies: a copy, a folder that was moved
and linked back, one on another disk. The links checkpoint_0 and checkpoint_1 are a convenience for
people, which no reader of ours follows. Knows nothing of what a checkpoint holds. Read
`complete_steps`.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from spectral_dist.atomic_file import replace_link
from spectral_dist.training.manifest import MANIFEST

LINKS = ("checkpoint_0", "checkpoint_1")
BEST = "best"  # names the checkpoint with the best validation
TEMPORARY = ".orbax-checkpoint-tmp"  # how Orbax ends the name of a folder not yet committed
_DELETED = ".deleted"  # ends the name of a checkpoint while its files are deleted


def is_step(name: str) -> bool:
    """Return whether the name of a folder is that of a checkpoint."""
    # Only "12" is a step: "012" or a digit of another script would name the same one twice.
    return name.isascii() and name.isdigit() and str(int(name)) == name


def complete_steps(folder: Path) -> list[int]:
    """Return the steps of the committed checkpoints in `folder`, ascending; [] without a folder."""
    try:
        # Links are followed: a checkpoint may have been moved to another disk.
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if is_step(name))


def resolve(folder: Path, name: str, best: int | None = None) -> int:
    """Return the step of `name`: checkpoint_0 (latest), checkpoint_1 (previous), best or a number.

    Args:
      folder: the run folder.
      name: the name.
      best: the step that "best" stands for, if there is one.

    Raises:
      ValueError: if there is no such checkpoint; the text lists those that exist.
    """
    steps = complete_steps(folder)
    named = {link: step for link, step in zip(LINKS, reversed(steps), strict=False)}
    named |= {} if best is None else {BEST: best}
    named |= {str(step): step for step in steps}
    if name not in named:
        existing = ", ".join([*named]) or "none"
        raise ValueError(f"checkpoint {name!r} is not in {folder}; there: {existing}")
    return named[name]


def best_step(validations: Mapping[int, float | None]) -> int | None:
    """Return the step with the fewest bits per byte, of equal ones the latest.

    Args:
      validations: by step, ascending; None where it was not measured.
    """
    scores = {step: value for step, value in validations.items() if value is not None}
    return min(reversed(scores), key=scores.__getitem__) if scores else None


def kept_steps(validations: Mapping[int, float | None], keep: int, keep_every: int) -> list[int]:
    """Return the steps to keep, ascending: the last `keep`, the best, and the permanent ones.

    Args:
      validations: bits per byte by step, ascending; None where it was not measured.
      keep: how many of the latest, at least 1.
      keep_every: a step that it divides is permanent; 0 makes none so.
    """
    steps, best = list(validations), best_step(validations)
    permanent = [step for step in steps if keep_every and step % keep_every == 0]
    return sorted({*steps[-keep:], *permanent, *(() if best is None else (best,))})


def unread_work(folder: Path) -> str:
    """Return what in a folder without a complete step looks like one all the same; "" if nothing.

    A run must not begin anew beside it.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    for entry in entries:
        if entry.name.endswith(_DELETED) or TEMPORARY in entry.name:
            continue  # of a killed process: never committed, or on its way out
        named = is_step(entry.name) or entry.name in LINKS
        if named and entry.is_symlink() and not entry.is_dir():
            return f"{entry.name} is a link to {os.readlink(entry.path)}, which is not there"
        with contextlib.suppress(OSError):  # a folder that may not be read
            if entry.is_dir() and (Path(entry.path) / MANIFEST).is_file():
                return f"{entry.name} is a checkpoint, but not named by its step"
    return ""


def move_links(folder: Path, steps: list[int]) -> str:
    """Point checkpoint_0 and checkpoint_1 to the last and the last but one of `steps`.

    Returns:
      why it could not be done, or "": a file system may have no links, and in a copy of a run they
      are folders, which are left as they are.
    """
    for place, link in enumerate(LINKS):
        path = folder / link
        if path.is_dir() and not path.is_symlink():
            return f"{path} is a folder and no link, as in a copy of a run: it is left as it is"
        try:
            if place < len(steps):
                replace_link(path, str(steps[-1 - place]))
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            return f"the link {path} could not be moved ({error.strerror})"
    return ""


def put_aside(path: Path) -> None:
    """Rename a damaged checkpoint to a name that no save uses; in a read-only folder, leave it."""
    number = 1
    aside = path.with_name(f"{path.name}.unreadable")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.unreadable_{number}")
    with contextlib.suppress(OSError):
        path.rename(aside)


def delete(path: Path) -> None:
    """Delete a checkpoint; of one that is linked from elsewhere only the link."""
    if path.is_symlink():  # somebody put the files where they are: they are not ours to delete
        path.unlink()
        return
    # Renamed first: a process killed during the deletion leaves no half under a step's name.
    renamed = path.with_name(path.name + _DELETED)
    shutil.rmtree(renamed, ignore_errors=True)
    path.rename(renamed)
    shutil.rmtree(renamed)


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed process left: saves that were never committed, deletions half done."""
    for pattern in (f"*{TEMPORARY}*", f"*{_DELETED}"):
        for left in folder.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
