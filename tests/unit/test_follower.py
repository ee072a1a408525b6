"""A process beside training: it outlives signals, learns of the end, and is waited for so long."""

import signal
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spectral_dist.outputs.follower import Follower
from tests.waiting import wait_until

Start = Callable[[str], Follower]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return a function that starts a follower, given what it does after the end of training."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def begin(at_the_end: str) -> Follower:
        code = f"""
            import os, pathlib, sys, time
            from spectral_dist.outputs.follower import training_end
            ended = training_end()
            pathlib.Path({str(tmp_path / "begun")!r}).write_text(os.environ["WORD"])
            assert ended.wait(60)
            {at_the_end}
        """
        (tmp_path / "its_module.py").write_text(textwrap.dedent(code))
        follower = Follower("its_module", environment={"WORD": "said"})
        wait_until(lambda: (tmp_path / "begun").exists(), "the follower has begun")
        return follower

    return begin


def test_it_goes_on_until_training_ends(start: Start, tmp_path: Path) -> None:
    follower = start("sys.exit(7)")
    assert (tmp_path / "begun").read_text() == "said"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        follower.process.send_signal(number)
    time.sleep(0.2)
    assert follower.process.poll() is None
    assert follower.finish(60) == 7
    assert follower.finish(60) == 7  # once more changes nothing


def test_one_that_does_not_end_is_ended(start: Start) -> None:
    follower = start("time.sleep(600)")
    assert follower.finish(0.1) is None
    follower.kill()
    assert follower.process.returncode == -signal.SIGKILL
    follower.kill()  # gone already
