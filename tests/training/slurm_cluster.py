"""A Slurm cluster on the hosts of hosts.py: the controller on the first, a node on each."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from hosts import Hosts, environment, search_path, wait_for

CONFIGURATION = """
ClusterName=small
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=20
SchedulerParameters=sched_interval=1,bf_interval=1
MinJobAge=300
NodeName={nodes} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={nodes} Default=YES MaxTime=10 OverSubscribe=NO State=UP
"""


class SlurmCluster:
    """Daemons of Slurm and of its authentication on hosts that are there; they end with them.

    Args:
        hosts: entered already.
        folder: for state, logs and sockets.
    """

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        folder.mkdir()
        folder.chmod(0o755)
        (folder / "state").mkdir()
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                controller=hosts.names[0], folder=folder, nodes=",".join(hosts.names), cpus=os.cpu_count()
            )
        )
        self._authenticate()
        first, log = hosts.names[0], folder / "daemons.log"
        hosts.start(first, [_program("slurmctld"), "-D"], log, self.variables)
        for name in hosts.names:
            hosts.start(name, [_program("slurmd"), "-D", "-N", name], log, self.variables)
        wait_for("idle nodes", self._idle, 60)

    def run(self, *command: str, check: bool = True) -> str:
        """A command of Slurm's on the first host; its output."""
        call = self.hosts.command(self.hosts.names[0], command)
        done = subprocess.run(
            call,
            env={**environment(), **self.hosts.variables, **self.variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """State of a job, in Slurm's words."""
        words = dict(
            word.split("=", 1) for word in self.run("scontrol", "-o", "show", "job", job).split() if "=" in word
        )
        return words["JobState"]

    def _idle(self) -> bool:
        return self.run("sinfo", "-h", "-o", "%t %D", check=False).split() == ["idle", str(len(self.hosts.names))]

    def _authenticate(self) -> None:
        """One munged serves all hosts, through a socket in the folder."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        options = ["--key-file", str(key), "--socket", str(self.folder / "munge.socket"), "--foreground", "--force"]
        files = [
            f"--{what}-file={self.folder / name}"
            for what, name in (("pid", "munge.pid"), ("seed", "munge.seed"), ("log", "munge.log"))
        ]
        self.hosts.start(self.hosts.names[0], [_program("munged"), *options, *files], self.folder / "munged.out")
        wait_for("socket of munged", (self.folder / "munge.socket").exists, 10)


def _program(name: str) -> str:
    found = shutil.which(name, path=search_path())
    assert found is not None, f"{name} is not installed"
    return found
