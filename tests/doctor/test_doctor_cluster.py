"""`launcher doctor` over two hosts: as a Slurm job, and by a hostfile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import hosts as hosts_
from support import slurm
from support.project import LAUNCHER, Project

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp('a folder\'s "name" '), Path("no-model"))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with hosts_.made(tmp_path_factory.mktemp("hosts")) as made:
        yield made


def findings(output: str) -> dict[str, dict]:
    """Check -> its first finding, of the JSON on stdout; progress stands before it."""
    found: dict[str, dict] = {}
    for finding in json.loads(output[output.index("{\n") :])["findings"]:
        found.setdefault(finding["check"], finding)
    return found


def assert_whole(found: dict[str, dict], ranks: str) -> None:
    assert found["ranks"]["found"] == ranks
    for check in ("shared folder", "shared locks", "clocks", "collectives", "all_reduce"):
        assert found[check]["verdict"] == "pass", found[check]


def test_as_a_slurm_job(project, cluster):
    words = ("launch=slurm", "launch.nodes=2", "cluster.sbatch=[--exclusive]", "--json")
    done = project.run((*LAUNCHER, "doctor"), *words, **cluster.environment)
    assert done.code == 0, done.output
    found = findings(done.output)
    assert_whole(found, "2 joined, on 2 hosts")
    assert found["Slurm"]["verdict"] == "pass"
    assert len(found["python"]["hosts"]) == 2
    slurm.wait_for(lambda: not cluster.run("squeue", "-h"), "an empty queue")
    assert not (project.folder / "runs").exists()


def test_what_slurm_refuses_is_said(project, cluster):
    words = ("launch=slurm", "launch.nodes=2", "cluster.partition=nowhere", "--json")
    done = project.run((*LAUNCHER, "doctor"), *words, **cluster.environment)
    assert done.code == 1, done.output
    assert "nowhere" in findings(done.output)["ranks"]["found"]


def test_by_hostfile(project, hosts):
    words = ("launch=deepspeed", f"launch.hostfile={hosts.hostfile()}", hosts.ssh_options)
    done = project.run((*LAUNCHER, "doctor"), *words, "--json")
    assert done.code == 0, done.output
    assert_whole(findings(done.output), "2 joined, on 2 hosts")
    hosts.assert_empty()


def test_a_host_that_is_down_is_named(project, hosts):
    hosts.every[1].unplug()
    try:
        words = ("launch=deepspeed", f"launch.hostfile={hosts.hostfile()}", hosts.ssh_options)
        done = project.run((*LAUNCHER, "doctor"), *words, "launch.join_timeout_s=10", "--json")
    finally:
        hosts.every[1].plug()
    assert done.code == 1, done.output
    assert hosts.every[1].name in findings(done.output)["ranks"]["found"]
    hosts.assert_empty()
