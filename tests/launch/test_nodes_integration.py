"""Coordinator and nodes with real processes on one machine, `sleep` in the place of ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from launcher.core import processes
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.launch import nodes, outcome
from launcher.launch.nodes import NodeState, Phase
from launcher.launch.spec import NodePlan, job_file
from launcher.runs.join import join
from support.plans import launch_plan
from support.ranks import environment

pytestmark = pytest.mark.slow

#: A rank that notes its place and the wish to stop.
RANK = """
import os, signal, sys, time
places = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LAUNCHER_HOST", "MY_TOKEN"]
places += os.environ.get("SHOWN", "").split()
said = " ".join(str(os.environ.get(name)) for name in places)
os.write(1, f"{said}\\n".encode())  # at once: ranks share the file
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if os.environ["RANK"] == os.environ.get("FAILING"):
    sys.exit(3)
time.sleep(float(os.environ["SLEEP"]))
"""


def await_true(condition, what):
    end = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)
    return value


class Job:
    """A run folder with a plan for two nodes, two ranks on the first and one on the second."""

    def __init__(self, folder, *, timeout_s=30.0, start=True, **variables):
        self.run = RunDir(folder)
        rank = (sys.executable, "-c", RANK)
        helper = (sys.executable, "-m", "launcher.launch.node", str(self.run), "1")
        self.plan = launch_plan(
            self.run,
            cwd=folder,
            command=(sys.executable, "-m", "launcher.launch.coordinator", str(self.run), "1"),
            environment={"SLEEP": "60", **variables},
            processes=3,
            nodes=tuple(
                NodePlan(
                    host=host,
                    slots=slots,
                    command=rank,
                    start=(*helper, str(number), "--lifeline") if start else (),
                )
                for number, (host, slots) in enumerate((("a", (0, 1)), ("b", (0,))))
            ),
            join_timeout_s=timeout_s,
        )
        write_json(job_file(self.run, 1), self.plan.to_json())
        self.run.set_status(State.running, attempt=1)

    def coordinate(self):
        return self._popen(self.plan.command)

    def node(self, number, *options, **changes):
        command = (sys.executable, "-m", "launcher.launch.node", str(self.run), "1", str(number))
        return self._popen((*command, *options), **changes)

    def _popen(self, command, **changes):
        with open(self.plan.log, "ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=environment(MY_TOKEN="t"), **changes
            )

    def record(self, number):
        return nodes.read_node(self.run, 1, number)

    def said(self, number):
        log = nodes.node_log(self.run, 1, number)
        return log.read_text() if log.exists() else ""

    def await_state(self, state, *numbers):
        for number in numbers:
            await_true(
                lambda number=number: (r := self.record(number)) and r.state is state,
                f"node {number} {state}",
            )

    def ranks(self):
        return [pid for n in (0, 1) for pid in processes.children(self.record(n).pid)]


@pytest.fixture
def make(weird_tmp_path):
    return lambda name="run", **options: Job(weird_tmp_path / name, **options)


def test_ranks_know_their_places_and_end_well(make):
    job = make(SLEEP="0.1")
    assert job.coordinate().wait(60) == 0
    assert sorted(job.said(0).splitlines()) == ["0 3 0 a t", "1 3 1 a t"]
    assert job.said(1).splitlines() == ["2 3 0 b t"]
    assert [job.record(n).code for n in (0, 1)] == [0, 0]
    assert [job.record(n).state for n in (0, 1)] == [NodeState.ended] * 2


def test_a_port_that_is_taken_on_the_first_host_is_passed_over(make):
    """Whoever made the plan was on another host, and could not know."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        job = make(SLEEP="0.1", SHOWN="MASTER_PORT", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        assert job.coordinate().wait(60) == 0
    ports = {line.split()[-1] for n in (0, 1) for line in job.said(n).splitlines()}
    assert len(ports) == 1
    assert ports != {port}
    job = make(
        SLEEP="0.1", SHOWN="MASTER_PORT", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, name="s"
    )
    assert job.coordinate().wait(60) == 0
    assert {line.split()[-1] for line in job.said(1).splitlines()} == {port}


def test_wish_to_stop_reaches_all_ranks(make):
    job = make()
    coordinator = job.coordinate()
    await_true(lambda: job.said(0).count(" a ") == 2 and " b " in job.said(1), "the ranks")
    pids = job.ranks()
    assert len(pids) == 3
    coordinator.terminate()
    assert coordinator.wait(60) == ExitCode.preempted
    assert not any(processes.alive(pid, time.time()) for pid in pids)
    deaths = [outcome.Death(**raw) for raw in read_json(outcome.deaths_file(job.run, 1))]
    assert {death.code for death in deaths} == {75}


def test_failed_rank_is_named_by_its_number(make):
    job = make(FAILING="2", SLEEP="1")
    assert job.coordinate().wait(60) == 3
    assert outcome.cause(job.plan, 3) == outcome.Death(rank=2, code=3)


def test_lost_node_is_named_and_its_ranks_end(make):
    job = make()
    coordinator = job.coordinate()
    job.await_state(NodeState.running, 0, 1)
    pids = await_true(lambda: len(p := job.ranks()) == 3 and p, "the ranks")
    os.kill(job.record(1).pid, signal.SIGKILL)
    assert coordinator.wait(60) == ExitCode.hang
    status = job.run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.hang)
    assert "host b is lost" in status.reason
    await_true(lambda: not any(processes.alive(pid, time.time()) for pid in pids), "their end")


def test_missing_node_is_named(make):
    job = make(timeout_s=2.0, start=False)
    first = job.node(0)
    assert job.coordinate().wait(60) == ExitCode.hang
    nodes.close(job.run, 1, 2)
    assert first.wait(60) == ExitCode.hang
    reason = job.run.status().reason
    assert "after 2 s 1 of 2 nodes have not joined: b" in reason
    assert f"node 0  host {os.uname().nodename}" in reason


def test_node_without_a_coordinator_gives_up(make):
    job = make(timeout_s=1.0)
    assert job.node(0).wait(60) == ExitCode.hang
    assert "no sign of life from the launcher for 1 s" in job.said(0)


def test_node_ends_its_ranks_when_the_coordinator_falls_silent(make):
    job = make(timeout_s=2.0)
    writer = nodes.Writer(nodes.control_file(job.run, 1))
    node = job.node(0)
    writer.write(phase=Phase.run.value, code=None)
    pids = await_true(lambda: "0 3 0 a" in job.said(0) and processes.children(node.pid), "ranks")
    assert node.wait(60) != 0
    assert "no sign of life" in job.said(0)
    assert not any(processes.alive(pid, time.time()) for pid in pids)


def test_node_ends_its_ranks_when_the_connection_breaks(make):
    job = make(timeout_s=60.0)
    nodes.Writer(nodes.control_file(job.run, 1)).write(phase=Phase.run.value, code=None)
    node = job.node(0, "--lifeline", stdin=subprocess.PIPE)
    node.stdin.write(json.dumps({"MY_TOKEN": "secret"}).encode() + b"\n")
    node.stdin.flush()
    await_true(lambda: len(job.said(0).splitlines()) == 2, "the ranks")
    assert "0 3 0 a secret" in job.said(0)
    pids = processes.children(node.pid)
    node.stdin.close()
    assert node.wait(60) != 0
    assert "connection to the launcher is gone" in job.said(0)
    assert not any(processes.alive(pid, time.time()) for pid in pids)


def test_joining_what_cannot_be_joined(make):
    job = make()
    (job.run.path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="brings its nodes in itself"):
        join(str(job.run), "runs", None)
