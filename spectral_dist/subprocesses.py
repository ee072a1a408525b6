"""Child processes: run a module of this package in one, and read JSON lines from its pipe.

Owns how a child is started, its environment, its events and its end. The parent stops it; it ends
by itself if the parent is gone; and why it died is one line. Used where work needs a second core,
or an environment variable that JAX reads only once.

Not started this way: the processes of a training run (`launch.py`), which share the console and its
signals; the control service (`cluster/start.py`) and what follows a run (`outputs/follower.py`),
which must outlive their parent. Imports no JAX.
Read `ModuleProcess`, then `run_module`. The module that is started uses `read_request` and `say`.
"""

import contextlib
import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

# Time between SIGTERM, on which a process removes its temporary files, and SIGKILL.
_GRACE_SECONDS = 2.0


class ModuleProcess:
    """A child process that runs one module of this package.

    Use it as a context manager: leaving the block stops the process if it still runs.
    """

    def __init__(
        self,
        module: str,
        argv: Sequence[str] = (),
        *,
        request: Any = None,
        environment: Mapping[str, str | None] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Start `python -m module argv`, with the modules that this process can import.

        Args:
          module: dotted name.
          argv: arguments on its command line.
          request: what its `read_request` returns; a value that JSON can write.
          environment: variables that differ from this process's; None removes a variable.
          seconds: time limit, after which it is killed (default: none).

        Raises:
          OSError: if no process can be started.
        """
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._seconds, self._late = seconds, False
        self.last_line = ""
        # Nothing is ever written to this pipe: the child sees it close when we are gone, however we
        # died. A file object closes its end even if the caller only forgets the child.
        watched, alive = os.pipe()
        self._alive = os.fdopen(alive, "wb")
        try:
            # A new interpreter: JAX's threads would not survive a fork, and the children of
            # `multiprocessing` import the main module again, JAX included.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(watched), module, *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(environment or {}),
                pass_fds=(watched,),
            )
        except BaseException:
            self._alive.close()
            raise
        finally:
            os.close(watched)
        streams = {self._listen: self._process.stdout, self._keep_last: self._process.stderr}
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in streams.items()
        ]
        for reader in self._readers:
            reader.start()
        self._timer = threading.Timer(seconds or 0.0, self._give_up)
        self._timer.daemon = True
        if seconds is not None:
            self._timer.start()
        assert self._process.stdin is not None
        # If the process has already ended, its exit code says so; a broken pipe would hide it.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(json.dumps(request).encode())

    def __enter__(self) -> "ModuleProcess":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the process if it still runs."""
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects that the process writes, as they come, until its output ends.

        Other lines on its standard output are ignored. Call it once for each process.
        """
        while (event := self._events.get()) is not None:
            yield event

    def wait(self) -> int:
        """Wait for the process to end; return its exit code, negative if a signal ended it."""
        code = self._process.wait()
        for reader in self._readers:
            reader.join(_GRACE_SECONDS)  # limited: its own children may keep the pipe open
        self._timer.cancel()
        self._alive.close()
        return code

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """Stop the process and wait for its end; from any thread, and safe to call again.

        Args:
          grace: seconds to end by itself, with its `finally` blocks, before it is killed; 0 kills
            it at once.
        """
        if grace > 0:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self._process.kill()  # does nothing if it has ended
        self.wait()

    def ending(self) -> str:
        """Return how the process ended, as the end of a sentence: "ended (exit 1): no space"."""
        code = self.wait()
        if self._late:
            return f"took more than {self._seconds:g} s"
        # The kernel's out-of-memory killer sends SIGKILL, and the process can write nothing.
        why = ", as where memory is short" if code == -signal.SIGKILL else ""
        # After a signal the last line is older than the end, and explains nothing.
        said = f": {self.last_line}" if self.last_line and code >= 0 else ""
        return f"ended (exit {code}{why}){said}"

    def _give_up(self) -> None:
        self._late = self._process.poll() is None  # False if it ended just before the limit
        self._process.kill()

    def _listen(self, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                # Libraries print to standard output too: what is not JSON is not ours.
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self._events.put(event)
        self._events.put(None)

    def _keep_last(self, stderr: IO[bytes]) -> None:
        # Read to the end, or a child that writes much would block on a full pipe.
        with stderr:
            for line in stderr:
                self.last_line = " ".join(line.decode(errors="replace").split()) or self.last_line


def run_module(
    module: str,
    words: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    accept: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Run `python -m module words --json FILE` and return what it wrote there.

    Args:
      module: dotted name.
      words: of its command line.
      environment: variables that differ from this process's own.
      accept: exit codes that count as success.

    Raises:
      ValueError: with the last line that it wrote to stderr, if it fails.
    """
    # A file and not stdout, which libraries may write to.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.json"
        with ModuleProcess(module, [*words, f"--json={path}"], environment=environment) as process:
            code = process.wait()
        if code not in accept or not path.is_file():
            # A killed process writes nothing.
            reason = process.last_line or f"exit code {code}"
            raise ValueError(f"{module} {' '.join(words)}: {reason.removeprefix('error: ')}")
        return json.loads(path.read_text(encoding="utf-8"))


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    # The child finds this package where this process does: a checkout need not be installed.
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    wanted = {**os.environ, "PYTHONPATH": path, **changes}
    return {name: value for name, value in wanted.items() if value is not None}


# ---- in the child


def read_request() -> Any:
    """Return the parent's request."""
    return json.loads(sys.stdin.read())


def say(event: Mapping[str, Any]) -> None:
    """Send one event to the parent; exit if the parent no longer reads."""
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(1)


def _leave_with_parent(watched: int) -> None:
    """End this process once the parent is gone, as nobody would read its results."""
    os.read(watched, 1)  # returns when the only writer, our parent, has closed its end
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)  # inside the compiler, for example, no signal handler runs
    os._exit(1)


def _main(watched: int, module: str, argv: Sequence[str]) -> None:
    os.set_inheritable(watched, False)  # our own children must not keep the pipe open
    # An exception, so that `finally` blocks remove temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Ctrl-C reaches the whole process group: the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, args=(watched,), daemon=True).start()
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
