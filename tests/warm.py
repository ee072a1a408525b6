"""Programs that begin as forks of one process which has loaded JAX already.

Loading JAX, Flax, Grain and Orbax takes 3.5 s of a core, and the tests start some 200 programs that
do. `start_warm` takes the place of `subprocess.Popen` there: a process beside the tests, one for
each process that runs tests, loads all of that once, and forks for every program. A fork has its
own arguments, folder, environment and streams, and can be signalled, killed and waited for.

What a fork cannot show is how a program starts. Where a variable that is read while Python or a
library loads differs from that process's, `start_warm` starts the program for real; and tests whose
matter is the start use `subprocess`.

Read `start_warm` and `main`.
"""

import gc
import io
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
# Pid; exit status as `waitpid` gives it; seconds of the processors, with all that it waited for.
_STARTED, _ENDED = struct.Struct("i"), struct.Struct("id")
_LONGEST_REQUEST = 100_000
# Read while Python or a library is loaded, and not to be set afterwards.
_FIXED = ("PYTHON", "LD_", "OPENBLAS_", "OMP_", "MKL_", "MALLOC_", "LANG", "LC_")
# These processes' own place in a run is read when JAX starts, not when it is loaded.
_LATE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

# ---- in the tests ----

_server: "tuple[subprocess.Popen[bytes], socket.socket, dict[str, str]] | None" = None
_lock = threading.Lock()


