"""A full disk, a folder that turns read-only, memory that runs out, W&B that never answers."""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from spectral_dist.training.checkpoint_folder import complete_steps
from tests.multiprocess.local import Local, Own, Run, bits, local_runs, losses, stored

DISK_BYTES = 24 << 20
# In how many processes each fault is tried.
FULL, READ_ONLY = [1, 2], [2]
FLAGS = ["--steps", "60", "--save_every", "15", "--eval_every", "1000", "--keep", "2"]

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def mount(*arguments: str) -> None:
    command = ["mount", *arguments]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    """Runs whose checkpoints lie on a small disk of their own."""
    disk = tmp_path / "checkpoints"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk))
    try:
        with local_runs(tmp_path) as local:
            yield local
    finally:
        while subprocess.run(["umount", "-R", str(disk)], capture_output=True).returncode == 0:
            pass


def fill(folder: Path) -> Path:
    """Fill the disk that a folder lies on."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast


def saves(run: Run, folder: Path, at_least: int) -> None:
    """Wait until so many steps are saved, then hold the run still, outside a save."""
    everybody = range(len(run.ranks))
    while True:
        run.wait_until(lambda: max(complete_steps(folder), default=0) >= at_least, "a checkpoint")
        run.send(signal.SIGSTOP, *everybody)
        if not list(folder.glob("[0-9]*tmp*")):
            return
        run.send(signal.SIGCONT, *everybody)
        time.sleep(0.02)


@pytest.mark.parametrize("processes", FULL)
def test_a_disk_that_is_full_for_a_while(local: Local, processes: int) -> None:
    flags = [*FLAGS, "--mesh", f"1x{processes}x1", "--run_name", "full"]
    folder = local.run_folder("full")
    run = local.start(*flags, processes=processes)
    saves(run, folder, 5)
    ballast, before = fill(folder.parent), complete_steps(folder)
    run.send(signal.SIGCONT, *range(processes))
    run.wait_for("could not be saved")
    assert set(before) <= set(complete_steps(folder))
    ballast.unlink()
    assert run.wait() == [0] * processes, run.told()
    assert all(rank.err == "" for rank in run.ranks), run.told()
    assert "No space left on device" in run.ranks[0].out
    last = run.ranks[0].out.splitlines()[-1]
    assert re.fullmatch(r"warning: \d+ checkpoints? could not be saved; see above", last)
    assert complete_steps(folder)[-1] == 60
    assert list(losses(folder))[-1] == 60


@pytest.mark.parametrize("processes", READ_ONLY)
def test_a_folder_that_turns_read_only(local: Local, processes: int) -> None:
    """To the end of the run: exit code 74, and the same command makes good for it."""
    flags = [*FLAGS, "--mesh", f"1x{processes}x1", "--run_name"]
    folder, whole = local.run_folder("read_only"), local.run_folder("whole")
    local.run(*flags, "whole", processes=processes)
    run = local.start(*flags, "read_only", processes=processes)
    saves(run, folder, 5)
    mount("--bind", str(folder), str(folder))
    mount("-o", "remount,bind,ro", str(folder))
    before = complete_steps(folder)
    run.send(signal.SIGCONT, *range(processes))
    assert run.wait() == [74] * processes, run.told()
    assert all(rank.err == "" for rank in run.ranks), run.told()
    # The report is drawn in a thread, and may fail a moment later.
    last = [line for line in run.ranks[0].out.splitlines() if "report" not in line][-1]
    assert "checkpoints could not be saved, step 60 among them" in last
    assert f"continues from step {before[-1]}" in last
    assert complete_steps(folder) == before
    subprocess.run(["umount", str(folder)], check=True)
    done = local.run(*flags, "read_only", processes=processes)
    assert f"resumed from step {before[-1]} in" in done.ranks[0].out
    assert bits(folder, 60) == bits(whole, 60)


def test_memory_that_runs_out_is_one_line(tmp_path: Path) -> None:
    with local_runs(tmp_path) as local:
        run = local.start("--steps", "3", "--mlp_dim", "1000000000")
        assert run.wait() == [2], run.told()
        assert run.ranks[0].err.count("\n") == 1, run.told()
        assert re.match(
            r"error: out of memory on a device \(asked for \d+ bytes\)\..*--batch_size 2 with"
            r" --accum_steps 2 .*--remat full",
            run.ranks[0].err,
        ), run.told()


def test_divergence_in_two_processes_leaves_the_healthy_ones(tmp_path: Path) -> None:
    """Also where one checkpoint alone is kept."""
    pair = ["--mesh", "1x2x1", "--keep", "1", "--save_every", "1", "--max_bad_steps", "4"]
    with local_runs(tmp_path) as local:
        folder = local.run_folder("nan")
        run = local.start(*pair, "--run_name", "nan", "--steps", "60", "--lr", "2e9", processes=2)
        assert run.wait() == [2, 2], run.told()
        assert "max_bad_steps=4: " in run.ranks[0].err
        steps = complete_steps(folder)
        assert steps
        for step in steps:
            leaves = jax.tree.leaves(stored(folder, step))
            assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """Accept connections and never answer; give the port."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        for connection in held:
            connection.close()


def test_a_wandb_server_that_never_answers(tmp_path: Path) -> None:
    """Training ends as soon as without it, the program a few seconds later."""
    with local_runs(tmp_path) as local, black_hole() as port:
        environment = {
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
            "WANDB_API_KEY": "0123456789" * 4,
        }
        flags = ["--steps", "20", "--run_name", "hole", "--wandb_mode", "online"]
        run = local.start(*flags, own={0: Own(environment=environment)})
        run.wait_for("step 20/20  validation")
        trained = time.monotonic()
        assert run.wait() == [0], run.told()
        assert time.monotonic() - trained < 60  # W&B itself would try for longer
        assert run.ranks[0].err.startswith("warning: W&B did not finish within 8 s")
        assert run.ranks[0].err.count("\n") == 1, run.told()
        assert list(losses(local.run_folder("hole"))) == list(range(1, 21))
        assert run.left() == []
