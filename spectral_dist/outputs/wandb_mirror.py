"""Weights & Biases mirror: `python -m spectral_dist.outputs.wandb_mirror RUN`.

It sends metrics.jsonl to W&B. Training starts it with --follow; by hand it sends what is not sent
yet of a finished run, or of one copied from elsewhere. Owns the only import of `wandb`. Must not
know what the metrics mean. Read `main` first, then `mirror`.
"""

import contextlib
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_dist.atomic_file import write_text
from spectral_dist.command_line import Parser, run_main
from spectral_dist.outputs import warn_on_stderr
from spectral_dist.outputs.follower import training_end
from spectral_dist.outputs.jsonl import parse_record
from spectral_dist.outputs.wandb import (
    CLOSE_TIMEOUT,
    ID_FILE,
    SENT_FILE,
    Mode,
    choose_mode,
    has_key,
)
from spectral_dist.settings import Config, OutputConfig, from_flat, resolve
from spectral_dist.settings.files import read_yaml
from spectral_dist.training.metrics import Record

INIT_TIMEOUT = 30.0  # seconds for the server's first answer
UPLOAD_TIMEOUT = 5.0  # seconds to upload what is left at the end of training; below CLOSE_TIMEOUT
POLL_SECONDS = 1.0  # between two reads of metrics.jsonl


