"""The relay passes on what both sides say; an end of the service is kept from JAX's client."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from spectral_dist.cluster.relay import Relay


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def relay(service: socket.socket) -> Iterator[Relay]:
    relay = Relay(*service.getsockname())
    yield relay
    relay.close()


def connect(relay: Relay) -> socket.socket:
    kind, _, path = relay.address.partition(":")
    assert kind == "unix"
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(path)
    return client


def test_both_sides_hear_each_other(relay: Relay, service: socket.socket) -> None:
    with connect(relay) as client, service.accept()[0] as served:
        served.settimeout(20)
        client.sendall(b"x" * 1_000_000)
        assert sum(len(served.recv(1 << 20)) for _ in range(1)) > 0
        served.sendall(b"answer")
        assert client.recv(100) == b"answer"


def test_the_end_of_the_service_is_only_silence(relay: Relay, service: socket.socket) -> None:
    with connect(relay) as client:
        service.accept()[0].close()
        service.close()
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sendall(b"still here?")
        # A new connection, too: JAX would try again, and give up.
        with connect(relay) as again:
            again.settimeout(0.5)
            with pytest.raises(TimeoutError):
                again.recv(1)


def test_a_service_that_is_not_there_yet_is_tried_again(service: socket.socket) -> None:
    port = service.getsockname()[1]
    service.close()
    relay = Relay("127.0.0.1", port)
    with connect(relay) as client:
        assert client.recv(1) == b""
    relay.close()


def test_nobody_else_may_enter(relay: Relay) -> None:
    folder = Path(relay.address.removeprefix("unix:")).parent
    assert os.stat(folder).st_mode & 0o777 == 0o700
    relay.close()
    assert not folder.exists()
