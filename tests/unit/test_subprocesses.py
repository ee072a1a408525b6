"""Child processes: what they say, how their death is told, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from spectral_dist.subprocesses import ModuleProcess

# What every module below begins with.
BEGIN = """
import os, sys, time
from pathlib import Path
from spectral_dist.subprocesses import read_request, say
"""


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return what writes a module that this process, and so its children, can import."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body: str, name: str = "the_child") -> str:
        (tmp_path / f"{name}.py").write_text(BEGIN + textwrap.dedent(body), encoding="utf-8")
        return name

    return write


def wait_until_gone(pid: int, seconds: float = 30.0) -> None:
    """Wait for a process that is no child of ours to end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":  # nobody has asked for its exit code yet
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")


def test_it_gets_words_a_request_and_variables_and_says_events(write_module) -> None:  # type: ignore[no-untyped-def]
    module = write_module(
        """
        print("a line for people")
        say({"words": sys.argv[1:], "request": read_request()})
        say({"new": os.environ["NEW"], "home": os.environ.get("HOME")})
        """
    )
    request = {"text": "ığdır", "size": "x" * 200_000}  # more than a pipe holds
    with ModuleProcess(
        module, ["--a=1", "b"], request=request, environment={"NEW": "1", "HOME": None}
    ) as child:
        assert list(child.events()) == [
            {"words": ["--a=1", "b"], "request": request},
            {"new": "1", "home": None},
        ]
        assert child.wait() == 0


def test_a_death_is_told_with_its_exit_code_and_last_line(write_module) -> None:  # type: ignore[no-untyped-def]
    module = write_module("say({'at': 1})\nraise ValueError('no such thing')")
    with ModuleProcess(module) as child:
        assert list(child.events()) == [{"at": 1}]
        assert child.ending() == "ended (exit 1): ValueError: no such thing"
    killed = write_module("os.kill(os.getpid(), 9)", "killed")
    with ModuleProcess(killed, request="x" * 1_000_000) as child:
        assert child.ending() == "ended (exit -9, as where memory is short)"


def test_its_time_is_limited(write_module) -> None:  # type: ignore[no-untyped-def]
    with ModuleProcess(write_module("time.sleep(600)"), seconds=0.4) as child:
        assert list(child.events()) == []
        assert child.ending() == "took more than 0.4 s"


def test_leaving_the_block_ends_it_and_lets_it_clean_up(write_module, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    module = write_module(
        """
        try:
            say({"pid": os.getpid()})
            time.sleep(600)
        finally:
            Path(sys.argv[1]).write_text("cleaned")
        """
    )
    with ModuleProcess(module, [str(tmp_path / "left")]) as child:
        assert next(child.events())["pid"] == child.pid
    wait_until_gone(child.pid)
    assert (tmp_path / "left").read_text() == "cleaned"
    assert child.wait() == 128 + signal.SIGTERM


def test_one_that_does_not_listen_is_killed(write_module) -> None:  # type: ignore[no-untyped-def]
    module = write_module(
        """
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say({"ready": True})
        time.sleep(600)
        """
    )
    with ModuleProcess(module) as child:
        next(child.events())
        child.stop(grace=0.2)
    assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("deaf", [False, True])
def test_it_ends_when_its_parent_is_killed(write_module, tmp_path: Path, deaf: bool) -> None:  # type: ignore[no-untyped-def]
    """Even one whose main thread lets no signal handler run, as the compiler's."""
    wait = "import signal\nsignal.signal(15, signal.SIG_IGN)\n" if deaf else ""
    write_module(f"{wait}say({{'pid': os.getpid()}})\ntime.sleep(600)")
    parent = write_module(
        """
        from spectral_dist.subprocesses import ModuleProcess
        child = ModuleProcess("the_child")
        print(next(child.events())["pid"], flush=True)
        time.sleep(600)
        """,
        "the_parent",
    )
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-m", parent],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    wait_until_gone(pid)
