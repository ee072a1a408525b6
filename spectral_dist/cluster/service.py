"""The control service: a key-value table for the processes of a run, and JAX's service.

Owns two servers. The first is a small table of texts, over XML-RPC, through which processes report
in, send heartbeats, say how they ended, and agree on when to stop and on each save. The second is
JAX's coordination service, which JAX needs. Both run in a process of their own beside process 0,
because JAX aborts every process when its service ends. So if process 0 is lost, the others can
still say so.

Whoever calls the table must prove the run's secret (secret.py); of JAX's service see
docs/security.md. `start.start_processes` starts both as `python -m spectral_dist.cluster.service
HOST PORT COUNT`, with the secret on its standard input. It ends after process 0, once nobody has
called for a while. Read `main` first.
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
from typing import Any, cast
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from spectral_dist.cluster.client import PROOF
from spectral_dist.cluster.identity import is_loopback, join_address
from spectral_dist.cluster.secret import is_proof
from spectral_dist.cluster.signals import SIGNALS

# Every process sends a heartbeat each second. After this long without one, none is left.
_QUIET_SECONDS = 5.0
# A call holds the settings of a run at most: some kilobytes.
_CALL_BYTES = 1 << 20
# Each process holds two or three; the rest is for strangers who keep theirs open.
_CONNECTIONS = 4096
_STRANGERS = 16  # addresses that are counted each by itself


class Table:
    """A key-value store of texts, shared by all processes; a key is a path like "heartbeats/3"."""

    def __init__(self) -> None:
        """Create an empty table."""
        self._values: dict[str, str] = {}
        self._strangers: dict[str, int] = {}
        self._lock = threading.Lock()  # every client is served by a thread of its own
        self.called = time.monotonic()
        # Set when process 0 has ended: a process that reports in now belongs to another start.
        self.closing = False

    def put(self, key: str, value: str) -> bool:
        """Store a text under a key."""
        with self._lock:
            self._values[key] = value
            self.called = time.monotonic()
        return True  # XML-RPC has no None

    def get(self, key: str) -> str:
        """Return the text of a key, or "" if there is none."""
        with self._lock:
            self.called = time.monotonic()
            return self._values.get(key, "")

    def under(self, folder: str) -> str:
        """Return all texts with keys in a folder, as a JSON mapping from the rest of the key."""
        prefix = f"{folder}/"
        with self._lock:
            self.called = time.monotonic()
            found = {k[len(prefix) :]: v for k, v in self._values.items() if k.startswith(prefix)}
        return json.dumps(found)

    def remove(self, folder: str) -> bool:
        """Remove all keys in a folder."""
        prefix = f"{folder}/"
        with self._lock:
            self._values = {k: v for k, v in self._values.items() if not k.startswith(prefix)}
            self.called = time.monotonic()
        return True

    def report(self, index: str, text: str) -> str:
        """Register a process under its index, unless that is taken; return all of them, as JSON.

        Raises:
          ConnectionError: if the run of this service has ended; the caller gets a `Fault`.
        """
        if self.closing:
            raise ConnectionError("this run has ended")
        with self._lock:
            # The first one keeps the index: a second one finds another process in its answer.
            self._values.setdefault(f"here/{index}", text)
        return self.under("here")

    def heartbeat(self, index: str, text: str) -> str:
        """Store a heartbeat; return the heartbeats of all, and who has ended, as JSON."""
        self.put(f"heartbeats/{index}", text)
        found = {name: json.loads(self.under(name)) for name in ("heartbeats", "ended")}
        return json.dumps(found | {"strangers": self._strangers})

    def _refuse(self, address: str) -> None:
        """Count a call without the secret, by the address that it came from."""
        with self._lock:
            known = address in self._strangers or len(self._strangers) < _STRANGERS
            key = address if known else "others"
            self._strangers[key] = self._strangers.get(key, 0) + 1


class _Handler(SimpleXMLRPCRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for all calls
    disable_nagle_algorithm = True  # small answers would wait for more to send
    timeout = 60.0  # seconds; ends the thread of a client that is gone

    def do_POST(self) -> None:
        """Answer a call, if it is short and proves the secret; else close the connection."""
        server = cast(_Server, self.server)
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > _CALL_BYTES:
            self._refuse(413)
            return
        text = self.rfile.read(int(length))
        if not is_proof(self.headers.get(PROOF, ""), server.secret, text):
            self._refuse(401)
            return
        answer = cast(bytes, server._marshaled_dispatch(text))
        self.send_response(200)
        self.send_header("Content-type", "text/xml")
        self.send_header("Content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing of what strangers send; `_refuse` counts them."""

    def _refuse(self, code: int) -> None:
        cast(_Server, self.server).table._refuse(str(self.client_address[0]))
        self.close_connection = True
        self.send_response(code)
        self.send_header("Content-length", "0")
        self.end_headers()


