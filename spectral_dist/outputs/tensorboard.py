"""TensorBoard: `spectral-dist tensorboard RUN` writes a run's metrics as event files.

It reads metrics.jsonl, as the W&B mirror does, so training knows nothing of it: a run may be
written while it trains (--follow), afterwards, or on another machine. Owns the only import of
`tensorboardX`. Read `EventFiles`.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectral_dist.command_line import Parser, say
from spectral_dist.outputs.jsonl import parse_record

_POLL_SECONDS = 5.0
_SUFFIX = ".spectral"  # of our files: no other is ever removed


def make_parser() -> Parser:
    """Return the argument parser of this command."""
    parser = Parser(
        prog="spectral-dist tensorboard",
        description="Write the metrics of runs as TensorBoard event files, in RUN/tensorboard.",
    )
    parser.add_run_folder(several=True)
    parser.add_argument(
        "--follow", action="store_true", help="go on as metrics are added, until Ctrl-C"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Write event files; return the exit code.

    Raises:
      ValueError: if a folder is no run, or tensorboardX is not installed.
    """
    flags = make_parser().read(argv)
    with contextlib.ExitStack() as closing:
        runs = [closing.enter_context(EventFiles(folder)) for folder in flags.folder]
        for run in runs:
            say(f"{run.update()} records are in {run.folder}")
        roots = " ".join(sorted({str(run.root) for run in runs}))
        say(f"to look at them: tensorboard --logdir {roots}")
        while flags.follow:
            time.sleep(_POLL_SECONDS)
            for run in runs:
                run.update()
    return 0


class EventFiles:
    """The event files of one run, in step with its metrics.jsonl; a context manager.

    Attributes:
      root: the folder of the run's folder, for TensorBoard's --logdir.
      folder: where the event files are.
    """

    def __init__(self, run: Path) -> None:
        """Look at a run folder without changing it.

        Raises:
          ValueError: if it has no metrics.jsonl, or tensorboardX is not installed.
        """
        self._metrics = run / "metrics.jsonl"
        if not self._metrics.is_file():
            raise ValueError(f"RUN={str(run)!r}: is no run folder: no metrics.jsonl in it")
        try:
            from tensorboardX import event_file_writer
        except ImportError as error:
            raise ValueError(f"tensorboard: {error}; pip install tensorboardX brings it") from error
        # Not its SummaryWriter: that has a thread of its own, which `flush` does not wait for.
        self._library: Any = event_file_writer
        self.root, self.folder = run.resolve().parent, run / "tensorboard"
        self._writer: Any = None
        self._file, self._read = 0, 0  # inode, and bytes read of it

    def __enter__(self) -> "EventFiles":
        """Return itself; nothing is written before `update`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def update(self) -> int:
        """Write what is new; return how many records that were.

        A resumed run replaces metrics.jsonl by one without the steps that it repeats. Then all is
        written anew, because an event file cannot be cut.

        Raises:
          ValueError: if a file cannot be read or written.
        """
        try:
            with self._metrics.open("rb") as file:
                stat = os.fstat(file.fileno())
                if self._writer is None or stat.st_ino != self._file or stat.st_size < self._read:
                    self._writer = self._begin(stat.st_ino)
                file.seek(self._read)
                count = 0
                for line in file:
                    if not line.endswith(b"\n"):  # the rest of it is still being written
                        break
                    self._read += len(line)
                    count += self._write(line)
            self._writer.flush()
        except FileNotFoundError:
            return 0  # put aside by a new run of the same name: there may be another one soon
        except OSError as error:
            raise ValueError(f"{error.filename or self.folder}: {error.strerror}") from error
        return count

    def _begin(self, inode: int) -> Any:
        """Remove our event files and begin a new one; return its writer."""
        if self._writer is not None:
            self._writer.close()
        for old in self.folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
            old.unlink()
        self.folder.mkdir(exist_ok=True)
        self._file, self._read = inode, 0
        return self._library.EventsWriter(str(self.folder / "events"), _SUFFIX)

    def _write(self, line: bytes) -> int:
        record = parse_record(line)
        if record is None:
            return 0
        event = self._library.event_pb2.Event(
            step=record.step, wall_time=json.loads(line).get("time", 0.0)
        )
        for name, value in record.metrics.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._writer.write_event(event)
        return 1
