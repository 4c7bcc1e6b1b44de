"""A Slurm cluster for tests: the one that SLURM_CONF names, or a small one of Debian packages.

The small one has two nodes on this machine (`slurmd -N`), no accounting, and partitions `batch` and
`high`, whose jobs preempt those of `batch`. It needs root and the packages slurm-wlm and munge.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support import leaks

SKIP = (
    "no Slurm cluster: set SLURM_CONF to one with two nodes of four CPUs that see this folder, or"
    " run as root where slurmctld, slurmd and munged are installed (Debian: slurm-wlm, munge)"
)
NODES = ("n1", "n2")
_DAEMONS = ("slurmctld", "slurmd", "munged", "mungekey")
_START_TIMEOUT_S = 30

_CONF = """\
ClusterName=launcher-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
# The ranks' port follows from it: clusters at the same time must not have the same jobs.
FirstJobId={first_job}
AuthType=auth/munge
# cred_expire is also how long a requeued job is held back; the default is two minutes.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=3
MessageTimeout=3
TCPTimeout=1
InactiveLimit=0
KillWait=5
CompleteWait=0
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} {node}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} {node}
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""
_NODE = "CPUs=4 RealMemory=2000 Gres=gpu:2 State=UNKNOWN"


@dataclass
class Cluster:
    """A running cluster; `is_own` if its daemons may be killed."""

    environment: dict[str, str]
    is_own: bool = False
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _commands: dict[str, list[str]] = field(default_factory=dict)

    def require_own(self, to: str) -> None:
        """Skip the test that is `to` do something to a cluster that others may use."""
        if not self.is_own:
            pytest.skip(f"only a cluster of the test's own may {to}")

    def run(self, *command: str, check: bool = True) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def word(self, job: str) -> str:
        """Slurm's word for the state of a job; "" if it does not know the job."""
        return self.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", job, check=False)

    def start(self, name: str, *command: str) -> None:
        """Start a daemon."""
        self._commands[name] = [*command]
        log = Path(self.environment["SLURM_CONF"]).parent / f"{name}.out"
        # Without the mark of what tests start: they outlive the test that starts one again.
        environment = {**os.environ, **self.environment}
        environment.pop(leaks.MARKER, None)
        with open(log, "ab") as output:
            self.daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Kill a daemon."""
        self.daemons[name].send_signal(signal.SIGKILL)
        self.daemons[name].wait()

    def stop(self, name: str) -> None:
        """End a daemon in order: a controller writes down which jobs it has.

        One that is killed forgets the newest, gives their ids away again, and nodes that still run
        them are drained for it.
        """
        self.daemons[name].terminate()
        self.daemons[name].wait(_START_TIMEOUT_S)

    def again(self, name: str) -> None:
        """Start an ended daemon again, and wait for the cluster."""
        self.start(name, *self._commands[name])
        self.await_nodes()

    def await_nodes(self) -> None:
        """Wait until all nodes take jobs."""

        def states() -> list[str]:
            return self.run("sinfo", "-h", "-N", "-o", "%T", check=False).split()

        ready = {"idle", "mixed", "allocated", "completing"}
        wait_for(lambda: states() and set(states()) <= ready, "the nodes", _START_TIMEOUT_S)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited in vain for {what}")


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster | None]:
    """A cluster; None where there is none and none can be started."""
    if os.environ.get("SLURM_CONF") and shutil.which("sbatch"):
        yield Cluster({"SLURM_CONF": os.environ["SLURM_CONF"]})
    elif os.geteuid() == 0 and all(shutil.which(name) for name in _DAEMONS):
        yield from _own(folder)
    else:
        yield None


def _own(folder: Path) -> Iterator[Cluster]:
    host = socket.gethostname().partition(".")[0]
    (folder / "state").mkdir()
    ports = _free_ports(3)
    first_job = 1 + ports[0] % 9000
    text = _CONF.format(host=host, folder=folder, ports=ports, first_job=first_job, node=_NODE)
    (folder / "slurm.conf").write_text(text)
    for number in range(2):  # of a GPU, Slurm only wants a file with a number
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-1]\n")
    hosts = folder / "hosts"
    hosts.write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n")
    made = Cluster({"SLURM_CONF": str(folder / "slurm.conf")}, is_own=True)
    subprocess.run(["mungekey", "--create", f"--keyfile={folder}/munge.key"], check=True)
    files = [
        f"--{name}-file={folder}/munge.{end}"
        for name, end in (("key", "key"), ("pid", "pid"), ("seed", "seed"), ("log", "log"))
    ]
    try:
        made.start(
            "munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.sock", *files
        )
        wait_for((folder / "munge.sock").exists, "munged", _START_TIMEOUT_S)
        made.start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            # Its own /etc/hosts, in which the names of the nodes resolve for the ranks too.
            lines = 'mount --bind "$1" /etc/hosts && exec slurmd -D -N "$2"'
            made.start(node, "unshare", "--mount", "bash", "-c", lines, "-", str(hosts), node)
        made.await_nodes()
        yield made
    finally:
        for name in reversed(made.daemons):
            if made.daemons[name].poll() is None:
                made.kill(name)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