class _Server(ThreadingMixIn, SimpleXMLRPCServer):
    daemon_threads = True
    # New connections that wait to be taken. With socketserver's 5 a stranger who opens many at once
    # would keep our own waiting for seconds each.
    request_queue_size = 512
    allow_reuse_address = True  # connections of an earlier run linger on the port for a minute

    def __init__(self, host: str, port: int, secret: str, table: Table) -> None:
        # IPv6, which takes calls over IPv4 too, unless all callers are on this host.
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.secret, self.table = secret, table
        self._room = threading.Semaphore(_CONNECTIONS)
        super().__init__((host, port), requestHandler=_Handler, logRequests=False)
        self.register_instance(table)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # Listen on IPv4 too: a host's name may stand for either kind of address.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, while there are not too many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no error: the client sees its connection break, and handles that."""


def serve_table(host: str, port: int, secret: str) -> tuple[SimpleXMLRPCServer, Table]:
    """Serve a new table, in a thread, to callers that know the secret.

    Args:
      host: address to listen on.
      port: the port to listen on; 0 takes a free one.
      secret: of the run.

    Raises:
      OSError: if the port is taken.
    """
    table = Table()
    server = _Server(host, port, secret, table)
    threading.Thread(target=server.serve_forever, name="control", daemon=True).start()
    return server, table


def free_port() -> int:
    """Return a port that is free now; another program may still take it first."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::", 0))
        return probe.getsockname()[1]


def listening_address(host: str) -> str:
    """Return the address to listen on, so that the run's processes reach `host` and few others do.

    Args:
      host: of process 0, as the other processes know it.
    """
    if not is_loopback(host):
        return "::"  # every interface: a host's own idea of its name may be another one
    return "::1" if ":" in host else "127.0.0.1"


def main(argv: Sequence[str]) -> int:
    """Serve until process 0 has ended and nobody calls any more.

    Writes one line to standard output: "ready", or why it cannot serve.

    Returns:
      1 if a later try may succeed, 2 if none will.
    """
    host, port, count = listening_address(argv[0]), int(argv[1]), int(argv[2])
    secret = sys.stdin.readline().strip()  # not on the command line, which every user can read
    if not secret:  # everybody knows an empty one
        sys.stdout.write("the secret of the run did not arrive\n")
        return 2
    # Signals reach the whole process group. Process 0 handles them, and needs this service for it.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        _, table = serve_table(host, port, secret)
    except OSError as error:
        sys.stdout.write(f"cannot listen on port {port}: {error.strerror}\n")
        return 1
    jax_port = free_port()
    from spectral_dist.cluster import jax_service  # loads JAX; a taken port is reported before

    try:
        service = jax_service.start_service(join_address(host, jax_port), count)
    except ValueError as error:
        sys.stdout.write(f"{error}\n")
        return 2
    table.put("jax_port", json.dumps(jax_port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()  # returns when process 0 has ended, which closes the pipe, however it died
    table.closing = True
    # The others still have to read how process 0 ended, and to agree that they end.
    while time.monotonic() - table.called < _QUIET_SECONDS:
        time.sleep(0.5)
    del service
    os._exit(0)  # not `return`: the destructor of JAX's service would wait for lost processes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
