"""A forked program is told apart from a started one by nothing that a test looks at."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import Patience, processor_seconds, wait_until
from tests.warm import ROOT, WarmProcess, start_warm

TELL = """
import json, os, sys
import jax
json.dump({
    "argv": sys.argv, "cwd": os.getcwd(), "path": sys.path[:2], "pid": os.getpid(),
    "mine": os.environ.get("MINE"), "home": os.environ.get("HOME"),
    "cache": jax.config.jax_enable_compilation_cache, "devices": jax.device_count(),
    "name": __name__, "tty": sys.stdout.isatty(), "said": sys.stdin.read(),
}, sys.stdout)
print("to stderr", file=sys.stderr)
sys.exit(7)
"""
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def variables(**changes: str) -> dict[str, str]:
    flags = "--xla_force_host_platform_device_count=3"
    kept = {k: v for k, v in os.environ.items() if k != "HOME"}
    return kept | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "MINE": "x"} | changes


def test_a_fork_and_a_start_tell_the_same(tmp_path: Path) -> None:
    said = []
    for start in (start_warm, subprocess.Popen):
        process = start(
            [sys.executable, "-c", TELL, "one", "two"],
            env=variables(JAX_ENABLE_COMPILATION_CACHE="false"),
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            **PIPES,
        )
        assert isinstance(process, WarmProcess) == (start is start_warm)
        out, err = process.communicate("some words")
        assert (process.returncode, err) == (7, "to stderr\n")
        said.append(json.loads(out))
        assert said[-1].pop("pid") == process.pid
    assert said[0] == said[1]
    assert (said[0]["devices"], said[0]["home"], said[0]["cache"]) == (3, None, False)


def test_a_module_is_the_main_one(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(
        "import sys\nprint(__name__, __file__, sys.argv, *sys.path[:1])"
    )
    out = [
        start(
            [sys.executable, "-m", "words", "a"], env=variables(), cwd=tmp_path, **PIPES
        ).communicate()[0]
        for start in (start_warm, subprocess.Popen)
    ]
    assert out[0] == out[1] != ""


def test_signals_and_waiting(tmp_path: Path) -> None:
    code = "import time\nprint('ready', flush=True)\ntime.sleep(600)"
    with (tmp_path / "out").open("wb") as file:
        process = start_warm([sys.executable, "-c", code], env=variables(), stdout=file)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    wait_until(lambda: (tmp_path / "out").read_text() == "ready\n", "its word")
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait() == process.poll() == -signal.SIGKILL
    assert WarmProcess.all_cpu_seconds > 0


@pytest.mark.parametrize(
    ("name", "value"), [("PYTHONPATH", "/elsewhere"), ("LD_PRELOAD", ""), ("PYTHONSAFEPATH", "1")]
)
def test_what_is_read_while_loading_is_a_start(name: str, value: str) -> None:
    process = start_warm([sys.executable, "-c", ""], env=variables(**{name: value}))
    assert type(process) is subprocess.Popen
    assert process.wait() == 0


# ---- waiting ----


@pytest.mark.parametrize(("code", "moves"), [("time.sleep(60)", False), ("while True: pass", True)])
def test_patience_lasts_while_something_moves(code: str, moves: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", f"import time\n{code}"]) as process:
        patience = Patience(lambda: [process.pid], quiet_seconds=10 if moves else 1)
        while (left := patience.left()) and processor_seconds([process.pid]) < 0.5:
            time.sleep(0.05)
        process.kill()
    assert left == moves


def test_what_does_not_come_is_named() -> None:
    said = iter(range(20))  # then it is silent
    patience = Patience(tuple, lambda: next(said, None), quiet_seconds=0.1)
    with pytest.raises(pytest.fail.Exception, match="nothing moves: the end"):
        wait_until(lambda: False, lambda: "the end", patience)
    assert next(said, None) is None
