"""The control service of a run with several processes: a process of its own beside the lead.

Owns two servers: a small table of texts (XML-RPC, of the standard library) through which processes
report in, say that they are alive and agree on when to stop; and JAX's coordination service, which
JAX itself needs. They live outside the lead, because JAX ends every process by an abort when its
service goes: so the lead may die and the others still find out and say who it was.

It ends after the lead, once nobody has called for a while. Started by `start.start_processes` as
`python -m spectral_dist.cluster.control PORT COUNT`; read `main` first.
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

# A process that lives calls every second.
_QUIET_SECONDS = 5.0
# JAX's own timer is the last resort: the processes watch each other more closely.
_HEARTBEAT_SECONDS = 3600


class Table:
    """Texts by key, for all processes; keys are paths like "beat/3"."""

    def __init__(self) -> None:
        """Begin empty."""
        self._values: dict[str, str] = {}
        self._lock = threading.Lock()
        self.called = time.monotonic()
        self.closing = False  # the lead has gone: whoever comes now belongs to another start

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
        """Store who a process is, the first that says so; return what all have said, as JSON.

        Raises:
          ConnectionError: in the caller a Fault, where this service serves a run that has ended.
        """
        if self.closing:
            raise ConnectionError("this run has ended")
        with self._lock:
            self._values.setdefault(f"here/{index}", text)
        return self.under("here")

    def beat(self, index: str, text: str) -> str:
        """Store a process's beat; return everybody's, and who has ended, as JSON."""
        self.put(f"beats/{index}", text)
        found = {name: json.loads(self.under(name)) for name in ("beats", "ended")}
        return json.dumps(found)


class _Handler(SimpleXMLRPCRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for all calls
    disable_nagle_algorithm = True
    timeout = 60.0  # a connection that is silent so long belongs to nobody


class _Server(ThreadingMixIn, SimpleXMLRPCServer):
    daemon_threads = True
    address_family = socket.AF_INET6
    allow_reuse_address = True

    def server_bind(self) -> None:
        # Hosts are named by IPv4 and IPv6 addresses: listen to both.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the caller's matter."""


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
    """Return a port that nobody listens at now."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::", 0))
        return probe.getsockname()[1]


def main(argv: Sequence[str]) -> int:
    """Serve until the lead has closed our standard input and nobody calls any more."""
    port, count = int(argv[0]), int(argv[1])
    # Signals to the process group are the lead's to answer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    try:
        _, table = serve_table(port)
    except OSError as error:
        sys.stdout.write(f"port {port} cannot be listened at: {error.strerror}\n")
        return 1
    jax_port = free_port()
    service = _start_jax_service(jax_port, count)
    table.put("jax_port", str(jax_port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()  # ends with the lead
    table.closing = True
    while time.monotonic() - table.called < _QUIET_SECONDS:
        time.sleep(0.5)
    del service
    os._exit(0)  # JAX's service would wait for processes that are gone


def _start_jax_service(port: int, count: int) -> Any:
    # `recoverable`: a process that is lost is ours to speak of, and no reason to end the others.
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    return _jax.get_distributed_runtime_service(
        f"[::]:{port}", count, heartbeat_timeout=_HEARTBEAT_SECONDS, recoverable=True
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
