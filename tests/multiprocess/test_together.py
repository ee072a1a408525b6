"""Several runs that share a folder: one trains, one builds the text."""

import signal
from pathlib import Path

import pytest

from tests.multiprocess.local import local_runs, losses
from tests.waiting import wait_until

FLAGS = ["--steps", "40", "--save_every", "10", "--eval_every", "1000"]

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_one_run_in_a_folder(tmp_path: Path) -> None:
    """Two at once: one trains and the other is refused; a killed one leaves no lock."""
    with local_runs(tmp_path) as local:
        runs = [local.start(*FLAGS, "--run_name", "one") for _ in range(2)]
        codes = [run.wait()[0] for run in runs]
        assert sorted(codes) == [0, 2], [run.told() for run in runs]
        refused, trained = runs[codes.index(2)].ranks[0], runs[codes.index(0)].ranks[0]
        words = f"error: run_name='one': process {trained.process.pid} on "
        assert refused.err.startswith(words), refused.err
        assert "is training in" in refused.err
        assert refused.err.count("\n") == 1
        assert list(losses(local.run_folder("one"))) == list(range(1, 41))
        killed = local.start(*FLAGS, "--run_name", "two")
        killed.wait_for("  loss ")
        killed.send(signal.SIGKILL, 0)
        killed.wait()
        assert (local.run_folder("two") / ".lock").exists()
        local.run(*FLAGS, "--run_name", "two")


def test_a_text_is_built_once_and_by_the_next_if_the_first_is_killed(tmp_path: Path) -> None:
    with local_runs(tmp_path) as local:
        with (tmp_path / "big.txt").open("w", encoding="utf-8") as file:
            for _ in range(50):
                file.write("bir iki üç dört beş altı yedi\n" * 40_000)
        flags = ["--data_paths", "big.txt", "--steps", "2", "--run_name"]
        first = local.start(*flags, "first")
        first.wait_until(lambda: list(tmp_path.glob(".big.bin.*.tmp")), "the building")
        first.send(signal.SIGSTOP, 0)
        others = [local.start(*flags, f"other_{i}") for i in range(2)]
        for other in others:
            pid = first.ranks[0].process.pid
            other.wait_for(f"big.txt: waiting for process {pid} on ")
        first.send(signal.SIGKILL, 0)
        assert [other.wait() for other in others] == [[0], [0]], [o.told() for o in others]
        built = [" documents -> big.bin" in other.ranks[0].out for other in others]
        assert sorted(built) == [False, True]
        wait_until(lambda: not list(tmp_path.glob("*.lock")), "no lock is left")
