"""`python -m spectral_dist.outputs.wandb_mirror RUN_FOLDER`: metrics.jsonl, sent to W&B.

Training starts it beside itself, with --follow. By hand it sends what W&B has not had of a finished
run, or of one copied from elsewhere. Owns the only import of `wandb`. Must not know what the
metrics mean. Read `main` first, then `mirror`.
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
UPLOAD_TIMEOUT = 5.0  # seconds for what is still to be uploaded at the end of a training
POLL_SECONDS = 1.0


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(
        prog="python -m spectral_dist.outputs.wandb_mirror",
        description="Send the metrics of a run to Weights & Biases.",
    )
    parser.add_argument("folder", metavar="RUN_FOLDER", help="with config.yaml and metrics.jsonl")
    parser.add_argument(
        "--mode", choices=("auto", "online", "offline"), default="auto", help="as wandb_mode"
    )
    parser.add_argument(
        "--new", action="store_true", help="begin new curves, with all that metrics.jsonl holds"
    )
    parser.add_argument(
        "--follow", action="store_true", help="go on until standard input closes, as training does"
    )
    parser.add_argument("--sent_at_most", type=int, help="bytes of metrics.jsonl that may be sent")
    return parser


def main(argv: Sequence[str]) -> int:
    """Send the metrics of a run to Weights & Biases; return the exit code."""
    flags = make_parser().read(argv)
    folder = Path(flags.folder)
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"RUN_FOLDER={flags.folder!r}: has no config.yaml; it is no run's folder")
    config = resolve(from_flat(read_yaml(folder / "config.yaml")))
    mode = choose_mode(flags.mode, os.environ)
    if mode == "disabled":
        raise ValueError("WANDB_MODE or WANDB_DISABLED: W&B is turned off in this environment")
    ending, warnings = threading.Event(), Warnings(warn_on_stderr)
    if flags.follow:
        warnings = Warnings(_silence())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # the pipe tells when training has ended
        threading.Thread(target=_watch, args=(ending, warnings), daemon=True).start()
    else:
        ending.set()
    place = Place.open(folder, flags.sent_at_most, new=flags.new)
    mirror(config, place, mode, ending, warnings, silent=flags.follow)
    return 1 if warnings.told and not flags.follow else 0


def mirror(
    config: Config,
    place: "Place",
    mode: Mode,
    ending: threading.Event,
    warnings: "Warnings",
    *,
    silent: bool = True,
) -> None:
    """Send records as they appear in metrics.jsonl, and those that are left at the end.

    Args:
      config: the run's settings.
      place: the run folder, and how far W&B has read in it.
      mode: online or offline.
      ending: set when training has ended: nothing is written any more.
      warnings: told of the first failure.
      silent: whether W&B keeps its own words to itself.
    """
    if mode == "online" and not has_key(os.environ):
        # wandb would ask for a key on the terminal and wait for the answer.
        warnings.warn("no W&B key was found (WANDB_API_KEY or wandb login): writing offline")
        mode = "offline"
    run = _start(config, place, mode, warnings, silent)
    if run is None:
        return
    ended = False
    while not ended:
        ended = ending.wait(POLL_SECONDS)  # before reading: then nothing comes after
        for record in place.new_records():
            try:
                run.log({"step": record.step, **record.metrics})
            except (Exception, SystemExit) as error:  # any: the next record may pass
                warnings.warn(f"W&B refused a record: {_one_line(error)}; metrics.jsonl has it")
        place.keep()
    try:
        run.finish()
    except (Exception, SystemExit) as error:
        warnings.warn(f"W&B did not finish: {_one_line(error)}")


@dataclass
class Place:
    """A run folder, and how far in its metrics.jsonl W&B has read.

    Attributes:
      folder: of the run.
      identity: W&B's id of the run.
      sent: bytes of metrics.jsonl that W&B has had.
    """

    folder: Path
    identity: str
    sent: int

    @classmethod
    def open(cls, folder: Path, sent_at_most: int | None = None, *, new: bool = False) -> "Place":
        """Read what the folder says of an earlier mirror.

        Args:
          folder: of the run.
          sent_at_most: the size of metrics.jsonl before this start of a run wrote to it; a resumed
            run has dropped the rest, and writes it again.
          new: forget the earlier one.
        """
        identity = "" if new else _read(folder / ID_FILE)
        if not identity.isalnum():
            identity, sent = secrets.token_hex(8), 0
        else:
            # A folder that has the id alone is older than this note; all of it has been sent.
            known = _read(folder / SENT_FILE)
            metrics = folder / "metrics.jsonl"
            there = metrics.stat().st_size if metrics.exists() else 0
            there = there if sent_at_most is None else min(there, sent_at_most)
            sent = min(int(known), there) if known.isdecimal() else there
        return cls(folder, identity, sent)

    def new_records(self) -> Iterator[Record]:
        """Yield the records of the whole lines not sent yet; damaged lines are passed over."""
        with contextlib.suppress(OSError), (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(self.sent)
            for line in file:
                if not line.endswith(b"\n"):  # the rest of it is still being written
                    return
                self.sent += len(line)
                record = parse_record(line)
                if record is not None:
                    yield record

    def keep(self) -> None:
        """Note the id and how far W&B has read; a disk that takes no note loses no metrics."""
        with contextlib.suppress(OSError):
            for name, text in ((ID_FILE, self.identity), (SENT_FILE, str(self.sent))):
                path = self.folder / name
                if _read(path) != text:
                    write_text(path, text + "\n")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


class Warnings:
    """Passes on the first warning alone."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Pass it on to `warn`."""
        self._warn, self._lock = warn, threading.Lock()
        self.told = False

    def warn(self, text: str) -> None:
        """Warn in one line, from any thread, if nothing was said before."""
        with self._lock:
            first, self.told = not self.told, True
        if first:
            self._warn(text)