def start_warm(command: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
    """Start `python -m MODULE ...` or `python -c CODE ...` as a fork; else as `Popen` does.

    Args:
      command: the interpreter of the tests and what follows it.
      **options: of `subprocess.Popen`: env, cwd, stdin, stdout, stderr, text and the like.
    """
    environment = options.get("env") or dict(os.environ)
    if not _can_fork(environment):
        return subprocess.Popen(command, **options)
    options["env"] = environment
    return WarmProcess(command, **options)


def _can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a fork with this environment is what a real start would be."""
    loaded = _start_server()[2]
    path = environment.get("PYTHONPATH", str(ROOT))
    names = {n for n in environment.keys() | loaded.keys() if n.startswith(_FIXED)}
    names -= {"PYTHONPATH", "OPENBLAS_NUM_THREADS"}
    gone = {n for n in loaded if n.startswith("JAX_")} - environment.keys()
    same = all(environment.get(name) == loaded.get(name) for name in names)
    return same and not gone and path == str(ROOT) and "OPENBLAS_NUM_THREADS" not in environment


def _start_server() -> "tuple[subprocess.Popen[bytes], socket.socket, dict[str, str]]":
    global _server
    with _lock:
        if _server is None or _server[0].poll() is not None:
            _server = _start()
        return _server


def _start() -> "tuple[subprocess.Popen[bytes], socket.socket, dict[str, str]]":
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # OpenBLAS would start a thread for each further core when NumPy is loaded.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", str(its.fileno())],
        env=environment,
        cwd=ROOT,
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
    )
    its.close()
    return process, ours, environment


def stop_server() -> None:
    """End the process that forks, if there is one; its forks live on."""
    global _server
    if _server is not None:
        _server[1].close()
        before = _of_children()
        _server[0].wait()
        # Its forks were counted one by one: the last test would be charged all of them again.
        WarmProcess.all_cpu_seconds -= _of_children() - before
        _server = None


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class WarmProcess(subprocess.Popen):  # type: ignore[type-arg]
    """A program that was forked: a Popen whose process is the child of another.

    Three methods of CPython's own are replaced, the same in 3.11 and 3.12: those that start, ask
    and wait. Pipes, `communicate`, signals and the rest are Popen's.

    Attributes:
      all_cpu_seconds: of all programs that were waited for, and of what they waited for.
      count: of all programs that were forked.
    """

    all_cpu_seconds = 0.0
    count = 0

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        """Ask for a fork; `rest` is (executable, preexec_fn, ..., the ends of the pipes, ...)."""
        cwd, environment = rest[4], rest[5]
        stdin, _, _, stdout, _, stderr = rest[9:15]
        assert args[0] == sys.executable, args
        folder = os.path.abspath(cwd or ".")
        request = {"args": list(args)[1:], "cwd": folder, "env": dict(environment)}
        self._collecting = threading.Lock()
        self._status, its_end = os.pipe()
        streams = [own if own != -1 else fd for fd, own in enumerate((stdin, stdout, stderr))]
        server = _start_server()[1]
        try:
            socket.send_fds(server, [json.dumps(request).encode()], [*streams, its_end])
        finally:
            os.close(its_end)
            self._close_pipe_fds(*rest[9:15])  # type: ignore[attr-defined]
        self._child_created = True
        WarmProcess.count += 1
        (self.pid,) = _STARTED.unpack(self._read(_STARTED.size))

    def _read(self, size: int) -> bytes:
        said = os.read(self._status, size)
        if len(said) != size:
            self.returncode = -signal.SIGKILL  # nobody knows
            raise RuntimeError(f"the process that forks has ended, before {self.args} did")
        return said

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._ready(0):
            self._collect()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            if not self._ready(timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._collect()
        assert self.returncode is not None
        return self.returncode

    def _ready(self, timeout: float | None) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            return bool(selector.select(timeout))

    def _collect(self) -> None:
        with self._collecting:  # several threads may have found it ready
            if self.returncode is None:
                status, used = _ENDED.unpack(self._read(_ENDED.size))
                WarmProcess.all_cpu_seconds += used
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self._status)


# ---- the process that forks ----


def main(fd: int) -> None:
    """Load everything, then fork for each request until the tests close the connection."""
    _load()
    loaded = dict(os.environ)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of all that is shared
    requests = socket.socket(fileno=fd)
    children: dict[int, tuple[int, int]] = {}  # by pidfd: pid, where its end is told
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    selector.unregister(key.fileobj)
                    _tell_end(*children.pop(key.fd))
                    os.close(key.fd)
                    continue
                data, fds, _, _ = socket.recv_fds(requests, _LONGEST_REQUEST, 4)
                if not data:
                    return
                assert len(os.listdir("/proc/self/task")) == 1, "a fork has one thread"
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    requests.close()
                    for pidfd, (_, told) in children.items():
                        os.close(pidfd)
                        os.close(told)
                    _become(json.loads(data), fds, loaded)
                for stream in fds[:3]:
                    os.close(stream)
                os.write(fds[3], _STARTED.pack(pid))
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid, fds[3]
                selector.register(pidfd, selectors.EVENT_READ)


def _load() -> None:
    """Load what the programs load, without making a device or a thread."""
    import spectral_dist.data.tokens
    import spectral_dist.inference
    import spectral_dist.run
    import spectral_dist.scoring  # noqa: F401


def _tell_end(pid: int, told: int) -> None:
    _, status, used = os.wait4(pid, 0)
    try:
        os.write(told, _ENDED.pack(status, used.ru_utime + used.ru_stime))
    except BrokenPipeError:  # nobody waits for it any more
        pass
    finally:
        os.close(told)


def _become(request: dict[str, Any], fds: list[int], loaded: Mapping[str, str]) -> NoReturn:
    """Be the program that was asked for, to its end."""
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # as JAX does when it is loaded
    _configure_jax(loaded)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())
    kind, what, *words = request["args"]
    if kind == "-m":
        sys.argv, sys.path[0] = [what, *words], request["cwd"]
        sys.modules.pop(what, None)  # it would be warned of a module that is there already
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c", request["args"]
        sys.argv, sys.path[0] = ["-c", *words], ""
        program = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), program.__dict__)
    sys.exit(0)


def _configure_jax(loaded: Mapping[str, str]) -> None:
    """Let JAX have the variables that it reads only once, where they differ."""
    import jax

    for name, text in os.environ.items():
        if name.startswith("JAX_") and name not in _LATE and loaded.get(name) != text:
            before = getattr(jax.config, name.lower())
            value = text.lower() in ("1", "true", "yes") if isinstance(before, bool) else text
            jax.config.update(name.lower(), type(before)(value) if before is not None else value)


if __name__ == "__main__":
    main(int(sys.argv[1]))
