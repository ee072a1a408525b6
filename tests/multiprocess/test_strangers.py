"""Strangers who reach the control service of a run: refused, named once, and nothing changes."""

import contextlib
import http.client
import json
import os
import socket
import xmlrpc.client
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spectral_dist.cluster.client import PROOF
from tests.multiprocess.local import Local, local_runs

_FLAGS = "--steps 100 --save_every 50 --eval_every 1000 --hang_timeout 60 --start_timeout 60"
FLAGS = _FLAGS.split()
END = json.dumps({"message": "\x1b[31mbye", "code": 0})
STOP = json.dumps({"number": 1, "sync_points": 1, "progress": 1, "phase": "x", "stop_signal": 15})
# What a stranger would call: end the run, stop it, hang it, kill its watching threads, fill it.
CALLS = (
    ("put", "ended/1", END),
    ("put", "ended/0", END),
    ("put", "planned/stop", "1 15"),
    ("put", "planned/saves", "[1]"),
    ("heartbeat", "0", STOP),
    ("heartbeat", "99", STOP),
    ("report", "1", "{}"),
    ("put", "settings/1", "{}"),
    ("put", "from_coordinator/mesh", "{}"),
    ("put", "big", "x" * (1 << 22)),
    ("get", "jax_port"),
    ("system.listMethods",),
)

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def attack(port: int) -> list[int]:
    """Make every call without a proof and with wrong ones; return the statuses."""
    statuses = []
    for name, *arguments in CALLS:
        body = xmlrpc.client.dumps(tuple(arguments), name).encode()
        for proof in ("", "0" * 64, "ğ".encode().decode("latin-1")):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("POST", "/RPC2", body, {PROOF: proof} if proof else {})
                statuses.append(connection.getresponse().status)
            except OSError:  # closed while the long one was sent
                statuses.append(413)
            finally:
                connection.close()
    for rubbish in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as stranger:
            stranger.sendall(rubbish)
    return statuses


def attacked(local: Local, processes: int) -> None:
    mesh = f"--mesh=1x{processes}x1"
    run = local.start(*FLAGS, mesh, "--run_name", f"attacked{processes}", processes=processes)
    run.wait_for(" 10/100")
    statuses = attack(run.port)
    assert set(statuses) == {401, 413}, statuses
    # Connections that say nothing, from before the end to after it.
    idle = [socket.create_connection(("127.0.0.1", run.port), timeout=60) for _ in range(50)]
    assert run.wait() == [0] * processes, run.told()
    for connection in idle:
        connection.close()
    for number, rank in enumerate(run.ranks):
        assert "bye" not in rank.out + rank.err
        named = rank.err.count("without the secret of this run were refused")
        assert named == (1 if number == 0 else 0), run.told()
    assert "100/100" in run.ranks[0].out
    assert not list((local.folder / "checkpoints").rglob(".secret*"))
    run.wait_until_gone()


def test_strangers_change_nothing(tmp_path: Path) -> None:
    with local_runs(tmp_path) as local, ThreadPoolExecutor() as pool:
        for done in [pool.submit(attacked, local, count) for count in (2, 4)]:
            done.result()


def listening(pid: int) -> set[str]:
    """Return the addresses that a process listens on, as the kernel writes them: in hex."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            sockets.add(os.readlink(descriptor))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # listens
                found.add(fields[1].partition(":")[0])
    return found


def test_the_services_of_one_host_cannot_be_reached_from_another(tmp_path: Path) -> None:
    with local_runs(tmp_path) as local:
        run = local.start(*FLAGS, "--mesh=1x2x1", "--run_name", "local", processes=2)
        run.wait_for(" 10/100")
        (service,) = (
            pid
            for pid in run.left()
            if b"spectral_dist.cluster.service" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        # 127.0.0.1, for the table and for JAX's own service, which writes it as IPv6 too.
        assert listening(service) <= {"0100007F", "0000000000000000FFFF00000100007F"}
        assert "0100007F" in listening(service)
