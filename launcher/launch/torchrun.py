"""`launch=torchrun`: torch's elastic agent on every node, started by hand with `launcher join`."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from pathlib import Path

from launcher import entry
from launcher.config.schema.launch import Rendezvous, TorchrunConfig
from launcher.core.errors import ConfigError, Problem
from launcher.core.ranks import FIRST_PORT, PORTS
from launcher.core.rundir import RunDir
from launcher.launch.local import LocalBackend, prepare_log
from launcher.launch.spec import LaunchPlan, LaunchSpec, NodePlan

#: Ports tried before one that is taken is accepted.
_TRIES = 64
_LOOPBACK = ("localhost", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")


class TorchrunBackend(LocalBackend):
    """This host is node 0; it holds the rendezvous and decides when all start."""

    def plan(self, spec: LaunchSpec) -> LaunchPlan:
        """Commands of all nodes; `ConfigError` for an endpoint that is none."""
        assert isinstance(spec.options, TorchrunConfig)
        host, port = endpoint(spec.options)
        if spec.nodes > 1 and is_loopback(host):
            raise ConfigError(
                f"{host!r} is another host on each of the {spec.nodes} nodes: they would not meet",
                where="launch.endpoint",
                hint="launch.endpoint=NAME, a name or address of this host that the others reach",
            )
        nodes = tuple(_node(spec, number, host, port) for number in range(spec.nodes))
        variables = {"OMP_NUM_THREADS": str(spec.threads)}
        if spec.options.max_restarts:
            # The agents' own store would keep what ranks wrote before they were started again.
            variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        return coordinated("torchrun", spec, nodes, variables)

    def check(self, spec: LaunchSpec) -> list[Problem]:
        """A port that was asked for and is taken on this host."""
        assert isinstance(spec.options, TorchrunConfig)
        host, port = given_endpoint(spec.options)
        if port is None or not is_taken(host, port):
            return []
        hint = f"launch.endpoint={host} chooses an open one, or name another"
        return [Problem("launch.endpoint", f"port {port} of {host} is taken", hint)]

    def logs(self, run: RunDir, attempt: int) -> list[Path]:
        """The preparation's log, what the coordinator says of the nodes, then rank 0's log."""
        return [prepare_log(run, attempt), agent_log(run, attempt), run.log(attempt, 0)]


def endpoint(options: TorchrunConfig) -> tuple[str, int]:
    """Host and port of the rendezvous; where no port is given, an open one, another each time."""
    host, port = given_endpoint(options)
    return host, port or open_port(host)


def given_endpoint(options: TorchrunConfig) -> tuple[str, int | None]:
    """Host and port as configured, the port None where an open one is to be chosen."""
    text = options.endpoint or socket.gethostname()
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or ":" in host.strip("[]") and "]" not in host:
        return text.strip("[]"), None
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(
            f"{text!r} is not HOST or HOST:PORT",
            where="launch.endpoint",
            hint="e.g. launch.endpoint=node1:29400; an IPv6 address goes in brackets",
        )
    return host.strip("[]"), int(port)


def open_port(host: str) -> int:
    """A port of `host` for ranks to meet at: by chance, so that no two runs agree on one.

    One that is taken is passed over where `host` is this one, which alone can tell.
    """
    ports = [FIRST_PORT + secrets.randbelow(PORTS) for _ in range(_TRIES)]
    return next((port for port in ports if not is_taken(host, port)), ports[0])


def is_taken(host: str, port: int) -> bool:
    """Whether somebody listens at a port of `host`; False for another host's, which is unknown."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as one:
            one.bind((host, 0))  # fails for an address that is not ours
    except OSError:
        return False
    try:
        with socket.socket(family) as one:
            # As a store does: a connection that has just ended keeps no port.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("", port))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def is_loopback(host: str) -> bool:
    """Whether a host by that name is only ever the one where the name is used."""
    name = host.rpartition("@")[2].strip("[]").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in _LOOPBACK or name.endswith((".localhost", ".localdomain"))
    return address.is_loopback or address.is_unspecified


def _node(spec: LaunchSpec, number: int, host: str, port: int) -> NodePlan:
    assert isinstance(spec.options, TorchrunConfig)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if spec.options.rendezvous is Rendezvous.static:
        meet = ["--node-rank", str(number), "--master-addr", host, "--master-port", str(port)]
    else:
        # Which host holds the store is said, not guessed from names that may not resolve.
        conf = f"is_host={int(number == 0)},join_timeout={spec.options.join_timeout_s}"
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", place, "--rdzv-conf", conf]
        meet += ["--rdzv-id", f"{spec.run.name}-{spec.attempt}"]
        if number == 0:
            meet += ["--local-addr", host]
    python = entry.interpreter(spec.python)
    agent = (*python, "-m", "torch.distributed.run", "--nnodes", str(spec.nodes))
    count = ("--nproc-per-node", str(spec.processes))
    restarts = ("--max-restarts", str(spec.options.max_restarts))
    rank = ("-m", spec.module, str(spec.run), "--attempt", str(spec.attempt))
    return NodePlan(
        host="" if number else socket.gethostname(),
        slots=tuple(range(spec.processes)),
        command=(*agent, *count, *meet, *restarts, "--no-python", *python, *rank),
        start=() if number else node_command(spec, number),
    )


def node_command(spec: LaunchSpec, number: int) -> tuple[str, ...]:
    """Starts a node's helper on the host where it is run."""
    helper = ("launcher.launch.node", str(spec.run), str(spec.attempt), str(number))
    return (*entry.interpreter(spec.python), "-m", *helper, "--lifeline")


def agent_log(run: RunDir, attempt: int) -> Path:
    """What the coordinator says."""
    return run.attempt(attempt) / "agent.log"


def coordinated(
    backend: str, spec: LaunchSpec, nodes: tuple[NodePlan, ...], variables: dict[str, str]
) -> LaunchPlan:
    """The plan of a job whose nodes a coordinator on this host looks after."""
    interface = spec.cluster.network_interface
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if interface else ()
    python = entry.interpreter(spec.python)
    return LaunchPlan(
        backend=backend,
        run=spec.run,
        attempt=spec.attempt,
        cwd=spec.cwd,
        prepare=(*python, "-m", spec.prepare_module, str(spec.run)),
        command=(*python, "-m", "launcher.launch.coordinator", str(spec.run), str(spec.attempt)),
        environment={
            "OMP_WAIT_POLICY": "PASSIVE",
            **{name: str(interface) for name in names},
            **spec.cluster.environment,
            **spec.environment,
            **entry.OUTPUT,
            **variables,
        },
        processes=sum(len(node.slots) for node in nodes),
        log=agent_log(RunDir(spec.run), spec.attempt),
        nodes=nodes,
        join_timeout_s=spec.options.join_timeout_s,
    )
