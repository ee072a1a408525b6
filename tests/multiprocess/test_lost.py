"""A process that dies, stands still, hangs or never comes: the others end and say which it was."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, write_text
from tests.multiprocess.local import Local, Own, Run, local_runs

HANG_SECONDS, START_SECONDS = 20, 6
SILENT_SECONDS = 100  # where hang_timeout is longer
PAIR = ["--mesh", "1x2x1", "--steps", "100000", "--save_every", "1000", "--eval_every", "100000"]
FLAGS = [*PAIR, "--hang_timeout", str(HANG_SECONDS), "--start_timeout", "60"]
HANG = """
import time
from spectral_dist.training.milestones import Milestones
_reach = Milestones.reach
def _hang(self, progress):
    if progress.step == 3:
        print("now: hanging", flush=True)
        time.sleep(1000)
    _reach(self, progress)
Milestones.reach = _hang
"""

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def ended(run: Run, codes: list[int], words: str, *ranks: int) -> None:
    """Check that processes ended with 76 and one line that names the one that is lost."""
    for rank in ranks:
        assert codes[rank] == 76, run.told()
        assert words in run.ranks[rank].err, run.told()
        assert run.ranks[rank].err.startswith("error: "), run.told()
        assert run.ranks[rank].err.count("\n") == 1, run.told()


def killed(local: Local) -> None:
    """Process 0 is killed: the other one outlives JAX's wish to abort, and names it."""
    run = local.start(*FLAGS, "--run_name", "killed", processes=2)
    run.wait_for(" 10/100000")
    run.send(signal.SIGKILL, 0)
    ended(run, run.wait(), "process 0 of 2", 1)
    run.wait_until_gone()


def service_killed(local: Local) -> None:
    """The control service is killed, and JAX's with it: both processes say so."""
    run = local.start(*FLAGS, "--run_name", "service", processes=2)
    run.wait_for(" 10/100000")
    services = [p for p in run.left() if p not in [rank.process.pid for rank in run.ranks]]
    commands = {p: Path(f"/proc/{p}/cmdline").read_bytes() for p in services}
    (service,) = [p for p, line in commands.items() if b"cluster.service" in line]
    os.kill(service, signal.SIGKILL)
    ended(run, run.wait(), "process 0 of 2", 0, 1)
    assert all("its control service" in rank.err for rank in run.ranks), run.told()
    run.wait_until_gone()


def stopped(local: Local) -> None:
    """SIGSTOP: silent. When it goes on, it finds the others gone and ends too."""
    run = local.start(*FLAGS, "--run_name", "stopped", processes=2)
    run.wait_for(" 10/100000")
    run.send(signal.SIGSTOP, 1)
    run.wait_until(lambda: run.ranks[0].process.poll() is not None, "the end of the other one")
    run.send(signal.SIGCONT, 1)
    codes = run.wait()
    ended(run, codes, "process 1 of 2", 0)
    (seconds,) = re.findall(r"no heartbeat for (\d+) s", run.ranks[0].err)
    assert HANG_SECONDS <= int(seconds) < SILENT_SECONDS
    ended(run, codes, "process 0 of 2", 1)
    run.wait_until_gone()


def hung(local: Local) -> None:
    """Its main thread hangs while it still says that it lives."""
    run = local.start(*FLAGS, "--run_name", "hung", processes=2, own={1: Own(HANG)})
    run.wait_for("now: hanging", rank=1)
    codes = run.wait()
    ended(run, codes, "process 1 of 2", 0, 1)
    assert f"hang_timeout={HANG_SECONDS} s" in run.ranks[0].err
    assert "process 0 of 2" not in run.ranks[0].err.partition("no process has made progress")[0], (
        run.told()
    )
    log = (local.run_folder("hung") / "faults.log").read_text()
    assert "_hang" in log.partition(", process 1: no progress")[2], log
    run.wait_until_gone()


def absent(local: Local, here: int, words: str) -> None:
    flags = [*FLAGS, "--start_timeout", str(START_SECONDS)]
    run = local.start(*flags, "--run_name", "absent", processes=2, only=here)
    ended(run, run.wait(), words, 0)
    assert f"within start_timeout={START_SECONDS} s" in run.ranks[0].err
    run.wait_until_gone()


def never_came(local: Local) -> None:
    absent(local, 0, "process 1 of 2 has not reported")


def lead_never_came(local: Local) -> None:
    absent(local, 1, "process 0 of 2 not reached at")


def disagree(local: Local, own: Own, words: str, name: str) -> None:
    # Absolute: wherever a process runs, it must see the run folder.
    runs = ["--checkpoint_dir", str(local.run_folder(name).parent), "--run_name", name]
    run = local.start(*FLAGS, *runs, processes=2, own={1: own})
    assert run.wait() == [2, 2], run.told()
    for rank in run.ranks:
        assert words in rank.err, run.told()
        assert rank.err.count("\n") == 1, run.told()
    assert not local.run_folder(name).exists()
    run.wait_until_gone()


def other_settings(local: Local) -> None:
    words = "settings: lr=0.5 in process 1 of 2"
    disagree(local, Own(flags=("--lr", "0.5")), words, "settings")


def other_code(local: Local) -> None:
    copy = local.folder / "copy"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "spectral_dist", copy / "spectral_dist", ignore=ignore)
    shutil.copytree(ROOT / "configs", copy / "configs")
    with (copy / "spectral_dist" / "mesh.py").open("a") as file:
        file.write("# edited on one host\n")
    words = "version: spectral_dist sources="
    disagree(local, Own(environment={"PYTHONPATH": str(copy)}), words, "code")


def other_text(local: Local) -> None:
    folder = local.folder / "elsewhere"
    folder.mkdir()
    shutil.copy(local.folder / "long.txt", folder)
    write_text(folder / "short.txt", documents=201, words=25)
    disagree(local, Own(folder=folder), "text: short=", "text")


FAULTS = [killed, service_killed, stopped, hung, never_came, lead_never_came]
DISAGREEMENTS = [other_settings, other_code, other_text]


def test_the_others_end_and_name_it(tmp_path: Path) -> None:
    """All at once, because most of their time is waiting."""

    def act(case: Callable[[Local], None]) -> None:
        folder = tmp_path / case.__name__
        folder.mkdir()
        with local_runs(folder) as local:
            case(local)

    with local_runs(tmp_path) as local:  # compiled before, or a start would look like a hang
        run = local.start(*PAIR, "--run_name", "first", processes=2)
        run.wait_for("  loss ")
    with ThreadPoolExecutor(3) as pool:
        for outcome in [pool.submit(act, case) for case in [*FAULTS, *DISAGREEMENTS]]:
            outcome.result()
