"""The control service of a run of several processes, in a process of its own beside process 0.

Owns two servers: a small table of texts (XML-RPC, of the standard library) through which processes
report in, send heartbeats, tell how they ended and agree on when to stop; and JAX's coordination
service, which JAX itself needs. They are not inside process 0, because JAX aborts every process
when its service goes: so process 0 may be lost, and the others still find out and say so.

It ends after process 0, once nobody has called for a while. Started by `start.start_processes` as
`python -m spectral_dist.cluster.service PORT COUNT`; read `main` first.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from socketserver import ThreadingMixIn
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

# Every process calls each second, so a service that hears nothing for so long is alone.
_QUIET_SECONDS = 5.0


class Table:
    """Texts by key, for all processes; keys are paths like "heartbeats/3"."""

    def __init__(self) -> None:
        """Begin empty."""
        self._values: dict[str, str] = {}
        self._lock = threading.Lock()
        self.called = time.monotonic()
        self.closing = False  # process 0 has ended: who reports in now is of another start

    def put(self, key: str, value: str) -> bool:
        """Store a text."""
        with self._lock:
            self._values[key] = value
            self.called = time.monotonic()
        return True

    def get(self, key: str) -> str:
        """Return a text, empty where there is none."""
        with self._lock:
            self.called = time.monotonic()
            return self._values.get(key, "")

    def under(self, folder: str) -> str:
        """Return every text whose key begins with "folder/", by the rest of the key, as JSON."""
        prefix = f"{folder}/"
        with self._lock:
            self.called = time.monotonic()
            found = {k[len(prefix) :]: v for k, v in self._values.items() if k.startswith(prefix)}
        return json.dumps(found)

    def report(self, index: str, text: str) -> str:
        """Store who a process is, unless one has its index already; return all of them, as JSON.

        Raises:
          ConnectionError: in the caller a Fault, where this service serves a run that has ended.
        """
        if self.closing:
            raise ConnectionError("this run has ended")
        with self._lock:
            self._values.setdefault(f"here/{index}", text)
        return self.under("here")

    def heartbeat(self, index: str, text: str) -> str:
        """Store a process's heartbeat; return all of them, and who has ended, as JSON."""
        self.put(f"heartbeats/{index}", text)
        found = {name: json.loads(self.under(name)) for name in ("heartbeats", "ended")}
        return json.dumps(found)


class _Handler(SimpleXMLRPCRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for all calls
    disable_nagle_algorithm = True
    timeout = 60.0  # ends the thread of a client that is gone


class _Server(ThreadingMixIn, SimpleXMLRPCServer):
    daemon_threads = True
    address_family = socket.AF_INET6
    allow_reuse_address = True

    def server_bind(self) -> None:
        # Hosts are named by IPv4 and IPv6 addresses: listen to both.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the client sees that its connection broke, and acts on it."""


def serve_table(port: int) -> tuple[SimpleXMLRPCServer, Table]:
    """Serve a new table on a port, in a thread.

    Args:
      port: to listen at; 0 takes a free one.

    Raises:
      OSError: if the port is taken.
    """
    server = _Server(("::", port), requestHandler=_Handler, logRequests=False, allow_none=False)
    table = Table()
    server.register_instance(table)
    threading.Thread(target=server.serve_forever, name="control", daemon=True).start()
    return server, table


def free_port() -> int:
    """Return a port that nobody listens at now; another program may still take it first."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::", 0))
        return probe.getsockname()[1]


def main(argv: Sequence[str]) -> int:
    """Serve until process 0 has ended, which closes our standard input, and nobody calls.

    Writes one line to standard output: "ready", or why it cannot serve.

    Returns:
      1 where a later try may succeed, 2 where none will.
    """
    port, count = int(argv[0]), int(argv[1])
    # A signal to the process group is process 0's to answer; this service is needed until the end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    try:
        _, table = serve_table(port)
    except OSError as error:
        sys.stdout.write(f"port {port} cannot be listened at: {error.strerror}\n")
        return 1
    jax_port = free_port()
    from spectral_dist.cluster import jax_service  # loads JAX: a taken port is reported without

    try:
        service = jax_service.start_service(jax_port, count)
    except ValueError as error:
        sys.stdout.write(f"{error}\n")
        return 2
    table.put("jax_port", str(jax_port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()  # ends with process 0
    table.closing = True
    while time.monotonic() - table.called < _QUIET_SECONDS:
        time.sleep(0.5)
    del service
    os._exit(0)  # the destructor of JAX's service would wait for processes that are gone


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
