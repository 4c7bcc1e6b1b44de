"""Two hosts with an address each: deepspeed hostfile launches and torchrun with `launcher join`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys

import pytest

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import State
from launcher.launch import nodes
from support import hosts as hosts_
from support import project
from support.project import LAUNCHER, Project
from support.ranks import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

STEPS = 6
RECIPE = ("engine=zero2", "batch.sequences=4", f"train.steps={STEPS}", "optim.lr=1e-3")
#: Makes a run folder without launching it.
CREATE = "import sys; from launcher.config import create; create.create(sys.argv[1:], world_size=2)"
#: Long enough to be stopped in mid-run.
LONG = ("engine=zero2", "batch.sequences=4", "train.steps=100000", "checkpoint.every_steps=50")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with hosts_.made(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def here(tmp_path_factory, hosts):
    made = Project(tmp_path_factory.mktemp('a folder\'s "name" '))
    made.write_data(project.conversations(60))
    return made


@pytest.fixture(scope="module")
def local(here):
    """The run on this machine alone that all others must equal."""
    done = here.run((*LAUNCHER, "train"), *here.words("local", *RECIPE, "launch.processes=2"))
    assert done.code == ExitCode.ok, done.output
    return project.losses(here.folder_of("local"))


def by_hostfile(hosts, *more):
    hostfile = f"launch.hostfile={hosts.hostfile()}"
    return ("launch=deepspeed", hostfile, hosts.ssh_options, "launch.join_timeout_s=40", *more)


def everything(run):
    logs = sorted(run.attempt(1).glob("*.log"))
    return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


@pytest.mark.parametrize("shell", ["ssh", "pdsh"])
def test_hostfile_launch_gives_the_same_run(here, hosts, local, shell):
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}: apt-get install {shell}")
    words = here.words(shell, *RECIPE, *by_hostfile(hosts, f"launch.remote_shell={shell}"))
    variable = 'a "b" $(false)'
    done = here.run((*LAUNCHER, "train"), *words, f"cluster.environment.MINE='{variable}'")
    run = here.folder_of(shell)
    assert done.code == ExitCode.ok, done.output + everything(run)
    assert run.status().state is State.succeeded
    assert project.losses(run) == local
    beats = [read_json(run.heartbeat(rank)) for rank in (0, 1)]
    assert [beat["host"] for beat in beats] == [host.name for host in hosts.every]
    hosts.assert_empty()


@pytest.mark.parametrize("rendezvous", ["c10d", "static"])
def test_torchrun_with_join_gives_the_same_run(here, hosts, local, rendezvous):
    first, second = hosts.every
    # Before the run is there: the other node waits for it.
    joining = here.start(second.command(*LAUNCHER, "join"), rendezvous)
    joining.wait_until(lambda: "waiting for an attempt" in joining.output, "its wait")
    words = here.words(rendezvous, *RECIPE, "launch=torchrun", "launch.nodes=2")
    options = (f"launch.endpoint={first.address}", f"launch.rendezvous={rendezvous}")
    interface = f"cluster.network_interface={first.interface}"
    done = here.run(first.command(*LAUNCHER, "train"), *words, *options, interface)
    run = here.folder_of(rendezvous)
    assert done.code == ExitCode.ok, done.output + everything(run)
    joined = joining.end()
    assert joined.code == ExitCode.ok, joined.output
    assert f"joined {rendezvous} as node 1 of 2" in joined.output
    assert "succeeded" in joined.output
    assert project.losses(run) == local
    hosts.assert_empty()


def test_torchrun_starts_ranks_again_and_ctrl_c_on_any_node_stops_all(here, hosts):
    first, second = hosts.every
    words = here.words("again", *LONG, "launch=torchrun", "launch.nodes=2")
    options = (f"launch.endpoint={first.address}", "launch.max_restarts=1")
    running = here.start(first.command(*LAUNCHER, "train"), *words, *options)
    joining = here.start(second.command(*LAUNCHER, "join"), "again", "--node-rank", "1")
    run = here.folder_of("again")
    running.wait_until(lambda: 50 in project.checkpoint_files(run), "a checkpoint")
    before = [project.rank_pid(run, rank) for rank in (0, 1)]
    os.kill(before[1], signal.SIGKILL)
    running.wait_until(lambda: "resuming from step" in run.log(1, 0).read_text(), "a restart")
    running.wait_until(lambda: 100 in project.checkpoint_files(run), "more steps")
    assert not {project.rank_pid(run, rank) for rank in (0, 1)} & set(before)
    joining.process.send_signal(signal.SIGINT)
    assert running.end().code == ExitCode.preempted, running.output + everything(run)
    assert joining.end().code == ExitCode.preempted, joining.output
    assert run.status().state is State.preempted
    hosts.assert_empty()


def test_torchrun_names_nodes_that_do_not_join(here, hosts):
    first, _ = hosts.every
    words = here.words("alone", *RECIPE, "launch=torchrun", "launch.nodes=2")
    done = here.run(first.command(*LAUNCHER, "train"), *words, "launch.join_timeout_s=4")
    assert done.code == ExitCode.hang, done.output
    assert "1 of 2 nodes have not joined: node 1" in done.output
    assert f"launcher join {here.folder_of('alone')}" in done.output
    hosts.assert_empty()


def test_host_that_is_down_is_named(here, hosts):
    hosts.every[1].unplug()
    try:
        done = here.run((*LAUNCHER, "train"), *here.words("down", *RECIPE, *by_hostfile(hosts)))
    finally:
        hosts.every[1].plug()
    assert done.code == ExitCode.hang, done.output
    assert f"host {hosts.every[1].name} cannot be used" in done.output
    assert "HINT" in done.output
    hosts.assert_empty()


def test_a_host_that_comes_late_is_connected_to_again(here, hosts):
    if not shutil.which("pdsh"):
        pytest.skip("needs pdsh: apt-get install pdsh")
    hosts.every[1].unplug()
    try:
        words = here.words("late", *RECIPE, *by_hostfile(hosts, "launch.remote_shell=pdsh"))
        running = here.start((*LAUNCHER, "train"), *words)
        running.wait_until(lambda: "trying again" in running.output, "a first refusal")
    finally:
        hosts.every[1].plug()
    done = running.end()
    assert done.code == ExitCode.ok, done.output + everything(here.folder_of("late"))
    assert f"{hosts.every[1].name}: ssh: connect to host" in done.output
    hosts.assert_empty()


@pytest.mark.parametrize("how", ["ctrl-c", "kill the launcher", "cancel --now"])
def test_nothing_is_left_on_any_host(here, hosts, how):
    name = how.replace(" ", "-").strip("-")
    running = here.start((*LAUNCHER, "train"), *here.words(name, *LONG, *by_hostfile(hosts)))
    run = here.folder_of(name)
    running.wait_until(lambda: run.metrics.is_file() and run.metrics.read_text(), "a step")
    if how == "ctrl-c":
        running.process.send_signal(signal.SIGINT)
        done = running.end()
        assert done.code == ExitCode.preempted, done.output
    elif how == "kill the launcher":
        running.process.kill()
        running.end()
        # Its supervisor ends the ranks, and they save first.
        hosts.assert_empty(within_s=60)
        assert run.status().state is State.preempted
    else:
        node = nodes.read_node(run, 1, 1)
        assert node is not None
        os.kill(node.pid, signal.SIGSTOP)
        cancelling = here.start((*LAUNCHER, "cancel"), name, "--now")
        control = nodes.control_file(run, 1)
        running.wait_until(lambda: read_json(control)["phase"] == nodes.Phase.end.value, "the end")
        # What a rank of that node may still do: the end remains the last word.
        run.set_status(State.running, step=run.status().step + 1)
        os.kill(node.pid, signal.SIGCONT)
        assert cancelling.end().code == ExitCode.ok, cancelling.output
        assert running.end().code == ExitCode.interrupted, running.output
        assert run.status().state is State.cancelled
    hosts.assert_empty()


def test_killed_rank_on_another_host_is_named(here, hosts):
    words = here.words("killed", *LONG, *by_hostfile(hosts))
    running = here.start((*LAUNCHER, "train"), *words)
    run = here.folder_of("killed")
    running.wait_until(lambda: run.metrics.is_file() and run.metrics.read_text(), "a step")
    os.kill(project.rank_pid(run, 1), signal.SIGKILL)
    done = running.end()
    assert done.code == ExitCode.internal, done.output
    assert "rank 1 was killed by SIGKILL" in run.status().reason
    hosts.assert_empty()


def test_direct_torchrun_names_the_rendezvous_that_is_not_there(here, hosts):
    first, second = hosts.every
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": first.address, "MASTER_PORT": "29666"}
    place |= {"LAUNCHER_HOSTS": f"{first.name}:1,{second.name}:1"}
    words = ("train.steps=1", "launch.join_timeout_s=3")
    created = here.run((sys.executable, "-c", CREATE), *here.words("nobody", *words))
    assert created.code == 0, created.output
    run = here.folder_of("nobody")
    done = here.run(second.command(sys.executable, "-m", "launcher.train"), str(run), **place)
    assert done.code == ExitCode.hang, done.output
    assert f"did not reach rank 0 at {first.address}:29666 (host {first.name})" in done.output


def test_rank_0_names_the_hosts_of_missing_ranks(here, hosts):
    first, second = hosts.every
    place = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": first.address, "MASTER_PORT": "29667"}
    place |= {"LAUNCHER_HOSTS": f"{first.name}:1,{second.name}:2"}
    words = here.words("missing", "batch.sequences=3", "launch.join_timeout_s=3")
    done = here.run(first.command(sys.executable, "-m", "launcher.train"), *words, **place)
    assert done.code == ExitCode.hang, done.output
    assert f"2 of 3 ranks have not joined: ranks 1-2 on host {second.name}" in done.output
    assert f"host {first.name}  local rank 0" in done.output


def commands_of(page, word):
    """The literal commands of a page whose text holds `word`, each as one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    return [block for block in blocks if word in block]


