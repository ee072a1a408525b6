"""The store of a run, seen from training: what is fetched at the start, and the process behind it.

Read `fetch`, then `StoreMirror`.
"""

from collections.abc import Callable
from pathlib import Path

from spectral_dist.command_line import Ending, one_line
from spectral_dist.outputs import warn_on_stderr
from spectral_dist.outputs.follower import Follower
from spectral_dist.outputs.store_mirror import reached
from spectral_dist.settings import Config
from spectral_dist.training.checkpoint_folder import complete_steps
from spectral_dist.training.store import Store, pull_newest

_PATIENCE_SECONDS = 10.0  # after which the end of a run says what it waits for
CLOSE_TIMEOUT = 600.0  # seconds that the end of a run waits for the last copy


def fetch(
    config: Config, folder: Path, report: Callable[[str], None], progress: Callable[[], None]
) -> None:
    """Copy the newest checkpoint from the run's store, if it is newer than the folder's.

    Args:
      config: the settings.
      folder: the run folder.
      report: takes one line at a time.
      progress: called after each file.

    Raises:
      Ending: if the store cannot be reached and the folder holds no checkpoint: there may be work
        in the store, and a run does not begin anew beside it.
      ValueError: if there is no library for the store's URL.
    """
    if not config.run.store:
        return
    store = Store(config.run.store, folder.name)
    try:
        with reached(store):
            pull_newest(store, folder, report, progress)
    except Ending as error:
        if not complete_steps(folder):
            raise
        report(f"warning: {one_line(error)}; going on from the run folder")


class StoreMirror:
    """The process that copies committed checkpoints to the run's store."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        report: Callable[[str], None],
        warn: Callable[[str], None] = warn_on_stderr,
    ) -> None:
        """Start the process, if the run has a store.

        Args:
          config: the settings.
          folder: the run folder.
          report: takes a line at the end of the run.
          warn: takes one line if the process cannot be started, or does not finish.
        """
        self._report, self._warn, self._url = report, warn, config.run.store
        self._follower: Follower | None = None
        if not self._url:
            return
        kept = ("--keep", str(config.run.keep), "--keep_every", str(config.run.keep_every))
        try:
            self._follower = Follower(
                *("spectral_dist.store", "push", str(folder), self._url, *kept, "--follow"),
                environment={"JAX_PLATFORMS": "cpu"},  # the GPU is training's
            )
        except OSError as error:
            warn(f"store={self._url!r}: nothing is copied: {error}")

    def close(self) -> None:
        """Let the process copy the last checkpoint, for at most CLOSE_TIMEOUT seconds."""
        follower, self._follower = self._follower, None
        if follower is None:
            return
        code = follower.finish(_PATIENCE_SECONDS)
        if code is None:
            self._report(f"waiting for the copy of the last checkpoint to {self._url}")
            code = follower.finish(CLOSE_TIMEOUT)
        if code is None:
            follower.kill()
        if code != 0:
            self._warn(f"store={self._url!r}: the last checkpoint is in the run folder alone")
        else:
            self._report(f"the last checkpoint is in {self._url} as well")
