"""`python -m spectral_dist.launch`: several processes on one host, without a scheduler.

Starts copies of an entry point and tells each who it is, through the variables that JAX itself
reads; passes signals on; ends them all when one fails. Knows nothing of what they do and imports no
JAX. Read `main`, then `Processes.wait`.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from spectral_dist.command_line import FAULT, Parser, run_main
from spectral_dist.flags import load_config

PROGRAMS = ("train",)
FILES = {"slurm": "slurm_l4.sh", "kubernetes": "kubernetes_jobset.yaml"}
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1  # prctl(2)


def main(argv: Sequence[str]) -> int:
    """Run a program in several processes; return the exit code of the first one that failed.

    With the name of a launch file (`slurm`, `kubernetes`) in place of flags, print that.
    """
    if argv and argv[0] in FILES:
        sys.stdout.write(launch_file(argv[0]))
        return 0
    flags, program, words = parse(argv)
    load_config(words, f"spectral_dist.{program}")  # a mistake is said once, not by every process
    shares = gpu_shares(flags.processes) if flags.devices_per_process is None else None
    address = f"127.0.0.1:{_free_port()}"
    environments = []
    for rank in range(flags.processes):
        environment = os.environ | identity(rank, flags.processes, address)
        if flags.devices_per_process is not None:
            environment |= cpu_devices(flags.devices_per_process, environment)
        elif shares:
            environment["JAX_LOCAL_DEVICE_IDS"] = shares[rank]
        environments.append(environment)
    command = [sys.executable, "-m", f"spectral_dist.{program}", *words]
    return Processes(command, environments).wait(flags.wait)


def launch_file(name: str) -> str:
    """Return the text of a launch file, from a checkout or an installed package.

    Args:
      name: a key of `FILES`.
    """
    beside = Path(__file__).parent / "launch_files"  # where the wheel puts them
    folder = beside if beside.is_dir() else Path(__file__).parents[1] / "launch"
    return (folder / FILES[name]).read_text(encoding="utf-8")


def make_parser() -> Parser:
    """Return the parser of the launcher's own flags."""
    parser = Parser(
        prog="python -m spectral_dist.launch",
        allow_abbrev=False,
        usage="%(prog)s --processes N [--devices_per_process N] [--wait S] -- train SETTING ...",
        description="Start a program in several processes on this host.",
        epilog="Without --devices_per_process the GPUs of the host are shared out evenly."
        " `slurm` or `kubernetes` in place of all flags prints a file to edit and to submit:"
        " launch slurm > job.sh",
    )
    parser.add_argument("--processes", type=int, required=True, help="how many to start")
    parser.add_argument(
        "--devices_per_process", type=int, help="run on CPU: devices that each process has"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=900.0,
        help="seconds that the others get to end by themselves after a failure; they are meant to"
        " within --hang_timeout, and are killed after this (default: 900)",
    )
    return parser


