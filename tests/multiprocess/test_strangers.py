"""Strangers who reach the control service of a run: refused, named once, and nothing changes."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.multiprocess.attacks import ATTACKS, RUBBISH, cut_off, idle, send
from tests.multiprocess.local import Local, Run, local_runs

_FLAGS = "--steps 100 --save_every 50 --eval_every 1000 --hang_timeout 60 --start_timeout 60"
FLAGS = _FLAGS.split()
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def attacked(local: Local, processes: int) -> None:
    mesh = f"--mesh=1x{processes}x1"
    run = local.start(*FLAGS, mesh, "--run_name", f"attacked{processes}", processes=processes)
    run.wait_for(" 10/100")
    # Connections that say nothing, from before the end to after it.
    held = idle(run.port, 400)
    taken = [name for name, text in ATTACKS.items() if send(run.port, name, text) == "200"]
    assert taken == []
    for port in listening(service_of(run)).keys() - {run.port}:  # JAX's own
        for name, text in RUBBISH.items():
            send(port, name, text)
        held += idle(port, 50)
    for _ in range(50):
        cut_off(run.port)
    assert run.wait() == [0] * processes, run.told()
    for connection in held:
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


def service_of(run: Run) -> int:
    """Return the process id of the control service of a run."""
    (service,) = (
        pid
        for pid in run.left()
        if b"spectral_dist.cluster.service" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return service


def listening(pid: int) -> dict[int, str]:
    """Return {port: address} that a process listens on, addresses as the kernel writes them."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            sockets.add(os.readlink(descriptor))
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # listens
                address, _, port = fields[1].partition(":")
                found[int(port, 16)] = address
    return found


def test_the_services_of_one_host_cannot_be_reached_from_another(tmp_path: Path) -> None:
    with local_runs(tmp_path) as local:
        run = local.start(*FLAGS, "--mesh=1x2x1", "--run_name", "local", processes=2)
        run.wait_for(" 10/100")
        # 127.0.0.1, for the table and for JAX's own service, which writes it as IPv6 too.
        found = listening(service_of(run))
        assert set(found.values()) <= {"0100007F", "0000000000000000FFFF00000100007F"}
        assert found[run.port] == "0100007F"
        assert len(found) == 2