def make_parser() -> Parser:
    """Return the argument parser of this command."""
    parser = Parser(
        prog="python -m spectral_dist.outputs.wandb_mirror",
        description="Send the metrics of a run to Weights & Biases.",
    )
    parser.add_run_folder()
    parser.add_argument(
        "--mode", choices=("auto", "online", "offline"), default="auto", help="as wandb_mode"
    )
    parser.add_argument(
        "--new", action="store_true", help="begin a new W&B run with all of metrics.jsonl"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="keep sending until standard input closes; training uses this",
    )
    parser.add_argument(
        "--sent_at_most",
        type=int,
        help="size of metrics.jsonl, in bytes, before a resumed run appended to it",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Send the metrics of a run to Weights & Biases; return the exit code."""
    flags = make_parser().read(argv)
    folder = flags.folder
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"RUN={str(folder)!r}: is not a run folder: it has no config.yaml")
    config = resolve(from_flat(read_yaml(folder / "config.yaml")))
    mode = choose_mode(flags.mode, os.environ)
    if mode == "disabled":
        raise ValueError("WANDB_MODE or WANDB_DISABLED: W&B is turned off in this environment")
    if flags.follow:
        warnings, training_ended = Warnings(_silence()), training_end()
        watching = (training_ended, warnings)
        threading.Thread(target=_watch, args=watching, daemon=True).start()
    else:
        warnings, training_ended = Warnings(warn_on_stderr), threading.Event()
        training_ended.set()  # nothing is appended any more: one pass over the file
    state = MirrorState.open(folder, config.run.run_name, flags.sent_at_most, new=flags.new)
    mirror(config, state, mode, training_ended, warnings, silent=flags.follow)
    return 1 if warnings.given and not flags.follow else 0


def mirror(
    config: Config,
    state: "MirrorState",
    mode: Mode,
    training_ended: threading.Event,
    warnings: "Warnings",
    *,
    silent: bool = True,
) -> None:
    """Send records to W&B as they appear in metrics.jsonl, until training has ended.

    Args:
      config: the run's settings.
      state: the run folder, and how much of its metrics.jsonl has been sent.
      mode: online or offline.
      training_ended: set when nothing more is written to metrics.jsonl.
      warnings: gets the first failure.
      silent: whether W&B prints nothing itself.
    """
    if mode == "online" and not has_key(os.environ):
        # wandb would ask for a key on the terminal, and wait for the answer.
        warnings.warn(
            "no W&B key was found (set WANDB_API_KEY or run `wandb login`): writing offline"
        )
        mode = "offline"
    run = _start(config, state, mode, warnings, silent)
    if run is None:
        return
    ended = False
    while not ended:
        # Asked before the file is read: the last pass then reads all that training wrote.
        ended = training_ended.wait(POLL_SECONDS)
        for record in state.new_records():
            try:
                run.log({"step": record.step, **record.metrics})
            except (Exception, SystemExit) as error:  # of any kind: the next record may succeed
                warnings.warn(f"W&B refused a record: {_one_line(error)}; metrics.jsonl has it")
        state.save()
    try:
        run.finish()
    except (Exception, SystemExit) as error:
        warnings.warn(f"W&B did not finish: {_one_line(error)}")


@dataclass
class MirrorState:
    """A run folder, and how much of its metrics.jsonl has been sent to W&B.

    Attributes:
      folder: the run folder.
      run_name: of the settings.
      identity: W&B's id of the run.
      sent: bytes of metrics.jsonl that have been sent.
    """

    folder: Path
    run_name: str
    identity: str
    sent: int

    @classmethod
    def open(
        cls, folder: Path, run_name: str, sent_at_most: int | None = None, *, new: bool = False
    ) -> "MirrorState":
        """Read the state that an earlier mirror of the run has saved.

        Args:
          folder: the run folder.
          run_name: of the settings; it is another one in a branch of a copied run.
          sent_at_most: size of metrics.jsonl, in bytes, before a resumed run appended to it. The
            run has dropped what stood after that, and writes it again.
          new: ignore the earlier state.
        """
        identity, _, owner = ("" if new else _read(folder / ID_FILE)).partition("\n")
        # A branch of a copied run begins curves of its own, with all that it has in common.
        if not identity.isalnum() or owner not in ("", run_name):
            identity, sent = secrets.token_hex(8), 0
        else:
            # Folders from before SENT_FILE existed have the id alone: all was sent at once then.
            known = _read(folder / SENT_FILE)
            metrics = folder / "metrics.jsonl"
            there = metrics.stat().st_size if metrics.exists() else 0
            there = there if sent_at_most is None else min(there, sent_at_most)
            sent = min(int(known), there) if known.isdecimal() else there
        return cls(folder, run_name, identity, sent)

    def new_records(self) -> Iterator[Record]:
        """Yield the records of all complete lines not sent yet; damaged lines are skipped."""
        with contextlib.suppress(OSError), (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(self.sent)
            for line in file:
                if not line.endswith(b"\n"):  # the rest of it is still being written
                    return
                self.sent += len(line)
                record = parse_record(line)
                if record is not None:
                    yield record

    def save(self) -> None:
        """Write the id and the bytes sent to the run folder, for the next mirror of this run."""
        # A full disk loses no metrics: the next mirror would send some of them a second time.
        with contextlib.suppress(OSError):
            identity = f"{self.identity}\n{self.run_name}"
            for name, text in ((ID_FILE, identity), (SENT_FILE, str(self.sent))):
                path = self.folder / name
                if _read(path) != text:
                    write_text(path, text + "\n")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Warnings:
    """Prints the first warning only: one broken network would give a line for every record."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Pass the first warning to `warn`."""
        self._warn, self._lock = warn, threading.Lock()
        self.given = False

    def warn(self, text: str) -> None:
        """Warn in one line, from any thread, unless there was a warning before."""
        with self._lock:
            first, self.given = not self.given, True
        if first:
            self._warn(text)


def _silence() -> Callable[[str], None]:
    """Discard all output of this process; return a function that still writes to stderr."""
    # `os.dup` gives a descriptor that children do not inherit: W&B's own process must not hold
    # training's stderr open, or a shell that reads it would wait for W&B.
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)

    def warn(text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(stderr, f"warning: {text}\n".encode(errors="replace"))

    return warn


def _watch(training_ended: threading.Event, warnings: Warnings) -> None:
    """Wait for the end of training; end this process if it then takes too long."""
    training_ended.wait()
    # Training, if it is alive, ends us after CLOSE_TIMEOUT. If it was killed, this does.
    time.sleep(CLOSE_TIMEOUT + 1)
    warnings.warn("W&B did not finish: metrics.jsonl has what is missing there")
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with W&B's own process, which would outlive us
    os._exit(1)


def _start(config: Config, state: MirrorState, mode: Mode, warnings: Warnings, silent: bool) -> Any:
    """Return the started `wandb.Run`, offline if the server fails; None if that fails too."""
    try:
        run = _init(config, state, mode, silent)
        state.save()
        return run
    except (Exception, SystemExit) as error:  # wandb calls `sys.exit` as well
        if mode == "offline" or isinstance(error, ImportError):
            warnings.warn(f"W&B is not used: {_one_line(error)}; metrics.jsonl has all metrics")
            return None
        warnings.warn(f"W&B cannot be reached: {_one_line(error)}; writing offline")
        return _start(config, state, "offline", warnings, silent)


def _init(config: Config, state: MirrorState, mode: Mode, silent: bool) -> Any:
    """Import wandb, and begin or continue the run; return a `wandb.Run`."""
    if silent:  # the setting below comes too late for what wandb prints about the key
        os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    options: dict[str, Any] = {
        "init_timeout": INIT_TIMEOUT,
        "silent": silent,
        "console": "off",  # W&B must not capture this process's output
        "disable_git": True,  # a remote's address may hold a password
        "save_code": False,
    }
    if silent:
        options["finish_timeout"] = UPLOAD_TIMEOUT
    # Older releases do not know every option, and refuse those that they do not know.
    known = getattr(wandb.Settings, "model_fields", options)
    settings = wandb.Settings(**{name: value for name, value in options.items() if name in known})
    project, name = _named(config, os.environ)
    run = wandb.init(
        project=project,
        name=name,
        id=state.identity,
        resume="allow",  # continues the curves if W&B knows the id
        dir=str(state.folder),
        mode=mode,
        config=_described(config, state.folder),
        settings=settings,
    )
    # The curves are over our own step. W&B's built-in step only grows, and so would refuse the
    # steps that a resumed run repeats.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


def _named(config: Config, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return W&B's project and run name."""
    project = config.output.wandb_project
    # WANDB_PROJECT, often set for all of a user's work, counts only if this run names no project.
    if project == OutputConfig().wandb_project:
        project = environment.get("WANDB_PROJECT") or project
    return project, environment.get("WANDB_NAME") or config.run.run_name


def _described(config: Config, folder: Path) -> dict[str, Any]:
    """Return what W&B shows as the run's config: the settings and environment.json."""
    # Flat names, the flags', so that W&B's table of runs has a column for each.
    described = config.flat()
    with contextlib.suppress(OSError, ValueError):
        text = (folder / "environment.json").read_text(encoding="utf-8")
        described["environment"] = json.loads(text)
    return described


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


if __name__ == "__main__":
    run_main(main)
