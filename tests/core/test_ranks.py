"""Rank identity from the variables of every launcher, as they were recorded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import variants
from launcher.config.schema.launch import LaunchConfig
from launcher.core import ranks, runtime
from launcher.core.errors import ConfigError
from launcher.core.ranks import Ranks, identify, planned_hosts, port_of, rendezvous
from launcher.launch.slurm.environment import SlurmJob

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29400",
}
DEEPSPEED = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
INTEL_MPI = {
    "PMI_RANK": "3",
    "PMI_SIZE": "4",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
}
#: What the batch script of a job sees.
BATCH = {
    "SLURM_JOB_ID": "41234",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_NODELIST": "n[1-3]",
    "SLURM_NTASKS": "5",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURMD_NODENAME": "n1",
}
#: The fourth of five tasks of a step on three nodes.
STEP = {
    **BATCH,
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "n[1-3]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURMD_NODENAME": "n2",
}


@pytest.mark.parametrize(
    ("source", "env"),
    [("torchrun", TORCHRUN), ("deepspeed", DEEPSPEED), ("mpi", OPENMPI), ("mpi", INTEL_MPI)],
)
def test_place_among_ranks(source, env):
    assert identify(env, "h") == Ranks(3, 4, 1, 2, "h", source)


def test_slurm_step():
    assert identify(STEP, "h") == Ranks(3, 5, 1, 2, "n2", "srun")
    last = {**STEP, "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}
    assert identify(last, "h").local_world_size == 1


@pytest.mark.parametrize(
    "env",
    [
        {},
        BATCH,
        {**BATCH, "SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "1"},
        {**BATCH, "SLURM_STEP_ID": "interactive", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NODELIST": "n1"},  # a salloc shell
    ],
    ids=["nothing", "batch", "batch step", "interactive step", "salloc"],
)
def test_no_rank(env):
    assert identify(env, "h").launched_by == "none"
    assert identify(env, "h").world_size == 1


def test_agents_inside_a_slurm_step_count_before_slurm():
    assert identify({**STEP, **TORCHRUN}, "h").launched_by == "torchrun"
    assert identify({**STEP, **OPENMPI}, "h").launched_by == "mpi"
    assert rendezvous({**STEP, **TORCHRUN}) == ("10.0.0.1", 29400)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"RANK": "4"}, "rank 4 of 4"),
        ({"RANK": "one"}, "'one' is not a number"),
        ({"LOCAL_RANK": "2"}, "local rank 2 of 2"),
    ],
)
def test_impossible_places_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        identify({**TORCHRUN, **changes}, "h")


def test_rendezvous_of_a_step_is_its_first_host_and_a_port_of_the_job():
    assert rendezvous(STEP) == ("n1", 10000 + 41234 % 20000)
    assert rendezvous({**STEP, "SLURM_STEP_ID": "1"})[1] != rendezvous(STEP)[1]
    again = [rendezvous({**STEP, "SLURM_RESTART_COUNT": str(n)})[1] for n in range(4)]
    assert again[0] == rendezvous(STEP)[1]
    assert len(set(again)) == 4  # a port that was taken is not tried again
    assert rendezvous({**STEP, "MASTER_ADDR": "10.1.1.1", "MASTER_PORT": "5"}) == ("10.1.1.1", 5)


def test_rendezvous_of_mpi():
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        rendezvous(OPENMPI)
    assert rendezvous({**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})[0] == "127.0.0.1"
    assert rendezvous({**BATCH, **OPENMPI}) == ("n1", 10000 + 41234 % 20000)


@given(st.text(max_size=30), st.integers(0, 1000))
def test_ports_can_be_listened_on(job, step):
    assert 10000 <= port_of(job, step) < 30000
    assert port_of(job, step) == port_of(job, step)


def test_planned_hosts():
    assert planned_hosts(STEP) == ["n1", "n1", "n2", "n2", "n3"]
    assert planned_hosts({ranks.HOSTS_VARIABLE: "a:2,fe80::1:1"}) == ["a", "a", "fe80::1"]
    assert planned_hosts(TORCHRUN) == []


@pytest.mark.parametrize("env", [TORCHRUN, STEP, {**OPENMPI, "MASTER_ADDR": "m"}, {}])
def test_export_is_what_torch_and_deepspeed_read(monkeypatch, env):
    for name in {*TORCHRUN, *DEEPSPEED, *OPENMPI, *STEP}:
        monkeypatch.setenv(name, "")  # remembers what export_ranks changes
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = runtime.export_ranks()
    again = runtime.ranks()
    assert (again.rank, again.world_size) == (found.rank, found.world_size)
    assert (again.local_rank, again.local_world_size) == (found.local_rank, found.local_world_size)
    assert found.launched_by == "none" or runtime.rendezvous() == rendezvous(env)


def test_children_that_are_no_ranks_see_the_job_but_no_rank(monkeypatch):
    for name, value in {**STEP, **TORCHRUN, **OPENMPI, **DEEPSPEED, **INTEL_MPI}.items():
        monkeypatch.setenv(name, value)
    env = runtime.environment_without_ranks()
    assert identify(env, "h").launched_by == "none"
    assert not {"MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NODELIST"} & set(env)
    assert env["SLURM_JOB_ID"] == "41234"
    assert env["SLURM_JOB_NODELIST"] == "n[1-3]"


class Elsewhere:
    """Ranks of a scheduler of which nothing else is known."""

    launcher = "start"
    rank_prefixes = ("ELSE_RANK",)
    rank_names = ("ELSE_WORLD",)
    job, step, restarts = "abc", 0, 1
    gpus = "Elsewhere has given the job GPUs"

    def __init__(self, env):
        self.env, self.host = env, env["ELSE_HOST"]

    def place(self, host):
        if "ELSE_RANK" not in self.env:
            return None
        return Ranks(int(self.env["ELSE_RANK"]), 3, 0, 1, host, self.launcher)

    def hosts(self):
        return ["n7", "n8"]

    def tasks(self):
        return [1, 2]


class Further(Elsewhere):
    """The same, in a job if its variables say so."""

    def __init__(self, env):
        self.env, self.host, self.job = env, "", env.get("ELSE_JOB", "")


def backend(name: str) -> type:
    """Options of a launch back end whose jobs are read by a class of this file."""
    facts = {"variables": "ELSE_", "surroundings": f"{__name__}:{name}"}
    return type("ElseConfig", (LaunchConfig,), facts)


@pytest.mark.parametrize(
    ("env", "wanted", "job"),
    [
        ({"SLURM_CONF": "/etc/slurm.conf"}, SlurmJob, ""),
        ({"SLURM_CONF": "/etc/slurm.conf", "ELSE_JOB": "abc"}, Further, "abc"),
        ({"ELSE_SITE": "x", "SLURM_JOB_ID": "7"}, SlurmJob, "7"),
        ({"ELSE_SITE": "x"}, Further, ""),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_the_scheduler_of_the_job_counts_and_not_settings_of_another(
    monkeypatch, env, wanted, job, is_first
):
    further, known = {"else": backend("Further")}, variants.OPTIONS["launch"]
    rows = {**further, **known} if is_first else {**known, **further}
    monkeypatch.setitem(variants.OPTIONS, "launch", rows)
    found = ranks.surroundings(env)
    assert type(found) is wanted
    assert found.job == job
    place = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    if wanted is Further and job:  # what another scheduler has left is no place either
        placed = {**env, **place, "ELSE_RANK": "2"}
        assert identify(placed, "h") == Ranks(2, 3, 0, 1, "h", "start")


def test_a_scheduler_is_a_class_that_a_launch_back_end_names(monkeypatch):
    monkeypatch.setitem(variants.OPTIONS["launch"], "else", backend("Elsewhere"))
    env = {"ELSE_HOST": "n8", "ELSE_RANK": "2", "ELSE_WORLD": "3"}
    assert identify(env, "h") == Ranks(2, 3, 0, 1, "n8", "start")
    assert rendezvous(env) == ("n7", port_of("abc", restart=1))
    assert planned_hosts(env) == ["n7", "n8", "n8"]
    assert planned_hosts({"ELSE_HOST": "n8"}) == []
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert runtime.promised_gpus() == Elsewhere.gpus or runtime.gpu_count()
    left = runtime.environment_without_ranks()
    assert {name for name in left if name.startswith("ELSE_")} == {"ELSE_HOST"}
