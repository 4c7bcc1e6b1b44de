"""What of the environment reaches Slurm's commands, and what Slurm says in it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.launch.slurm import environment
from launcher.launch.slurm.environment import SlurmJob, expand_hosts
from support import ranks

#: One of each kind that steers Slurm's commands, whoever set it.
FOR_SLURM = (
    *("SBATCH_MEM_PER_NODE", "SBATCH_NO_REQUEUE", "SBATCH_ARRAY_INX", "SBATCH_WAIT"),
    *("SQUEUE_FORMAT", "SQUEUE_STATES", "SCANCEL_STATE", "SCANCEL_INTERACTIVE", "SRUN_EXPORT_ENV"),
    *("SINFO_FORMAT", "SACCT_LOCAL", "SCONTROL_FEDERATION", "SALLOC_PARTITION"),
    *("SLURM_TIME_FORMAT", "SLURM_CLUSTERS", "SLURM_BITSTR_LEN", "SLURM_JOB_ID", "SLURM_NTASKS"),
    "SLURM_CPU_BIND",
)


@pytest.mark.parametrize("name", FOR_SLURM)
def test_nothing_steers_commands_of_slurm_from_outside(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    assert name not in environment.of_commands()


@pytest.mark.parametrize("name", ["SLURM_CONF", "SLURM_JWT", "PATH", "MY_DATA", "SLURMISH"])
def test_what_finds_the_cluster_and_what_users_export_reaches_the_job(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    assert environment.of_commands()[name] == "x"


@pytest.mark.parametrize(
    ("variables", "shown", "restarts", "endpoint"),
    [
        ({"SLURM_JOB_ID": "41234"}, "41234", 0, "n1:11234"),
        ({"SLURM_JOB_ID": "41234", "SLURM_RESTART_COUNT": "2"}, "41234", 2, "n1:27072"),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"},
            *("7_2", 0, "n1:10009"),
        ),
    ],
)
def test_the_job_around_a_batch_script(variables, shown, restarts, endpoint):
    job = SlurmJob({"SLURM_JOB_NODELIST": "n[1-2]", **variables})
    assert (job.shown, job.restarts, job.endpoint) == (shown, restarts, endpoint)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3,5]", ["n1", "n2", "n3", "n5"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("a[1,3],b,c-2[7]x", ["a1", "a3", "b", "c-27x"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_host_lists(text, names):
    assert expand_hosts(text) == names


@pytest.mark.parametrize("text", ["", "n[", "n[1-]", "n[2-1]", "n1,,n2", "n[a]", "n]1[", "n[[1]]"])
def test_broken_host_lists(text):
    with pytest.raises(ConfigError, match="not a host list"):
        expand_hosts(text)


@st.composite
def host_lists(draw):
    """A compressed list and the names it must give."""
    stem = st.from_regex(r"[a-z][a-z0-9.-]{0,5}", fullmatch=True)
    parts, names = [], []
    for _ in range(draw(st.integers(1, 4))):
        prefix, suffix = draw(stem), draw(st.sampled_from(["", "-ib", ".site"]))
        width = draw(st.integers(1, 4))
        ranges, numbers = [], []
        for _ in range(draw(st.integers(0, 3))):
            first = draw(st.integers(0, 10**width - 1))
            last = first + draw(st.integers(0, 12))
            ranges.append(f"{first:0{width}d}" + (f"-{last}" if last > first else ""))
            numbers += [f"{n:0{width}d}" for n in range(first, last + 1)]
        parts.append(f"{prefix}[{','.join(ranges)}]{suffix}" if ranges else prefix + suffix)
        names += [f"{prefix}{n}{suffix}" for n in numbers] if ranges else [prefix + suffix]
    return ",".join(parts), names


@given(host_lists())
def test_every_host_of_a_list_comes_once_and_in_order(case):
    text, names = case
    assert expand_hosts(text) == names


def test_scripts_of_earlier_versions_find_what_they_call():
    called = [sys.executable, "-m", "launcher.launch.slurm_job", "endpoint"]
    job = ranks.environment(SLURM_JOB_ID="41234", SLURM_JOB_NODELIST="n[1-2]")
    done = subprocess.run(called, env=job, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("n1:11234\n", 0), done.stderr
