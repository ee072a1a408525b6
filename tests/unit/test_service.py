"""The control service: a table for all processes, that outlives process 0 for a while."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spectral_dist.cluster import service
from spectral_dist.cluster.client import PROOF, UNREACHABLE, Client, connect
from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.secret import (
    find_secret,
    is_proof,
    leave_secret,
    proof,
    remove_secret,
)
from spectral_dist.cluster.service import Table, free_port, serve_table

SECRET = "of this run"


@pytest.fixture
def port() -> Iterator[int]:
    server, _ = serve_table("127.0.0.1", 0, SECRET)
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def clients(port: int) -> Iterator[tuple[Client, ...]]:
    both = tuple(connect(Identity("127.0.0.1", port, i, 2, None, "", SECRET)) for i in range(2))
    yield both
    for client in both:
        client.reconnect()


def test_values_by_key_for_every_client(clients: Any) -> None:
    one, two = clients
    assert one.get("a/0") is None
    # Of control characters and of lone surrogates XML knows nothing.
    one.put("a/0", "ğ <&> \u2028 \x1b[31m \x00 \udcff")
    two.put("a/b/1", {"x": [1, None, 0.5]})
    two.put("ab/2", "not under a")
    assert two.get("a/0") == "ğ <&> \u2028 \x1b[31m \x00 \udcff"
    assert one.under("a") == {"0": two.get("a/0"), "b/1": {"x": [1, None, 0.5]}}
    one.remove("a")
    assert two.under("a") == {}
    assert two.get("ab/2") == "not under a"


def test_one_client_serves_several_threads(clients: Any) -> None:
    one, _ = clients

    def call(number: int) -> bool:
        one.put(f"threads/{number}", number)
        return one.get(f"threads/{number}") == number

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(200)))
    assert len(one.under("threads")) == 200


def test_a_heartbeat_returns_everybodys_and_who_has_ended(clients: Any) -> None:
    one, two = clients
    two.put("ended/1", "gone")
    two.heartbeat(1, {"number": 1})
    beats = {0: {"number": 2}, 1: {"number": 1}}
    assert one.heartbeat(0, {"number": 2}) == (beats, {1: "gone"}, {})


def test_a_run_that_has_ended_takes_no_newcomers() -> None:
    table = Table()
    assert json.loads(table.report("1", "me")) == {"1": "me"}
    assert json.loads(table.report("1", "another")) == {"1": "me"}
    table.closing = True
    with pytest.raises(ConnectionError, match="this run has ended"):
        table.report("0", "another start")
    assert json.loads(table.under("here")) == {"1": "me"}


def test_a_call_costs_little(clients: Any) -> None:
    one, _ = clients
    one.get("warm")
    times = []
    for _ in range(200):
        start = time.perf_counter()
        one.under("planned")
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 0.01  # it is made once a step; 0.4 ms on an idle machine


def test_only_what_is_meant_can_be_called() -> None:
    assert {name for name in vars(Table) if not name.startswith("_")} == {
        "put",
        "get",
        "under",
        "remove",
        "report",
        "heartbeat",
    }


def test_a_port_that_is_taken_is_named(port: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spectral_dist.cluster.service", "127.0.0.1", str(port), "2"],
        capture_output=True,
        text=True,
        check=False,
        input="a secret\n",
    )
    assert done.returncode == 1
    assert done.stdout == f"cannot listen on port {port}: Address already in use\n"


def test_a_service_without_a_secret_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spectral_dist.cluster.service", "127.0.0.1", "0", "2"],
        capture_output=True,
        text=True,
        check=False,
        input="\n",
    )
    assert (done.returncode, done.stdout) == (2, "the secret of the run did not arrive\n")


def test_free_ports_differ() -> None:
    assert free_port() > 0


# ---- strangers


def called(port: int, secret: str, body: bytes, **headers: str) -> int:
    """POST a text as a client with this secret would; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    own = {PROOF: proof(secret, body)} if secret else {}
    connection.request("POST", "/RPC2", body, own | headers)
    status = connection.getresponse().status
    connection.close()
    return status


PUT = xmlrpc.client.dumps(("ended/1", '{"code": 0}'), "put").encode()


def test_who_does_not_know_the_secret_changes_nothing(port: int, clients: Any) -> None:
    one, _ = clients
    assert called(port, SECRET, PUT) == 200
    assert one.get("ended/1") == {"code": 0}
    other = xmlrpc.client.dumps(("ended/1", "a stranger's"), "put").encode()
    assert called(port, "", other) == 401
    assert called(port, "guessed", other) == 401
    # A proof of another call is none of this one.
    assert called(port, "", other, **{PROOF: proof(SECRET, PUT)}) == 401
    assert one.get("ended/1") == {"code": 0}
    assert one.heartbeat(0, {})[-1] == {"127.0.0.1": 3}


def test_a_call_that_is_too_long_or_has_no_length_is_not_read(port: int, clients: Any) -> None:
    one, _ = clients
    assert called(port, SECRET, PUT, **{"Content-Length": str(10**9)}) == 413
    assert called(port, SECRET, PUT, **{"Content-Length": "-1"}) == 413
    with pytest.raises(UNREACHABLE):
        one.put("x", "y" * (1 << 21))
    assert one.get("x") is None


def test_rubbish_ends_its_own_connection_alone(port: int, clients: Any) -> None:
    one, _ = clients
    for rubbish in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 1000, b"POST"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as stranger:
            stranger.sendall(rubbish)
    one.put("a", "b")
    assert one.get("a") == "b"


def test_more_connections_than_there_is_room_for_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "_CONNECTIONS", 2)
    server, _ = serve_table("127.0.0.1", 0, SECRET)
    number = server.server_address[1]
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(socket.create_connection(("127.0.0.1", number), timeout=60))
        late = held.enter_context(socket.create_connection(("127.0.0.1", number), timeout=60))
        assert late.recv(1) == b""  # closed, and not waited for
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "::1"),
        ("gpu3", "::"),
        ("10.0.0.1", "::"),
    ],
)
def test_a_run_of_one_host_listens_on_that_host_alone(host: str, address: str) -> None:
    assert service.listening_address(host) == address


# ---- the secret


def test_the_secret_is_for_its_own_user_and_start(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert find_secret(folder, "job") == ""
    secret = leave_secret(folder, "job")
    assert len(secret) == 64
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert find_secret(folder, "job") == secret
    assert find_secret(folder, "another job") == ""
    assert leave_secret(folder, "another job") != secret  # and clears what was left
    assert find_secret(folder, "job") == ""
    remove_secret(folder, "another job")
    remove_secret(folder, "another job")
    assert not folder.exists()  # nothing else was in it
    assert SECRET not in repr(Identity("h", 1, 0, 2, None, "job", SECRET))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=r"^checkpoint_dir: .*run cannot be written: "):
        leave_secret(tmp_path / "run", "job")


def test_a_proof_is_of_one_text_and_one_secret() -> None:
    good = proof("a", b"text")
    assert is_proof(good, "a", b"text")
    assert not any((is_proof(good, "b", b"text"), is_proof(good, "a", b"Text")))
    assert not any(is_proof(bad, "a", b"text") for bad in ("", "ğ", good[:-1], good.upper()))