def parse(argv: Sequence[str]) -> tuple[Namespace, str, list[str]]:
    """Return the launcher's flags, the name of the program and the program's own words.

    Raises:
      ValueError: names the flag, its value and the rule.
    """
    split = list(argv).index("--") if "--" in argv else len(argv)
    flags = make_parser().read(argv[:split])
    for name in ("processes", "devices_per_process", "wait"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < 1e6:
            raise ValueError(f"{name}={value}: must be positive")
    program, *words = argv[split + 1 :] or [""]
    if program not in PROGRAMS:
        choices = ", ".join(PROGRAMS)
        raise ValueError(f"program={program!r}: after -- comes one of {choices}, and its settings")
    return flags, program, words


# ---- what each process is told ----


def identity(rank: int, processes: int, address: str) -> dict[str, str]:
    """Return the variables by which JAX knows a process among the others."""
    return {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(rank),
    }


def cpu_devices(count: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that give a process `count` devices of the CPU."""
    flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}


def gpu_shares(processes: int) -> list[str]:
    """Return the GPUs of each process as indices, joined by commas; nothing without GPUs.

    Every process sees all GPUs and uses its share, so that NCCL can move data between two directly.

    Raises:
      ValueError: if the GPUs do not divide evenly.
    """
    count = _gpus()
    if count == 0 or processes == 1:
        return []
    if count % processes:
        raise ValueError(f"processes={processes}: must divide the {count} GPUs of this host")
    each = count // processes
    return [",".join(map(str, range(r * each, (r + 1) * each))) for r in range(processes)]


def _gpus() -> int:
    if os.environ.get("JAX_PLATFORMS", "cuda") not in ("", "cuda", "gpu"):
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip()])
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _free_port() -> int:
    # Free now; another program could take it before the first process does, which then says so.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- their life ----


class Processes:
    """The started processes, in the order of their ranks."""

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        """Start one process for each environment.

        The first one has the console; the others' lines come with their rank before them.
        """
        self._started: list[subprocess.Popen[bytes]] = []
        self._asked: list[int] = []
        self._ready = False
        for number in FORWARDED:
            # nohup has it ignored, to have a run outlive its terminal.
            ignored = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if not ignored:
                signal.signal(number, self._forward)
        tie = _tied_to_this_process()
        for rank, environment in enumerate(environments):
            own = None if rank == 0 else subprocess.PIPE
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=own,
                stderr=own,
                # A Ctrl-C goes to the launcher's group: each process gets it once, from here.
                process_group=0,
                preexec_fn=tie,
            )
            self._started.append(process)
        self._ready = True
        for number in self._asked:
            self._send(number)
        # Threads only now: a process must not be forked from one that has several.
        self._readers = [
            threading.Thread(target=_relay, args=(rank, pipe, out.buffer), daemon=True)
            for rank, process in enumerate(self._started)
            for pipe, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()

    def wait(self, patience: float) -> int:
        """Wait for all of them to end.

        Args:
          patience: seconds that the others get after one has failed; then they are killed.

        Returns:
          What `exit_code` makes of their exit codes.
        """
        running = dict(enumerate(self._started))
        ended: list[int] = []
        give_up = None
        while running:
            for rank, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[rank]
                ended.append(_shell_code(process.returncode))
                if process.returncode < 0:  # what ends by itself says why
                    _say(f"process {rank} was killed by signal {-process.returncode}")
                if ended[-1] != 0 and give_up is None:
                    give_up = time.monotonic() + patience
            if running and give_up is not None and time.monotonic() >= give_up:
                for rank, process in running.items():
                    _say(f"process {rank} still ran {patience:g} s later and was killed")
                    process.kill()
                    process.wait()
                break
            time.sleep(POLL_SECONDS)
        for reader in self._readers:
            reader.join(timeout=1)  # a process that a process left behind may hold the pipe
        return exit_code(ended)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self._ready:
            self._send(number)
        else:
            self._asked.append(number)

    def _send(self, number: int) -> None:
        for process in self._started:
            process.send_signal(number)  # does nothing where the process has ended


def exit_code(codes: Sequence[int]) -> int:
    """Return the code that says best how the processes ended.

    It is that of the first one that failed: what comes later is mostly its consequence. 76 (FAULT)
    always is, so any other failure goes before it.

    Args:
      codes: exit codes in the order in which the processes ended; 128 + the signal if killed.
    """
    failures = [code for code in codes if code != 0]
    causes = [code for code in failures if code != FAULT]
    return (causes or failures or [0])[0]


def _shell_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _tied_to_this_process() -> Callable[[], None] | None:
    """Return what makes a new process end with this one, even if this one is killed.

    A checkpoint survives SIGKILL, a process that nobody watches would hold its devices for ever.
    Only Linux can do this; elsewhere a killed launcher leaves the others to --hang_timeout.
    """
    if sys.platform != "linux":
        return None
    prctl, launcher = ctypes.CDLL(None).prctl, os.getpid()

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != launcher:  # it was killed before the line above
            os._exit(FAULT)

    return tie


def _relay(rank: int, pipe: IO[bytes], out: IO[bytes]) -> None:
    """Copy lines with the rank before them, to the end, even when nobody reads them."""
    for line in pipe:
        with contextlib.suppress(OSError, ValueError):
            out.write(f"[{rank}] ".encode() + line.rstrip(b"\n") + b"\n")
            out.flush()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"launch: {text}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    run_main(main)
