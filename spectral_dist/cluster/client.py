"""A client of the control service: what the processes of a run tell each other goes through it.

Owns the call: its proof of the run's secret, its time limit, and values as JSON. What is on the
other side is `service.Table`. Read `Client`.
"""

import contextlib
import http.client
import json
import threading
import xmlrpc.client
from collections.abc import Mapping
from typing import Any

from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.secret import proof

PROOF = "X-Spectral-Proof"  # the header of a call that proves the secret (secret.py)
_CALL_SECONDS = 10.0  # a service that does not answer must not stop the heartbeats for long

# What a call raises if the service cannot be reached.
UNREACHABLE = (OSError, http.client.HTTPException, xmlrpc.client.Error)


class Client:
    """A table of values that all processes of a run share; may be used by several threads.

    A key is a path such as "saves/3/failed/1"; a value is anything that JSON can write. Calls raise
    `UNREACHABLE`.
    """

    def __init__(self, table: Any) -> None:
        """Speak to a table; see `connect`.

        Args:
          table: has the methods of `service.Table`.
        """
        self._table = table
        self._lock = threading.Lock()  # one connection

    def put(self, key: str, value: Any) -> None:
        """Store a value under a key."""
        text = json.dumps(value, sort_keys=True)  # escapes what XML cannot hold
        with self._lock:
            self._table.put(key, text)

    def get(self, key: str) -> Any:
        """Return the value of a key, or None if there is none."""
        with self._lock:
            text = self._table.get(key)
        return json.loads(text) if text else None

    def under(self, folder: str) -> dict[str, Any]:
        """Return all values with keys in a folder, by the rest of the key."""
        with self._lock:
            return _values(json.loads(self._table.under(folder)))

    def remove(self, folder: str) -> None:
        """Remove all keys in a folder."""
        with self._lock:
            self._table.remove(folder)

    def report(self, index: int, facts: Mapping[str, Any]) -> dict[int, Any]:
        """Register a process under its index, unless that is taken; return all, by index."""
        with self._lock:
            found = json.loads(self._table.report(str(index), json.dumps(dict(facts))))
        return {int(i): value for i, value in _values(found).items()}

    def heartbeat(
        self, index: int, heartbeat: Mapping[str, Any]
    ) -> tuple[dict[int, Any], dict[int, Any], dict[str, int]]:
        """Store a heartbeat.

        Returns:
          the heartbeats of all processes; how those ended that have ended early; and the calls of
          strangers by their address.
        """
        with self._lock:
            answer = json.loads(self._table.heartbeat(str(index), json.dumps(dict(heartbeat))))
        beats, ended = (_values(answer[name]).items() for name in ("heartbeats", "ended"))
        return {int(i): b for i, b in beats}, {int(i): e for i, e in ended}, answer["strangers"]

    def reconnect(self) -> None:
        """Close the connection, which may be broken; the next call opens a new one."""
        with self._lock, contextlib.suppress(OSError):
            self._table("close")()


def connect(identity: Identity) -> Client:
    """Return a client of the run's control service; it connects with its first call."""
    transport = _Transport(identity.secret)
    return Client(xmlrpc.client.ServerProxy(f"http://{identity.address}", transport=transport))


class _Transport(xmlrpc.client.Transport):
    """HTTP with a timeout for every call, and a proof of the run's secret."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret

    def send_content(self, connection: http.client.HTTPConnection, request_body: Any) -> None:
        connection.putheader(PROOF, proof(self._secret, request_body))
        super().send_content(connection, request_body)

    def make_connection(self, host: Any) -> Any:
        connection = super().make_connection(host)
        connection.timeout = _CALL_SECONDS  # xmlrpc has no argument for it, and waits for ever
        return connection


def _values(texts: Mapping[str, str]) -> dict[str, Any]:
    return {key: json.loads(text) for key, text in texts.items()}
