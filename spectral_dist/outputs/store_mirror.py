"""Copying a run's checkpoints to a store, beside training: what `spectral-dist store` does.

Training starts that command with --follow: a store that is slow or down holds no step up. Read
`follow`.
"""

import contextlib
import os
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from spectral_dist.command_line import FAULT, Ending, one_line, say
from spectral_dist.outputs import warn_on_stderr
from spectral_dist.outputs.follower import training_end
from spectral_dist.training.checkpoint_folder import complete_steps
from spectral_dist.training.store import Store, pull_newest

_POLL_SECONDS = 1.0  # between two looks at the run folder
_RETRY_SECONDS = 60.0  # after a failure


def copy(flags: Namespace) -> int:
    """Copy checkpoints as the command line says; return the exit code.

    Args:
      flags: of `store.make_parser`.

    Raises:
      Ending: if the store cannot be reached.
      ValueError: names what is wrong with the folder or the URL.
    """
    folder = Path(os.path.abspath(flags.folder))
    store = Store(flags.url, folder.name)
    if flags.direction == "pull":
        with reached(store):
            folder.mkdir(parents=True, exist_ok=True)
            pull_newest(store, folder, say, lambda: None)
        return 0
    if not flags.follow:
        if not complete_steps(folder):
            raise ValueError(f"RUN={str(flags.folder)!r}: there is no checkpoint in it")
        with reached(store):
            _push(store, folder, flags.keep, flags.keep_every)
        say(f"checkpoint {complete_steps(folder)[-1]} is in {store.url}")
        return 0
    push = partial(_push, store, folder, flags.keep, flags.keep_every)
    done = follow(push, folder, training_end())
    return 0 if done else FAULT


@contextlib.contextmanager
def reached(store: Store) -> Iterator[None]:
    """Turn any error of a store in a block into one line: a fault of the machine, tried again.

    Raises:
      Ending: for any error but a user's.
    """
    try:
        yield
    except (ValueError, Ending):
        raise
    except Exception as error:  # whatever its library raises
        raise Ending(f"store={store.url}: {one_line(error)}", FAULT) from error


def follow(
    push: Callable[[], None],
    folder: Path,
    ended: threading.Event,
    warn: Callable[[str], None] = warn_on_stderr,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Copy each new checkpoint until training has ended; return whether the last one is copied.

    Args:
      push: copies the newest checkpoint.
      folder: the run folder.
      ended: set when training has ended.
      warn: takes one line when copying begins to fail.
      clock: returns monotonic seconds.
    """
    copied, failed, retry = -1, False, -1.0
    while True:
        last_look = ended.is_set()
        newest = max(complete_steps(folder), default=-1)
        if newest != copied and (last_look or clock() >= retry):
            try:
                push()
                copied, failed = newest, False
            except Exception as error:  # whatever a store raises, training goes on
                if not failed:
                    warn(
                        f"checkpoint {newest} is not copied to the store ({one_line(error)});"
                        " it is in the run folder, and the copy is tried again"
                    )
                failed, retry = True, clock() + _RETRY_SECONDS
        if last_look:
            return newest == copied
        ended.wait(_POLL_SECONDS)


def _push(store: Store, folder: Path, keep: int, keep_every: int) -> None:
    """Copy the newest checkpoint, and delete what is not kept."""
    store.push(folder, complete_steps(folder)[-1])
    store.push_beside(folder)
    if keep:
        store.tidy(keep, keep_every)
