"""The control service: a table for all processes, that outlives process 0 for a while."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from spectral_dist.cluster.heartbeat import connect
from spectral_dist.cluster.identity import Identity
from spectral_dist.cluster.service import Table, free_port, serve_table


@pytest.fixture
def port() -> Iterator[int]:
    server, _ = serve_table(0)
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def clients(port: int) -> Iterator[tuple[Any, Any]]:
    both = tuple(connect(Identity("127.0.0.1", port, i, 2, None, "")) for i in range(2))
    yield both
    for client in both:
        client("close")()


def test_texts_by_key_for_every_client(clients: Any) -> None:
    one, two = clients
    assert one.get("a/0") == ""
    one.put("a/0", "ğ <&> \u2028")
    two.put("a/1", "x")
    two.put("ab/2", "not under a")
    assert two.get("a/0") == "ğ <&> \u2028"
    assert json.loads(one.under("a")) == {"0": "ğ <&> \u2028", "1": "x"}


def test_a_heartbeat_returns_everybodys_and_who_has_ended(clients: Any) -> None:
    one, two = clients
    two.put("ended/1", "gone")
    two.heartbeat("1", "first")
    assert json.loads(one.heartbeat("0", "second")) == {
        "heartbeats": {"0": "second", "1": "first"},
        "ended": {"1": "gone"},
    }


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
        one.get("stop_at")
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 0.01  # it is made once a step; 0.4 ms on an idle machine


def test_only_what_is_meant_can_be_called() -> None:
    assert {name for name in vars(Table) if not name.startswith("_")} == {
        "put",
        "get",
        "under",
        "report",
        "heartbeat",
    }


def test_a_port_that_is_taken_is_named(port: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spectral_dist.cluster.service", str(port), "2"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert done.stdout == f"cannot listen on port {port}: Address already in use\n"


def test_free_ports_differ() -> None:
    assert free_port() > 0
