"""A real SLURM cluster of one node on this machine; needs Debian's slurmctld, slurmd, slurm-client and munge.

No cgroups, no task binding, a key of its own: it runs in a container. Jobs of the partition `urgent` preempt those of
`ordinary`, which have GRACE seconds to save and end.
"""

import contextlib
import dataclasses
import getpass
import os
import pathlib
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

from processes import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name) is None]
GRACE = 120
# cred_expire: how long a job that was queued again has to wait; two minutes elsewhere.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2
PartitionName=ordinary Nodes=localhost Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes=localhost PriorityTier=2 PreemptMode=OFF
"""


@dataclasses.dataclass(frozen=True)
class Node:
    """The running cluster.

    Attributes:
      environment: of its commands.
    """

    environment: dict[str, str]

    def submit(self, *words: str, **environment: str) -> str:
        """Hands a job to sbatch; returns its number."""
        return self._say("sbatch", "--parsable", *words, **environment)

    def facts(self, job: str) -> dict[str, str]:
        """What scontrol knows of it: JobState, Restarts, ExitCode and more."""
        return dict(re.findall(r"(\w+)=(\S*)", self._say("scontrol", "show", "job", job)))

    def wait(self, job: str, seconds: float) -> dict[str, str]:
        """Its facts once it has ended for good."""
        end = time.monotonic() + seconds
        going = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        while (facts := self.facts(job))["JobState"] in going:
            assert time.monotonic() < end, facts
            time.sleep(0.5)
        return facts

    def _say(self, *words: str, **environment: str) -> str:
        variables = self.environment | environment
        done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[Node]:
    """Starts the daemons in this folder, and ends them and all their jobs."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    values = {"controller_port": free_port(), "node_port": free_port(), "grace": GRACE}
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    conf.write_text(CONFIG.format(host=host, user=user, folder=folder, **values), encoding="utf-8")
    node = Node({**os.environ, "SLURM_CONF": str(conf)})
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = (
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "localhost"],
    )
    with contextlib.ExitStack() as daemons:
        for command in commands:
            daemons.enter_context(_daemon(command, node, folder / f"{command[0]}.out"))
            time.sleep(1)
        try:
            yield node
        finally:
            user = getpass.getuser()
            subprocess.run(["scancel", "--user", user], env=node.environment, check=False)
            time.sleep(1)


@contextlib.contextmanager
def _daemon(command: list[str], node: Node, log: pathlib.Path) -> Iterator[None]:
    with log.open("wb") as file:
        daemon = subprocess.Popen(command, env=node.environment, stdout=file, stderr=file)
    try:
        yield
        assert daemon.poll() is None, f"{command[0]} ended:\n{log.read_text(encoding='utf-8')}"
    finally:
        daemon.terminate()
        daemon.wait(30)
