"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd in a folder.

Only what is started here is stopped: every daemon runs in the foreground as a child of the tests,
with its own ports, key, sockets and node names, so that two sessions can run side by side.
"""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm_l4.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
HOSTS = Path("/etc/hosts")
GPUS_PER_NODE = 8

# Short times where a real cluster has minutes. cred_expire is also how long SLURM holds a requeued
# job back; ReturnToService=2 takes a node back as soon as its slurmd answers again. GPUs are counted
# and not there: a test that says so runs on CPU devices instead.
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=1
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=8
SlurmctldTimeout=30
KillWait=10
InactiveLimit=0
MinJobAge=300
MaxNodeCount=16
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[0]} CPUs=8 {resources}
NodeName={nodes[1]} NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=8 {resources}
PartitionName=l4 Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """The cluster, and the few commands that the tests give it."""

    folder: Path
    nodes: tuple[str, str]
    environment: dict[str, str]
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def command(self, *words: str) -> str:
        """Run one of SLURM's commands; return what it prints."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what `scontrol show job` says."""
        text = self.command("scontrol", "show", "job", number, "--oneliner")
        return dict(pair.partition("=")[::2] for pair in text.split() if "=" in pair)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, for the first time or again."""
        self._start(node, "slurmd", "-D", "-N", node)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
