"""Weights & Biases as training sees it: a process beside it that reads metrics.jsonl, the record.

Owns the start and the end of that process, and the choice between online and offline. The process
itself is `wandb_mirror`, the only module that imports wandb: whatever happens there, training goes
on. Read `WandbMirror` first.
"""

import contextlib
import netrc
import os
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from spectral_dist.outputs import warn_on_stderr
from spectral_dist.settings import Config

# Seconds that the end of a run waits for W&B: a run that a scheduler ends has little time.
CLOSE_TIMEOUT = 8.0
ID_FILE = "wandb_id.txt"  # W&B's id of the run's curves, which a resumed run goes on with
SENT_FILE = "wandb_sent.txt"  # how many bytes of metrics.jsonl W&B has had

Mode = Literal["online", "offline", "disabled"]


class WandbMirror:
    """The process that sends metrics.jsonl to Weights & Biases.

    It holds the other end of a pipe: when this one closes, or this process dies, it sends what is
    left and ends. Its failures are one line on stderr.
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
        """Start the process and return at once; nothing is started where W&B is disabled.

        Args:
          config: the settings.
          folder: of the run, with config.yaml and the metrics.jsonl that goes on from here.
          resume: continue the curves that the folder names; otherwise begin new ones.
          report: told at the end how to send what was written offline.
          warn: told in one line what goes wrong on this side.
        """
        self._folder, self._report, self._warn = folder, report, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._mode = choose_mode(config.output.wandb_mode, os.environ)
        if self._mode == "disabled":
            return
        try:
            if not resume:
                for name in (ID_FILE, SENT_FILE):
                    (folder / name).unlink(missing_ok=True)
            metrics = folder / "metrics.jsonl"
            there = metrics.stat().st_size if metrics.exists() else 0
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "spectral_dist.outputs.wandb_mirror", str(folder)),
                    *("--follow", "--mode", self._mode, "--sent_at_most", str(there)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for training, which ends the mirror in its turn
            )
        except OSError as error:
            self._warn(f"W&B is left out: {error}; metrics.jsonl has it all")

    def close(self) -> None:
        """Let the process send what is left, within the time limit."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # W&B's own process with it
            process.wait()
            self._warn(
                f"W&B did not finish within {CLOSE_TIMEOUT:.0f} s: what is missing there is in"
                " metrics.jsonl"
            )
        if next(self._folder.glob("wandb/offline-run-*"), None) is not None:
            self._report(
                f"to send the offline W&B files: wandb sync {self._folder}/wandb/offline-*"
            )


def choose_mode(setting: str, environment: Mapping[str, str]) -> Mode:
    """Return where the figures go, by the setting and the user's environment.

    "auto" follows WANDB_DISABLED and WANDB_MODE where they are set, and is online with a key and
    offline without.
    """
    asked = setting
    if setting == "auto":
        asked = environment.get("WANDB_MODE", "").strip().lower()
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
    """Whether a key for the W&B server stands in the environment or in the user's netrc."""
    if environment.get("WANDB_API_KEY"):
        return True
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