def _silence() -> Callable[[str], None]:
    """Send all that is printed here nowhere; return what still reaches training's stderr.

    W&B's own process must not hold the pipes of training open either.
    """
    stderr = os.dup(2)  # not inherited by processes that are started here
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)

    def warn(text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(stderr, f"warning: {text}\n".encode(errors="replace"))

    return warn


def _watch(ending: threading.Event, warnings: Warnings) -> None:
    """Wait for the end of training, then for our own: there is no time to wait for a network."""
    while os.read(0, 1):
        pass
    ending.set()
    time.sleep(CLOSE_TIMEOUT + 1)  # training itself, where it lives, has ended us before
    warnings.warn("W&B did not finish: what is missing there is in metrics.jsonl")
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # W&B's own process with us
    os._exit(1)


def _start(config: Config, place: Place, mode: Mode, warnings: Warnings, silent: bool) -> Any:
    """Return the started `wandb.Run`, offline where the server fails; None if neither works."""
    try:
        run = _init(config, place, mode, silent)
        place.keep()
        return run
    except (Exception, SystemExit) as error:  # any: the reason is told, the training goes on
        if mode == "offline" or isinstance(error, ImportError):
            warnings.warn(f"W&B is left out: {_one_line(error)}; metrics.jsonl has it all")
            return None
        warnings.warn(f"W&B cannot be reached: {_one_line(error)}; writing offline")
        return _start(config, place, "offline", warnings, silent)


def _init(config: Config, place: Place, mode: Mode, silent: bool) -> Any:
    """Import wandb and begin, or continue, the run; returns a `wandb.Run`."""
    if silent:  # the setting below comes too late for what wandb prints about the key
        os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    options: dict[str, Any] = {
        "init_timeout": INIT_TIMEOUT,
        "silent": silent,
        "console": "off",  # the console's text is training's alone
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
        id=place.identity,
        resume="allow",
        dir=str(place.folder),
        mode=mode,
        config=_described(config, place.folder),
        settings=settings,
    )
    # Our step is the axis: W&B's own refuses steps that a resumed run takes a second time.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


def _named(config: Config, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return W&B's project and name; a project that was set beats the user's own variable."""
    project = config.output.wandb_project
    if project == OutputConfig().wandb_project:
        project = environment.get("WANDB_PROJECT") or project
    return project, environment.get("WANDB_NAME") or config.run.run_name


def _described(config: Config, folder: Path) -> dict[str, Any]:
    """Return what W&B shows beside the curves: the settings and environment.json."""
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
