"""A relay between JAX's client and its coordination service, so that a lost service aborts nobody.

JAX aborts a process with a stack trace as soon as the connection to its service breaks (0.10 and
0.12), before anybody could say which host is lost. So each process connects to a socket of its own,
which is passed on to the service. If the service goes, its side of the relay ends and JAX's stays
open, without an answer: cluster.heartbeat then names the loss and ends the process with one line.

The socket is a file in a folder that only this user may enter. Knows nothing of what it passes on.
"""

import contextlib
import shutil
import socket
import tempfile
import threading
from pathlib import Path

_BLOCK = 1 << 16


class Relay:
    """Passes the connections to a socket file on to a service."""

    def __init__(self, host: str, port: int) -> None:
        """Start to relay, in threads.

        Args:
          host: of the service.
          port: of the service.
        """
        self._service = (host, port)
        self._folder = Path(tempfile.mkdtemp(prefix="spectral_dist_"))  # mode 0700
        self._path = self._folder / "jax"  # short: the name of a socket has 107 bytes
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self._path))
        self._listening.listen()
        self._held: list[socket.socket] = []
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    @property
    def address(self) -> str:
        """Where JAX's client connects, as gRPC names it."""
        return f"unix:{self._path}"

    def close(self) -> None:
        """Delete the socket's file, once JAX has connected; the connection stays."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            ours, _ = self._listening.accept()
            try:
                theirs = socket.create_connection(self._service)
            except OSError:
                if self._held:  # the service is gone: keep JAX waiting
                    self._held.append(ours)
                else:  # not yet there: JAX tries again
                    ours.close()
                continue
            theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._held += [ours, theirs]
            for one, other in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Pass on what one side sends until it ends; the other side is not told of the end."""
    with contextlib.suppress(OSError):
        while block := one.recv(_BLOCK):
            other.sendall(block)
