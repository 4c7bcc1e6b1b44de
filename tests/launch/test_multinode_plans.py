"""Plans of launches on several nodes: what is started where, and that no shell misreads it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from launcher import entry
from launcher.config.schema.launch import (
    ClusterConfig,
    DeepspeedConfig,
    RemoteShell,
    Rendezvous,
    TorchrunConfig,
)
from launcher.core.errors import ConfigError
from launcher.core.files import write_json
from launcher.launch import torchrun
from launcher.launch.deepspeed import DeepspeedBackend
from launcher.launch.spec import LaunchPlan, LaunchSpec
from launcher.launch.torchrun import TorchrunBackend, endpoint

#: Prints what it was called with.
ECHO = """#!{python}
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]))
"""
HOSTILE = "a 'b\" $(false) `false` %n %h\n; # ü \\"


@pytest.fixture
def make_spec(weird_tmp_path):
    def make(options, **changes):
        values = {
            "run": weird_tmp_path / "run",
            "attempt": 2,
            "python": sys.executable,
            "cwd": weird_tmp_path,
            "options": options,
            "cluster": ClusterConfig(),
            "nodes": 2,
            "processes": 3,
            "threads": 1,
        }
        return LaunchSpec(**{**values, **changes})

    return make


@pytest.fixture
def hostfile(weird_tmp_path):
    (weird_tmp_path / "hosts").write_text("alpha slots=2\nme@beta slots=1\n")
    return "hosts"


def after(words, option):
    return words[words.index(option) + 1]


def test_c10d_nodes_differ_only_in_who_holds_the_rendezvous(make_spec):
    plan = TorchrunBackend().plan(make_spec(TorchrunConfig(nodes=2, endpoint="h:29400")))
    first, second = (node.command for node in plan.nodes)
    assert after(first, "--rdzv-endpoint") == after(second, "--rdzv-endpoint") == "h:29400"
    assert "is_host=1" in after(first, "--rdzv-conf")
    assert "is_host=0" in after(second, "--rdzv-conf")
    assert after(first, "--nnodes") == "2"
    assert after(first, "--nproc-per-node") == "3"
    assert plan.nodes[0].start
    assert not plan.nodes[1].start
    assert plan.processes == 6
    assert LaunchPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert "launcher join" in plan.describe()


def test_static_nodes_have_numbers(make_spec):
    options = TorchrunConfig(nodes=2, endpoint="10.0.0.1", rendezvous=Rendezvous.static)
    plan = TorchrunBackend().plan(make_spec(options))
    assert [after(node.command, "--node-rank") for node in plan.nodes] == ["0", "1"]
    assert {after(node.command, "--master-addr") for node in plan.nodes} == {"10.0.0.1"}
    assert len({after(node.command, "--master-port") for node in plan.nodes}) == 1


def test_restarts_and_interface_reach_the_ranks(make_spec):
    site = ClusterConfig(network_interface="ib0", environment={"NCCL_IB_HCA": "mlx5"})
    plan = TorchrunBackend().plan(make_spec(TorchrunConfig(max_restarts=3), cluster=site))
    assert after(plan.nodes[0].command, "--max-restarts") == "3"
    assert plan.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert plan.environment["NCCL_SOCKET_IFNAME"] == "ib0"
    assert plan.environment["GLOO_SOCKET_IFNAME"] == "ib0"
    assert plan.environment["NCCL_IB_HCA"] == "mlx5"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("h:1", "h", 1), ("10.0.0.1:65535", "10.0.0.1", 65535), ("[fd00::1]:5", "fd00::1", 5)],
)
def test_endpoints(text, host, port):
    assert endpoint(TorchrunConfig(endpoint=text)) == (host, port)


@pytest.mark.parametrize("text", ["h", "fd00::1", "[fd00::1]", None])
def test_ports_do_not_repeat(text):
    options = TorchrunConfig(endpoint=text)
    found = [endpoint(options) for _ in range(20)]
    assert text is None or {host for host, _ in found} == {text.strip("[]")}
    assert all(10000 <= port < 30000 for _, port in found)
    assert len({port for _, port in found}) > 10


@pytest.mark.parametrize("bound", ["127.0.0.1", ""], ids=["one address", "all"])
def test_a_port_that_is_taken_is_not_chosen(monkeypatch, bound):
    with socket.socket() as holder:
        holder.bind((bound, 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert torchrun.is_taken("127.0.0.1", taken)
        assert not torchrun.is_taken("192.0.2.1", taken)  # another host's: nobody here can tell
        draws = iter([taken - torchrun.FIRST_PORT] * 3 + [7] * 61)
        monkeypatch.setattr(torchrun.secrets, "randbelow", lambda count: next(draws))
        assert torchrun.open_port("127.0.0.1") == torchrun.FIRST_PORT + 7


def test_a_port_that_was_asked_for_and_is_taken_is_refused(make_spec):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        options = TorchrunConfig(nodes=1, endpoint=f"127.0.0.1:{port}")
        (problem,) = TorchrunBackend().check(make_spec(options))
    assert (problem.where, str(port) in problem.found) == ("launch.endpoint", True)
    assert TorchrunBackend().check(make_spec(options)) == []


LOOPBACKS = ["localhost", "127.0.0.1", "127.0.1.1", "[::1]", "LOCALHOST", "me@localhost"]


@pytest.mark.parametrize("host", LOOPBACKS)
def test_several_nodes_do_not_meet_at_localhost(make_spec, weird_tmp_path, host):
    (weird_tmp_path / "local").write_text(f"{host} slots=2\nnode2 slots=2\n")
    with pytest.raises(ConfigError, match="node2 finds only itself") as error:
        DeepspeedBackend().plan(make_spec(DeepspeedConfig(hostfile="local")))
    assert error.value.problems[0].where == "local"
    options = DeepspeedConfig(hostfile="local", master_addr=host)
    with pytest.raises(ConfigError, match=r"launch\.master_addr: rank 0 would be at"):
        DeepspeedBackend().plan(make_spec(options))
    options = DeepspeedConfig(hostfile="local", master_addr="10.0.0.7")
    plan = DeepspeedBackend().plan(make_spec(options))
    assert plan.environment["MASTER_ADDR"] == "10.0.0.7"
    if "@" not in host:
        with pytest.raises(ConfigError, match=r"launch\.endpoint: .*would not meet"):
            TorchrunBackend().plan(make_spec(TorchrunConfig(nodes=2, endpoint=host)))
        alone = make_spec(TorchrunConfig(endpoint=host), nodes=1)
        assert len(TorchrunBackend().plan(alone).nodes) == 1


@pytest.mark.parametrize("text", ["h:", ":5", "h:x", "h:0", "h:65536"])
def test_wrong_endpoints(text):
    with pytest.raises(ConfigError, match="HOST or HOST:PORT"):
        endpoint(TorchrunConfig(endpoint=text))


def test_hostfile_decides_hosts_ranks_and_rendezvous(make_spec, hostfile):
    plan = DeepspeedBackend().plan(make_spec(DeepspeedConfig(hostfile=hostfile)))
    assert [(node.host, node.slots) for node in plan.nodes] == [
        ("alpha", (0, 1)),
        ("me@beta", (0,)),
    ]
    assert plan.processes == 3
    assert plan.environment["MASTER_ADDR"] == "alpha"
    assert 10000 <= int(plan.environment["MASTER_PORT"]) < 30000
    first = DeepspeedBackend().plan(make_spec(DeepspeedConfig(hostfile=hostfile, exclude="alpha")))
    assert first.environment["MASTER_ADDR"] == "beta"
    assert LaunchPlan.from_json(plan.to_json()) == plan


def test_the_only_host_may_be_this_one(make_spec, weird_tmp_path):
    (weird_tmp_path / "here").write_text("localhost slots=2\n")
    plan = DeepspeedBackend().plan(make_spec(DeepspeedConfig(hostfile="here")))
    assert plan.nodes[0].start[0] == sys.executable
    assert plan.environment["MASTER_ADDR"] == "127.0.0.1"


def test_hostfile_that_has_changed_is_refused(make_spec, hostfile):
    spec = make_spec(DeepspeedConfig(hostfile=hostfile))
    write_json(spec.run / "plan.json", {"world_size": 4})
    with pytest.raises(ConfigError, match="3 slots to use, the run is planned for 4 ranks"):
        DeepspeedBackend().plan(spec)


def test_missing_remote_shell_is_named(monkeypatch, make_spec, hostfile, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    options = DeepspeedConfig(hostfile=hostfile, remote_shell=RemoteShell.pdsh)
    with pytest.raises(ConfigError, match="no pdsh on this host"):
        DeepspeedBackend().plan(make_spec(options))


@pytest.mark.parametrize("shell", list(RemoteShell))
@pytest.mark.parametrize("login_shell", ["sh", "bash"])
def test_no_shell_misreads_paths_and_values(
    monkeypatch, make_spec, hostfile, weird_tmp_path, shell, login_shell
):
    """What ssh hands to the login shell of the host arrives word for word."""
    for name in RemoteShell:  # they need not be here for a plan to be made
        (weird_tmp_path / name.value).touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{weird_tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LAUNCHER_HOSTILE", HOSTILE)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    python = weird_tmp_path / "python %u"
    python.write_text(ECHO.format(python=sys.executable))
    python.chmod(0o755)
    options = DeepspeedConfig(hostfile=hostfile, remote_shell=shell, ssh_options=["-p", "2222"])
    plan = DeepspeedBackend().plan(make_spec(options, python=str(python)))
    start = plan.nodes[0].start
    assert "secret" not in " ".join(start)
    assert "-p" in start or "-p 2222" in start[1]
    remote = start[-1]
    if shell is RemoteShell.pdsh:
        # As pdsh replaces its own signs.
        assert "%" not in remote.replace("%%", "")
        remote = remote.replace("%%", "%")
        assert plan.nodes[1].start[-2] == plan.nodes[1].host
    done = subprocess.run([login_shell, "-c", remote], capture_output=True, text=True, check=True)
    words, folder, environ = json.loads(done.stdout)
    line = entry.interpreter("python")[1:]
    lifeline = [] if shell is RemoteShell.pdsh else ["--lifeline"]
    assert words == [*line, "-m", "launcher.launch.node", str(plan.run), "2", "0", *lifeline]
    assert folder == str(weird_tmp_path)
    assert environ["LAUNCHER_HOSTILE"] == HOSTILE
