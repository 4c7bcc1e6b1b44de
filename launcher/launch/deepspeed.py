"""`launch=deepspeed`: the hosts of a hostfile, reached by ssh or pdsh.

The hostfile, `include` and `exclude` are DeepSpeed's. Its own runner is not used: it quotes neither
paths nor values, ends remote ranks by `pkill -f`, and leaves them behind when it is killed itself.
"""

from __future__ import annotations

import shlex
import shutil
import socket
from pathlib import Path

from launcher import entry
from launcher.config.derive import hostfile
from launcher.config.derive.hostfile import Host
from launcher.config.schema.launch import DeepspeedConfig, RemoteShell
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import forwarded_environment
from launcher.launch.local import LocalBackend, prepare_log
from launcher.launch.spec import LaunchPlan, LaunchSpec, NodePlan
from launcher.launch.torchrun import (
    agent_log,
    coordinated,
    is_loopback,
    node_command,
    open_port,
)

#: Never ask for a password; notice within seconds that a host is not there or no longer there.
_SSH_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"),
)


class DeepspeedBackend(LocalBackend):
    """A supervisor on this host, which need not be one of the hostfile."""

    def plan(self, spec: LaunchSpec) -> LaunchPlan:
        """Commands of all hosts; `ConfigError` for a hostfile that does not fit the run."""
        assert isinstance(spec.options, DeepspeedConfig)
        hosts = hostfile.hosts(spec.options, spec.cwd)
        _refuse_another_world(spec, hosts)
        _refuse_missing_shell(spec.options.remote_shell)
        master = spec.options.master_addr or _address(hosts[0].name, alone=len(hosts) == 1)
        _refuse_loopback(spec.options, hosts, master)
        variables = {"MASTER_ADDR": master, "MASTER_PORT": str(open_port(master))}
        rank = ("-m", spec.module, str(spec.run), "--attempt", str(spec.attempt))
        python = entry.interpreter(spec.python)
        starts = _starts(spec, spec.options, hosts)
        nodes = tuple(
            NodePlan(host=host.name, slots=host.slots, command=(*python, *rank), start=start)
            for host, start in zip(hosts, starts, strict=True)
        )
        return coordinated("deepspeed", spec, nodes, variables)

    def logs(self, run: RunDir, attempt: int) -> list[Path]:
        """The preparation's log, what the coordinator says of the hosts, then rank 0's log."""
        return [prepare_log(run, attempt), agent_log(run, attempt), run.log(attempt, 0)]


def _refuse_another_world(spec: LaunchSpec, hosts: list[Host]) -> None:
    planned = (read_json(RunDir(spec.run).plan) or {}).get("world_size")
    ranks = sum(len(host.slots) for host in hosts)
    if planned not in (None, ranks):
        raise ConfigError(
            f"the hostfile now has {ranks} slots to use, the run is planned for {planned} ranks",
            where="launch.hostfile",
            hint="the hostfile has changed since the run was made: give it as many slots again",
        )


def _refuse_loopback(options: DeepspeedConfig, hosts: list[Host], master: str) -> None:
    """The first host is where all others look for rank 0."""
    if len(hosts) == 1 or not is_loopback(master):
        return
    name, slots = socket.gethostname(), len(hosts[0].slots)
    name = "NAME" if is_loopback(name) else name
    reached = f"launch.master_addr={name}, a name or address of it that the others reach"
    where = "launch.master_addr"
    if options.master_addr is None:
        where = str(options.hostfile)
        reached = f"write `{name} slots={slots}` in the place of {hosts[0].name}, or {reached}"
    raise ConfigError(
        f"rank 0 would be at {master}, where {hosts[1].name} finds only itself",
        where=where,
        hint=reached,
    )


def _refuse_missing_shell(shell: RemoteShell) -> None:
    if shutil.which(shell.value) is None:
        raise ConfigError(
            f"there is no {shell.value} on this host",
            where="launch.remote_shell",
            hint="install it, or choose the other one of ssh and pdsh",
        )


def _address(host: str, *, alone: bool) -> str:
    return "127.0.0.1" if alone and _is_here(host) else host.rpartition("@")[2].strip("[]")


def _is_here(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn())


def _starts(spec: LaunchSpec, options: DeepspeedConfig, hosts: list[Host]) -> list[tuple[str, ...]]:
    """The command for each host that is run here to bring it in."""
    if options.remote_shell is RemoteShell.pdsh:
        return [_pdsh(spec, options, host.name, number) for number, host in enumerate(hosts)]
    return [
        node_command(spec, number)
        if _is_here(host.name)
        else ("ssh", *_SSH_OPTIONS, *options.ssh_options, host.name, _remote(spec, number))
        for number, host in enumerate(hosts)
    ]


def _remote(spec: LaunchSpec, number: int) -> str:
    """What the login shell of a host is given, whichever shell it is."""
    return shlex.join(("sh", "-c", _script(spec, node_command(spec, number))))


def _script(spec: LaunchSpec, command: tuple[str, ...]) -> str:
    variables = [f"{name}={value}" for name, value in sorted(forwarded_environment().items())]
    return f"cd {shlex.quote(str(spec.cwd))} && exec {shlex.join(('env', *variables, *command))}"


def _pdsh(spec: LaunchSpec, options: DeepspeedConfig, host: str, number: int) -> tuple[str, ...]:
    """One for each host, so that a connection that is refused can be tried again by itself."""
    # pdsh closes the stdin of what it starts, and puts %n, %h and %u into it.
    command = tuple(word for word in node_command(spec, number) if word != "--lifeline")
    remote = shlex.join(("sh", "-c", _script(spec, command))).replace("%", "%%")
    ssh_options = " ".join((*_SSH_OPTIONS, *options.ssh_options))
    environment = ("env", f"PDSH_SSH_ARGS_APPEND={ssh_options}")
    return (*environment, "pdsh", "-S", "-R", "ssh", "-w", host, remote)
