"""Modules of this package run as child processes that talk JSON lines over a pipe.

Owns how such a process is started, its environment, what it says, and its end: it is stopped by who
started it, it ends by itself once that one is gone, and why it died is one line. Used where a
process of its own is needed: for a second core, or an environment that JAX reads only once. A new
interpreter, not a fork (JAX's threads would not survive one) and not `multiprocessing` (whose
children import the main module again, JAX included).

Not started this way: the copies of a training run (`launch.py`: they share the console and get its
signals), the control service (`cluster/start.py`) and the mirror of W&B (`outputs/wandb.py`), which
have to outlive their parent. Imports no JAX.
Read `ModuleProcess`; a module that is started uses `read_request` and `say`.
"""

import contextlib
import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

# Time between asking a process to end, so that it can remove what it left, and killing it.
_GRACE_SECONDS = 2.0


class ModuleProcess:
    """One module of this package, running in a process of its own.

    Use it as a context manager: leaving the block stops the process if it still runs.
    """

    def __init__(
        self,
        module: str,
        words: Sequence[str] = (),
        *,
        request: Any = None,
        environment: Mapping[str, str | None] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Start `python -m module words`; it finds this package even where none is installed.

        Args:
          module: dotted name.
          words: of its command line.
          request: what its `read_request` returns; anything that JSON can write.
          environment: variables that differ from this process's own; None removes one.
          seconds: after which it is killed (default: never).

        Raises:
          OSError: if no process can be started.
        """
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._seconds, self._late = seconds, False
        self.last_line = ""
        # Nothing is ever written to this pipe: the child sees its end when we are gone, however we
        # died. The write end is a file object, so that a forgotten child ends as well.
        watched, alive = os.pipe()
        self._alive = os.fdopen(alive, "wb")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(watched), module, *words],
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
        # A process that has ended already says so by its exit code, not by a broken pipe.
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
        """The number of the process."""
        return self._process.pid

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects that it says, as they come, until it has said its last.

        Other lines on its standard output are left out. One call for each process.
        """
        while (event := self._events.get()) is not None:
            yield event

    def wait(self) -> int:
        """Return the exit code once the process has ended, negative where a signal ended it."""
        code = self._process.wait()
        for reader in self._readers:
            reader.join(_GRACE_SECONDS)  # a process that it left behind may hold the pipe
        self._timer.cancel()
        self._alive.close()
        return code

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """End the process and wait until it has: from any thread, more than once if need be.

        Args:
          grace: seconds that it gets to end by itself (by `SystemExit`, which `finally` blocks
            see) before it is killed; 0 kills it at once.
        """
        if grace > 0:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self._process.kill()  # does nothing where it has ended
        self.wait()

    def ending(self) -> str:
        """Return how the process ended, as the end of a sentence about it, in one line."""
        code = self.wait()
        if self._late:
            return f"took more than {self._seconds:g} s"
        # What the kernel kills for want of memory dies of this signal, and writes nothing.
        why = ", as where memory is short" if code == -signal.SIGKILL else ""
        said = f": {self.last_line}" if self.last_line and code >= 0 else ""
        return f"ended (exit {code}{why}){said}"

    def _give_up(self) -> None:
        self._late = self._process.poll() is None
        self._process.kill()

    def _listen(self, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self._events.put(event)
        self._events.put(None)

    def _keep_last(self, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                self.last_line = " ".join(line.decode(errors="replace").split()) or self.last_line


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    # The child looks for modules where this process does: a checkout need not be installed.
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    wanted = {**os.environ, "PYTHONPATH": path, **changes}
    return {name: value for name, value in wanted.items() if value is not None}


# ---- in the child


def read_request() -> Any:
    """Return what the process that started this one asks for."""
    return json.loads(sys.stdin.read())


def say(event: Mapping[str, Any]) -> None:
    """Tell the process that started this one; end this one if nobody listens any more."""
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(1)


def _leave_with_parent(watched: int) -> None:
    """End this process once the parent is gone: nobody would read what it finds."""
    os.read(watched, 1)  # returns when the last writer, our parent, has closed its end
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)  # the compiler, for one, lets no signal handler run
    os._exit(1)


def _main(watched: int, module: str, words: Sequence[str]) -> None:
    os.set_inheritable(watched, False)
    # By an exception, so that temporary files are removed on the way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Ctrl-C reaches the whole group of processes: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, args=(watched,), daemon=True).start()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
