"""Weights & Biases, seen from training: a process beside it that mirrors metrics.jsonl.

Owns the start and the end of that process, and the choice between online and offline. The process
itself is `wandb_mirror`, the only module that imports wandb: a failure there does not stop
training. Read `WandbMirror` first.
"""

import netrc
import os
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from spectral_dist.outputs import warn_on_stderr
from spectral_dist.outputs.follower import Follower
from spectral_dist.settings import Config

# Seconds that the end of a run waits for W&B. A preempted run has little time before it is killed.
CLOSE_TIMEOUT = 8.0
ID_FILE = "wandb_id.txt"  # W&B's id of the run's curves, which a resumed run continues
SENT_FILE = "wandb_sent.txt"  # how many bytes of metrics.jsonl have been sent to W&B

Mode = Literal["online", "offline", "disabled"]


class WandbMirror:
    """The process that sends metrics.jsonl to Weights & Biases.

    When training ends or dies, it sends what is left and ends too. Its failures are one line on
    stderr.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        resume: bool,
        report: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = warn_on_stderr,
    ) -> None:
        """Start the process and return at once; start nothing if W&B is disabled.

        Args:
          config: the settings.
          folder: the run folder, with config.yaml and a metrics.jsonl that is ready to be appended.
          resume: whether to continue the curves that the folder names, or begin new ones.
          report: called at the end with the command that sends what was written offline.
          warn: called with one line about what goes wrong on this side.
        """
        self._folder, self._report, self._warn = folder, report, warn
        self._follower: Follower | None = None
        self._mode = choose_mode(config.output.wandb_mode, os.environ)
        if self._mode == "disabled":
            return
        try:
            if not resume:
                for name in (ID_FILE, SENT_FILE):
                    (folder / name).unlink(missing_ok=True)
            metrics = folder / "metrics.jsonl"
            # A resumed run has cut the file: of what was sent, at most this much still stands.
            there = metrics.stat().st_size if metrics.exists() else 0
            # A process, not a thread: W&B's own threads and exit hooks stay out of training.
            self._follower = Follower(
                *("spectral_dist.outputs.wandb_mirror", str(folder), "--follow"),
                *("--mode", self._mode, "--sent_at_most", str(there)),
            )
        except OSError as error:
            self._warn(f"W&B is not used: {error}; metrics.jsonl has all metrics")

    def close(self) -> None:
        """Let the process send what is left, for at most CLOSE_TIMEOUT seconds."""
        follower, self._follower = self._follower, None
        if follower is None:
            return
        if follower.finish(CLOSE_TIMEOUT) is None:
            follower.kill()  # and W&B's own process
            self._warn(
                f"W&B did not finish within {CLOSE_TIMEOUT:.0f} s: metrics.jsonl has what is"
                " missing there"
            )
        if next(self._folder.glob("wandb/offline-run-*"), None) is not None:
            self._report(
                f"to send the offline W&B files: wandb sync {self._folder}/wandb/offline-*"
            )


def choose_mode(setting: str, environment: Mapping[str, str]) -> Mode:
    """Return W&B's mode, from the setting `wandb_mode` and the environment.

    "auto" follows WANDB_DISABLED and WANDB_MODE if they are set. Otherwise it is online if there is
    an API key, and offline if not.
    """
    asked = setting
    if setting == "auto":
        asked = environment.get("WANDB_MODE", "").strip().lower()
        # wandb itself reads this one as any of these words.
        if environment.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
            asked = "disabled"
    match asked:
        case "online" | "offline" | "disabled":
            return asked
        case "dryrun":  # wandb's older word
            return "offline"
        case _:
            return "online" if has_key(environment) else "offline"


def has_key(environment: Mapping[str, str]) -> bool:
    """Return whether the environment or the user's netrc has an API key for the W&B server."""
    # Asked without importing wandb, which takes 0.7 s (of processor time, on a CPU).
    if environment.get("WANDB_API_KEY"):
        return True
    # `wandb login` writes the key to netrc under the server's host; companies run their own server.
    server = environment.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urllib.parse.urlsplit(server).hostname or "api.wandb.ai"
    if "NETRC" in environment:
        paths = [Path(environment["NETRC"])]
    else:
        home = Path(environment.get("HOME") or os.path.expanduser("~"))
        paths = [home / ".netrc", home / "_netrc"]
    for path in paths:
        try:
            if host in netrc.netrc(path).hosts:
                return True
        except (OSError, ValueError, netrc.NetrcParseError):
            continue
    return False
