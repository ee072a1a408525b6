"""Weights & Biases: a mirror of metrics.jsonl, never more than that.

Owns the only import of `wandb`, the choice between online and offline, and the thread that keeps
the network away from training. Must not know what the metrics mean. Read `WandbMirror` first.
"""

import atexit
import contextlib
import netrc
import os
import queue
import secrets
import signal
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from spectral_dist.atomic_file import write_text
from spectral_dist.outputs import warn_on_stderr
from spectral_dist.settings import Config
from spectral_dist.training.metrics import Record

INIT_TIMEOUT = 30.0  # seconds for the server's first answer
# Seconds that the end of a run waits for W&B: a run that a scheduler ends has little time.
CLOSE_TIMEOUT = 8.0
UPLOAD_TIMEOUT = 5.0  # seconds of the above for what is still to be uploaded
_LEAVE_SECONDS = 0.5  # for W&B's library to tell its process that we end
QUEUE_RECORDS = 4096  # records kept for a slow network; then the newest are dropped and counted
ID_FILE = "wandb_id.txt"

Mode = Literal["online", "offline", "disabled"]


class WandbMirror:
    """Sends records to Weights & Biases from a thread of its own; an `Output`.

    `write` only puts the record into a bounded queue. Whatever goes wrong (no network, a wrong
    key, a hanging server, a full disk) prints one warning and leaves training alone; the figures
    are in metrics.jsonl in any case.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        resume: bool,
        warn: Callable[[str], None] = warn_on_stderr,
        close_timeout: float = CLOSE_TIMEOUT,
    ) -> None:
        """Start mirroring; returns at once, before the server has answered.

        Args:
          config: resolved; its flat settings are logged, and nothing of the environment.
          folder: of the run. W&B's files and the run's id are kept in it.
          resume: continue the curve of the id found in the folder; otherwise begin a new one.
          warn: called at most once, from any thread, with one line.
          close_timeout: the most seconds that `close` waits.
        """
        self._warn = warn
        self._warn_lock = threading.Lock()
        self._warned = False
        self._close_timeout = close_timeout
        self._closing = threading.Event()
        self._queue: queue.Queue[Record | None] = queue.Queue(QUEUE_RECORDS)
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Records not sent, because the queue was full or W&B could not be started."""
        mode = choose_mode(config.output.wandb_mode, os.environ)
        if mode == "online" and not has_key(os.environ):
            # wandb would ask for a key on the terminal and wait for the answer.
            self._warn_once("no W&B key was found (WANDB_API_KEY or wandb login): writing offline")
            mode = "offline"
        if mode == "disabled":
            return
        # A daemon: where the network hangs for ever the program still ends.
        self._thread = threading.Thread(
            target=self._mirror, args=(config, folder, mode, resume), name="wandb", daemon=True
        )
        self._thread.start()

    def write(self, record: Record) -> None:
        """Queue one record; never waits."""
        if self._thread is None or self._closing.is_set():
            return
        if not self._thread.is_alive():
            self.dropped += 1
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            self._warn_once("W&B does not keep up: records are dropped; metrics.jsonl has them all")

    def close(self) -> None:
        """Send what is queued and finish the W&B run, within the timeout."""
        thread = self._thread
        if thread is None or self._closing.is_set():
            return
        self._closing.set()
        with contextlib.suppress(queue.Full):  # full: the thread sees `_closing` when it is empty
            self._queue.put_nowait(None)
        thread.join(self._close_timeout)
        if thread.is_alive():
            self._warn_once(
                f"W&B did not finish within {self._close_timeout:.0f} s: what is missing there is"
                " in metrics.jsonl"
            )
            _end_service_at_exit()

    def _mirror(self, config: Config, folder: Path, mode: Mode, resume: bool) -> None:
        """Run in the thread: start W&B, send records until the end, finish."""
        run = self._start(config, folder, mode, resume)
        if run is None:
            return
        try:
            while (record := self._next()) is not None:
                self._send(run, record)
        finally:
            try:
                run.finish()
            except (Exception, SystemExit) as error:
                self._warn_once(f"W&B did not finish: {_one_line(error)}")

    def _start(self, config: Config, folder: Path, mode: Mode, resume: bool) -> Any:
        """Return the started `wandb.Run`, offline where the server fails; None if neither works."""
        try:
            return _start_run(config, folder, mode, resume)
        except (Exception, SystemExit) as error:  # any: a mirror must not stop the run
            if mode == "offline" or isinstance(error, ImportError):
                self._warn_once(f"W&B is left out: {_one_line(error)}; metrics.jsonl has it all")
                return None
            self._warn_once(
                f"W&B cannot be reached: {_one_line(error)}; writing offline, for `wandb sync`"
            )
            return self._start(config, folder, "offline", resume=True)

    def _next(self) -> Record | None:
        """Return the next record; None at the end of the run."""
        while True:
            try:
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                if self._closing.is_set():
                    return None

    def _send(self, run: Any, record: Record) -> None:
        try:
            run.log({"step": record.step, **record.metrics})
        except (Exception, SystemExit) as error:
            self.dropped += 1
            self._warn_once(f"W&B refused a record: {_one_line(error)}; metrics.jsonl has it")

    def _warn_once(self, text: str) -> None:
        with self._warn_lock:
            first, self._warned = not self._warned, True
        if first:
            self._warn(text)


