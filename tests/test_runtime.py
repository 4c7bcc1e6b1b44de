"""What of the user's environment reaches which process."""

from __future__ import annotations

import pytest

from launcher import runtime

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
    assert name not in runtime.submission_environment()


@pytest.mark.parametrize("name", ["SLURM_CONF", "SLURM_JWT", "PATH", "MY_DATA", "SLURMISH"])
def test_what_finds_the_cluster_and_what_users_export_reaches_the_job(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    assert runtime.submission_environment()[name] == "x"
