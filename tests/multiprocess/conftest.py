"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd, in one folder.

Only what is started here is stopped: every daemon is a child of the tests, with its own ports, key,
sockets and node names, so that two sessions can run side by side. Where SLURM is missing the tests
are skipped, unless SPECTRAL_TESTS_NEED_SLURM is set, as in CI.
"""

import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT
from tests.waiting import Patience, wait_until

SCRIPT = ROOT / "launch" / "slurm_l4.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
HOSTS = Path("/etc/hosts")

# Short times where a cluster has minutes. cred_expire also says how long SLURM holds a requeued
# job back (5 is the least), and ReturnToService=2 takes a node back once its slurmd answers again.
# The GPUs are counted and not there: jobs that compute run on CPU devices.
CONF = """\
ClusterName=tests
# The port where the processes meet comes from the job's number: another session has other numbers.
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobRequeue=1
ReturnToService=2
SlurmdTimeout=6
KillWait=10
MinJobAge=600
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} {resources}
NodeName={nodes[1]} NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} {resources}
PartitionName=l4 Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
RESOURCES = "CPUs=8 RealMemory=1000 Gres=gpu:l4:8"


@dataclass
class Slurm:
    """The cluster: its daemons and the commands that the tests give it."""

    folder: Path
    nodes: tuple[str, str]
    environment: dict[str, str]
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def command(self, *words: str) -> str:
        """Run one of SLURM's commands; return what it prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground, as a child; its log is NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node, for the first time or again."""
        self.start(node, "slurmd", "-D", "-N", node)

    def node_states(self) -> list[str]:
        """Return the states of both nodes, such as idle, allocated or down*."""
        return self.command("sinfo", "-N", "-h", "-o", "%T").split()

    def wait_for_idle_nodes(self) -> None:
        """Wait until the next job finds both nodes free."""
        patience = Patience(self.processes, self.node_states)
        wait_until(lambda: self.node_states() == ["idle", "idle"], self.log, patience)

    def crash_node(self, node: str) -> None:
        """End a node's slurmd, its steps and their tasks at once, as if the power went."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for pid in self.processes(f"SLURMD_NODENAME={node}"):
            # slurmstepd has the variables of slurmd; its tasks have those of the node.
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            for each in (parent, pid):
                if each > 1 and each != os.getpid():
                    with suppress(ProcessLookupError):
                        os.kill(each, signal.SIGKILL)

    def processes(self, *variables: str) -> list[int]:
        """Return the processes of this cluster; those that have all variables ("NAME=value")."""
        wanted = {f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()}
        wanted |= {variable.encode() for variable in variables}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
        return found

    def log(self) -> str:
        """Return the ends of all logs, for a failure's text."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in logs)

    def stop(self) -> None:
        """Stop all that this cluster has started."""
        with suppress(AssertionError, pytest.fail.Exception):
            self.command("scancel", "--user=root")
            self.wait_for_idle_nodes()
        for name in (*self.nodes, "slurmctld", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
                try:
                    self.daemons[name].wait(10)
                except subprocess.TimeoutExpired:
                    self.daemons[name].kill()
                    self.daemons[name].wait()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass
class Job:
    """A submitted job."""

    slurm: Slurm
    folder: Path
    number: str

    @property
    def facts(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        text = self.slurm.command("scontrol", "--oneliner", "show", "job", self.number)
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def output(self) -> str:
        """The job's own output: the script's lines and those of rank 0."""
        path = self.folder / f"slurm-{self.number}.out"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def logs(self) -> dict[str, str]:
        """What every rank has printed, by the names of the files."""
        folder = self.folder / "logs" / self.number
        return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.log")}

    def described(self) -> str:
        """All there is to know, for a failure's text."""
        ranks = "\n".join(f"== {name}\n{text}" for name, text in sorted(self.logs().items()))
        return f"{self.facts}\n{self.output()}\n{ranks}\n{self.slurm.log()}"

    def signal(self, name: str) -> None:
        """Send a signal to the tasks, as scancel does by default."""
        self.slurm.command("scancel", f"--signal={name}", self.number)

    def kill_rank(self, rank: int) -> None:
        """Send SIGKILL to the task of a rank, and to nothing else."""
        # srun and the control service have the same variables.
        training = f"{sys.executable}\0-m\0spectral_dist.train\0".encode()
        found = [
            pid
            for pid in self.slurm.processes(f"SLURM_PROCID={rank}")
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(training)
        ]
        assert found
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition, as long as the job or SLURM does something."""

        def said() -> object:
            return self.facts["JobState"], self.output(), self.logs()

        patience = Patience(self.slurm.processes, said)
        wait_until(condition, self.described, patience, interval=0.1)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for a condition; the job must not end before."""
        over = ("COMPLETED", "FAILED")
        self.wait_until(lambda: condition() or self.facts["JobState"] in over)
        assert condition(), self.described()

    def wait_for_text(self, pattern: str) -> None:
        """Wait until the job's output matches a regular expression."""
        self.wait_for(lambda: re.search(pattern, self.output()))

    def wait_for_end(self, state: str = "COMPLETED") -> dict[str, str]:
        """Wait until the job is over, in this state; return its facts."""
        # Not NODE_FAIL, which a job is in until it is requeued.
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        self.wait_until(lambda: self.facts["JobState"] in over)
        facts = self.facts
        assert facts["JobState"] == state, self.described()
        return facts


@contextmanager
def host_names(*names: str) -> Iterator[None]:
    """Let names stand for this machine while the context lasts: JAX connects to the first node."""
    line = f"127.0.0.1 {' '.join(names)} # tests of spectral_dist\n"
    _edit_hosts(lambda text: text.rstrip("\n") + "\n" + line)
    try:
        yield
    finally:
        _edit_hosts(lambda text: text.replace(line, ""))


def _edit_hosts(edit: Callable[[str], str]) -> None:
    # In place and locked: in a container the file is a mount and cannot be replaced, and another
    # session may be at it.
    with HOSTS.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = edit(file.read())
        file.seek(0)
        file.write(text)
        file.truncate()


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def what_is_missing() -> str | None:
    """Return why SLURM cannot be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found (apt-get install slurmctld slurmd munge)"
    if os.geteuid() != 0 or not os.access(HOSTS, os.W_OK):
        return "starting SLURM needs root and a writable /etc/hosts"
    return None


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A cluster of two idle nodes."""
    reason = what_is_missing()
    if reason is not None:
        if os.environ.get("SPECTRAL_TESTS_NEED_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    host = socket.gethostname().partition(".")[0]
    nodes = (f"tests{os.getpid()}n1", f"tests{os.getpid()}n2")
    # A short path: a socket's has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm_") as name, host_names(*nodes):
        folder = Path(name)
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        for gpu in range(8):  # as devices, each like /dev/null: SLURM shows no other file to a task
            os.mknod(folder / f"nvidia{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        gres = f"Name=gpu Type=l4 File={folder}/nvidia[0-7]\n"
        (folder / "gres.conf").write_text(gres, encoding="utf-8")
        conf = CONF.format(
            first_job=secrets.randbelow(1_000_000) + 1,
            host=host,
            ports=free_ports(3),
            folder=folder,
            nodes=nodes,
            resources=RESOURCES,
        )
        (folder / "slurm.conf").write_text(conf, encoding="utf-8")
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        cluster = Slurm(folder, nodes, outside | {"SLURM_CONF": str(folder / "slurm.conf")})
        try:
            munge = ("key-file", "socket", "pid-file", "log-file", "seed-file")
            files = [f"--{option}={folder}/munge.{option.partition('-')[0]}" for option in munge]
            cluster.start("munged", "munged", "--foreground", "--force", *files)
            wait_until((folder / "munge.socket").exists, cluster.log)
            cluster.start("slurmctld", "slurmctld", "-D")
            for node in nodes:
                cluster.start_node(node)
            controller = ["scontrol", "ping"]
            wait_until(
                lambda: (
                    b"UP"
                    in subprocess.run(
                        controller, env=cluster.environment, capture_output=True
                    ).stdout
                ),
                cluster.log,
            )
            cluster.wait_for_idle_nodes()
            yield cluster
        finally:
            cluster.stop()


Submit = Callable[..., Job]


@pytest.fixture(scope="session")
def submit_in(slurm: Slurm) -> Submit:
    """Submit launch/slurm_l4.sh: submit_in(folder, *settings, sbatch=words, **environment)."""

    def run(folder: Path, *settings: str, sbatch: tuple[str, ...] = (), **environment: str) -> Job:
        slurm.wait_for_idle_nodes()
        ours = {
            "PYTHONPATH": str(ROOT),
            "SPECTRAL_PYTHON": sys.executable,
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        done = subprocess.run(
            ["sbatch", "--parsable", *sbatch, str(SCRIPT), *settings],
            cwd=folder,
            env=slurm.environment | ours | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return Job(slurm, folder, done.stdout.strip())

    return run


@pytest.fixture
def submit(submit_in: Submit, tmp_path: Path) -> Submit:
    """The same in the test's own folder."""
    return partial(submit_in, tmp_path)
