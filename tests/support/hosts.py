"""Hosts on one machine: network and host-name namespaces with an sshd each, seeing the same files.

Needs root, `ip` and `unshare`, and openssh-server; tests skip without, saying so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_SSHD = "/usr/sbin/sshd"
_PORT = 2222


@dataclass(frozen=True)
class Host:
    """One of the hosts."""

    name: str
    """What it calls itself, and the others call it."""
    address: str
    interface: str
    namespace: str

    def command(self, *words: str) -> tuple[str, ...]:
        """The command line that runs `words` on this host."""
        inside = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *words)
        return ("ip", "netns", "exec", self.namespace, *inside)

    def unplug(self) -> None:
        """Take the host off the network."""
        _run("ip", "link", "set", f"{self.namespace}b", "down")

    def plug(self) -> None:
        """Bring it back."""
        _run("ip", "link", "set", f"{self.namespace}b", "up")

    def processes(self) -> dict[int, str]:
        """Its processes but for sshd's: id -> command line."""
        found = {}
        done = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True
        )
        for pid in done.stdout.split():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if line and "sshd" not in line.split()[0]:
                    found[int(pid)] = line
        return found


@dataclass(frozen=True)
class Hosts:
    """All hosts, and how to reach them."""

    every: tuple[Host, ...]
    folder: Path

    @property
    def ssh_options(self) -> str:
        """Override for launch.ssh_options."""
        return f"launch.ssh_options=[-F,{self.folder / 'ssh_config'}]"

    def hostfile(self, slots: int = 1) -> Path:
        """A hostfile of all hosts."""
        file = self.folder / f"hostfile-{slots}"
        file.write_text("".join(f"{host.name} slots={slots}\n" for host in self.every))
        return file

    def assert_empty(self, within_s: float = 10.0) -> None:
        """Fail if a process other than sshd is left on any host."""
        end = time.monotonic() + within_s
        while (left := {k: v for h in self.every for k, v in h.processes().items()}) and (
            time.monotonic() < end
        ):
            time.sleep(0.1)
        assert not left


def missing() -> str:
    """What this machine lacks to have hosts; empty if nothing."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    tools = [tool for tool in ("ip", "unshare", "ssh", "ssh-keygen") if not shutil.which(tool)]
    if tools or not Path(_SSHD).exists():
        return "needs iproute2, util-linux and openssh-server: apt-get install openssh-server"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "this machine allows no network namespaces"


@contextlib.contextmanager
def made(folder: Path, count: int = 2) -> Iterator[Hosts]:
    """Hosts for the time of the `with`; the test is skipped where there can be none."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    _remove_leftovers()
    stem = f"lt{os.getpid()}"
    network = _free_network()
    every = tuple(
        Host(f"node{n}", f"{network}.{n}", "fabric0", f"{stem}n{n}") for n in range(1, count + 1)
    )
    hosts = Hosts(every, folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _make_network(hosts, stem, network)
        _make_keys(hosts)
        daemons += [_start_sshd(hosts, host) for host in every]
        _await_sshd(hosts)
        yield hosts
    finally:
        _kill([pid for host in every for pid in host.processes()])
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
        _remove(stem)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _free_network() -> str:
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True).stdout
    for third in itertools.count(os.getpid()):
        network = f"10.213.{third % 256}"
        if f"{network}." not in routes:
            return network
    raise AssertionError


def _make_network(hosts: Hosts, stem: str, network: str) -> None:
    names = "".join(f"{host.address} {host.name}\n" for host in hosts.every)
    _run("ip", "link", "add", f"{stem}b", "type", "bridge")
    _run("ip", "addr", "add", f"{network}.254/24", "dev", f"{stem}b")
    _run("ip", "link", "set", f"{stem}b", "up")
    for host in hosts.every:
        # `ip netns exec` shows the file as /etc/hosts to what runs there.
        etc = Path("/etc/netns", host.namespace)
        etc.mkdir(parents=True)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        _run("ip", "netns", "add", host.namespace)
        peer = f"{host.namespace}b"
        ends = ("peer", host.interface, "netns", host.namespace)
        _run("ip", "link", "add", peer, "type", "veth", *ends)
        _run("ip", "link", "set", peer, "master", f"{stem}b", "up")
        inside = ("ip", "-n", host.namespace)
        _run(*inside, "addr", "add", f"{host.address}/24", "dev", host.interface)
        _run(*inside, "link", "set", host.interface, "up")
        _run(*inside, "link", "set", "lo", "up")


def _make_keys(hosts: Hosts) -> None:
    for name in ("host_key", "user_key"):
        key = str(hosts.folder / name)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    lines = [f"Host {host.name}\n  HostName {host.address}" for host in hosts.every]
    options = {
        "Port": _PORT,
        "User": "root",
        "IdentityFile": hosts.folder / "user_key",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
    }
    common = "\n".join(["Host *", *(f"  {key} {value}" for key, value in options.items())])
    (hosts.folder / "ssh_config").write_text("\n".join([*lines, common]) + "\n")


def _start_sshd(hosts: Hosts, host: Host) -> subprocess.Popen[bytes]:
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "Port": _PORT,
        "ListenAddress": host.address,
        "HostKey": hosts.folder / "host_key",
        "AuthorizedKeysFile": hosts.folder / "user_key.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "yes",
        "PidFile": "none",
        "PrintMotd": "no",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    with open(hosts.folder / f"{host.name}-sshd.log", "wb") as log:
        return subprocess.Popen(
            host.command(_SSHD, "-D", "-e", "-f", "/dev/null", *words),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _await_sshd(hosts: Hosts) -> None:
    end = time.monotonic() + 20
    for host in hosts.every:
        config = str(hosts.folder / "ssh_config")
        command = ["ssh", "-F", config, "-o", "BatchMode=yes", host.name, "hostname"]
        while True:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            if done.stdout.strip() == host.name:
                break
            log = (hosts.folder / f"{host.name}-sshd.log").read_text()
            assert time.monotonic() < end, f"{done.stderr}\n{log}"
            time.sleep(0.1)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _remove(stem: str) -> None:
    for name in _namespaces(stem):
        pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        _kill([int(pid) for pid in pids.stdout.split()])
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", f"{name}b"], capture_output=True)
    subprocess.run(["ip", "link", "delete", f"{stem}b"], capture_output=True)
    for etc in Path("/etc/netns").glob(f"{stem}n*"):
        shutil.rmtree(etc, ignore_errors=True)


def _namespaces(stem: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(stem)]


def _remove_leftovers() -> None:
    """What a session left that was killed: its process id stands in the names."""
    for name in _namespaces("lt"):
        stem, _, _ = name.rpartition("n")
        if stem[2:].isdigit() and not Path("/proc", stem[2:]).exists():
            _remove(stem)
