"""Several processes on one host: who they are, how they are told to stop, how they end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spectral_dist.launch import cpu_devices, exit_code, gpu_shares, identity, main, parse
from tests.waiting import finish, wait_until

ROOT = Path(__file__).parents[2]
# The launcher with stand-ins in place of the training: argv holds their code and --wait.
LAUNCHER = """
import os, sys
from spectral_dist.launch import Processes, identity
environments = [os.environ | identity(rank, 3, "127.0.0.1:1") for rank in range(3)]
sys.exit(Processes([sys.executable, "-c", sys.argv[1]], environments).wait(float(sys.argv[2])))
"""
# What every stand-in begins with.
HEAD = """
import os, signal, sys, time
rank = int(os.environ["JAX_PROCESS_ID"])
def say(text):
    os.write(1, f"{text}\\n".encode())
"""


@contextmanager
def launched(code: str, wait: float = 60) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, HEAD + code, str(wait)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def lines_until(process: "subprocess.Popen[str]", count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


# ---- flags ----


def test_the_words_after_the_dashes_belong_to_the_program() -> None:
    flags, program, words = parse(["--processes", "2", "--", "train", "--mesh=2x4x1", "--", "x"])
    assert (flags.processes, flags.devices_per_process, flags.wait) == (2, None, 900.0)
    assert (program, words) == ("train", ["--mesh=2x4x1", "--", "x"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--", "train"], "--processes"),
        (["--processes", "0", "--", "train"], "processes=0: must be positive"),
        (["--processes", "2", "--wait", "nan", "--", "train"], "wait=nan: must be positive"),
        (["--processes", "2", "--devices-per-process", "-1", "--", "train"], "devices_per_process"),
        (["--processes", "2", "--wiat", "1", "--", "train"], "unknown flag '--wiat'"),
        (["--processes", "2"], "program='': after -- comes one of train"),
        (["--processes", "2", "--", "dryrun"], "program='dryrun': after -- comes one of train"),
    ],
)
def test_a_wrong_flag_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(argv)


def test_a_wrong_setting_of_the_program_is_said_once_and_starts_nothing() -> None:
    words = ["--processes", "3", "--devices_per_process", "1", "--", "train", "--stepz", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "spectral_dist.launch", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown flag '--stepz'; did you mean --steps?")
    assert done.stderr.count("\n") == 1


# ---- what each process is told ----


def test_each_process_is_told_who_it_is() -> None:
    assert identity(1, 2, "127.0.0.1:5") == {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:5",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }


def test_cpu_devices_come_after_the_flags_that_are_there() -> None:
    assert cpu_devices(4, {"XLA_FLAGS": "--xla_x=1"}) == {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_x=1 --xla_force_host_platform_device_count=4",
    }


def test_gpus_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listing = tmp_path / "nvidia-smi"
    listing.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: NVIDIA L4"; done\n')
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu_shares(2) == ["0,1", "2,3"]
    assert gpu_shares(1) == []
    with pytest.raises(ValueError, match="processes=3: must divide the 4 GPUs"):
        gpu_shares(3)
    # Two of the four are visible: indices count among them.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert gpu_shares(2) == ["0", "1"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert gpu_shares(2) == []


# ---- the console ----


def test_the_first_process_has_the_console_and_the_others_their_rank() -> None:
    code = "say('out'); print('err', file=sys.stderr, flush=True); sys.stdout.write('no end')"
    with launched(code) as process:
        out, err = finish(process)
    assert process.returncode == 0
    assert sorted(out.replace("no end[", "no end\n[").splitlines()) == sorted(
        ["out", "no end", "[1] out", "[1] no end", "[2] out", "[2] no end"]
    )
    assert sorted(err.splitlines()) == ["[1] err", "[2] err", "err"]


# ---- how they end ----


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [
        ([0, 0, 0], 0),
        ([0, 75, 75], 75),
        ([76, 137, 76], 137),  # the loss is noticed before the killed one is reaped
        ([2, 1], 2),
        ([0, 76, 76], 76),
        ([], 0),
    ],
)
def test_the_exit_code_is_that_of_the_cause(codes: list[int], wanted: int) -> None:
    assert exit_code(codes) == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_process_once(number: signal.Signals) -> None:
    code = f"""
got = []
for n in ({int(signal.SIGINT)}, {int(signal.SIGTERM)}, {int(signal.SIGUSR1)}):
    signal.signal(n, lambda number, frame: got.append(number))
say("ready")
while not got:
    time.sleep(0.01)
time.sleep(0.5)
say(f"got {{got}}")
sys.exit(75)
"""
    with launched(code) as process:
        ready = lines_until(process, 3)
        assert sorted(ready) == ["[1] ready", "[2] ready", "ready"]
        process.send_signal(number)
        out, err = finish(process)
    wanted = f"got [{int(number)}]"
    assert sorted(out.splitlines()) == [f"[1] {wanted}", f"[2] {wanted}", wanted]
    assert (process.returncode, err) == (75, "")


def test_the_others_have_time_to_end_by_themselves_after_a_failure() -> None:
    code = """
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
sys.exit(76)
"""
    with launched(code) as process:
        _, err = finish(process)
    assert process.returncode == 137
    assert err == "launch: process 1 was killed by signal 9\n"


def test_what_does_not_end_after_a_failure_is_killed() -> None:
    code = """
if rank == 2:
    sys.exit(3)
for n in (signal.SIGINT, signal.SIGTERM):
    signal.signal(n, signal.SIG_IGN)
say(os.getpid())
time.sleep(600)
"""
    with launched(code, wait=0.5) as process:
        pids = [int(line.removeprefix("[1] ")) for line in lines_until(process, 2)]
        _, err = finish(process)
    assert process.returncode == 3
    assert not any(map(is_alive, pids))
    for rank in (0, 1):
        assert f"launch: process {rank} still ran 0.5 s later and was killed" in err


def test_none_of_them_outlives_a_launcher_that_is_killed() -> None:
    with launched("say(os.getpid()); time.sleep(600)") as process:
        pids = [int(line.rpartition(" ")[2]) for line in lines_until(process, 3)]
        assert all(map(is_alive, pids))
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not any(map(is_alive, pids)), "the end of all")


def test_the_launcher_does_not_load_jax() -> None:
    code = "import sys, spectral_dist.launch; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("name", "file"), [("slurm", "slurm_l4.sh"), ("kubernetes", "kubernetes_jobset.yaml")]
)
def test_launch_files_are_printed(name: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    wanted = Path(__file__).parents[2] / "launch" / file
    assert capsys.readouterr().out == wanted.read_text(encoding="utf-8")