@pytest.mark.parametrize("word", ["launch=deepspeed", "launch=torchrun", "torchrun --nnodes"])
def test_commands_of_the_page_on_several_nodes(here, hosts, word):
    page = ROOT / "docs" / "multinode.md"
    first, second = hosts.every
    (command,) = commands_of(page, word)
    (here.folder / "train.jsonl").write_text((here.folder / "data.jsonl").read_text())
    (hostfile,) = re.findall(r"^```hostfile hosts.txt\n(.*?)^```$", page.read_text(), re.M | re.S)
    (here.folder / "hosts.txt").write_text(hostfile)
    shutil.copy(hosts.folder / "ssh_config", here.folder)
    other = {
        "launch=torchrun": commands_of(page, "launcher join")[0],
        "torchrun --nnodes": command.replace("--node-rank 0", "--node-rank 1"),
    }.get(word)
    path = f"{project.BIN}:{os.environ['PATH']}"
    started = here.start(second.command("bash", "-ec", other), PATH=path) if other else None
    done = here.run(first.command("bash", "-ec", command), PATH=path)
    (name,) = re.findall(r"run.name=(\S+)", command)
    run = here.folder_of(name)
    assert done.code == ExitCode.ok, done.output + everything(run)
    assert started is None or started.end().code == ExitCode.ok, started.output
    assert run.status().state is State.succeeded
    assert {read_json(run.heartbeat(rank))["host"] for rank in (0, 1)} == {"node1", "node2"}
    hosts.assert_empty()