def _end_service_at_exit() -> None:
    """Let W&B's own process not hold up our exit: its library waits there without a limit.

    Killed before the library has taken its leave, it would make that a traceback; hence at the very
    end, by a thread that is there already.
    """
    leaving = threading.Event()
    atexit.register(leaving.set)

    def end() -> None:
        leaving.wait()
        time.sleep(_LEAVE_SECONDS)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                name, _, rest = stat.read_text().partition(" (")[2].rpartition(") ")
                if name == "wandb-core" and int(rest.split()[1]) == os.getpid():
                    os.kill(int(stat.parent.name), signal.SIGKILL)

    threading.Thread(target=end, name="wandb-end", daemon=True).start()


def _start_run(config: Config, folder: Path, mode: Mode, resume: bool) -> Any:
    """Import wandb and begin, or continue, the run; returns a `wandb.Run`."""
    # The setting `silent` below comes too late for what wandb prints about the key.
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    identity = _run_id(folder, resume)
    options: dict[str, Any] = {
        "init_timeout": INIT_TIMEOUT,
        "finish_timeout": UPLOAD_TIMEOUT,
        "silent": True,
        "console": "off",  # the console's text is ours alone, and its bar is no log
        "disable_git": True,  # a remote's address may hold a password
        "save_code": False,
    }
    # Older releases do not know every option, and refuse those that they do not know.
    known = getattr(wandb.Settings, "model_fields", options)
    settings = wandb.Settings(**{name: value for name, value in options.items() if name in known})
    run = wandb.init(
        project=config.output.wandb_project,
        name=config.run.run_name,
        id=identity,
        resume="allow",
        dir=str(folder),
        mode=mode,
        config=config.flat(),
        settings=settings,
    )
    # Our step is the axis: W&B's own refuses steps that a resumed run takes a second time.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


def _run_id(folder: Path, resume: bool) -> str:
    """Return the id of the folder's curve, made anew unless the run is resumed."""
    path = folder / ID_FILE
    if resume and path.exists():
        identity = path.read_text(encoding="ascii").strip()
        if identity.isalnum():
            return identity
    identity = secrets.token_hex(8)
    write_text(path, identity + "\n")
    return identity


def choose_mode(setting: str, environment: Mapping[str, str]) -> Mode:
    """Return where the figures go, by the setting and the user's environment.

    "auto" follows WANDB_MODE where that is set, and is online with a key and offline without.
    """
    asked = environment.get("WANDB_MODE", "").strip().lower() if setting == "auto" else setting
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


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
