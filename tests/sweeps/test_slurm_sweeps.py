"""What of sweeps is particular to a real Slurm cluster, with stub trials."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.launch.queue import queue_job
from launcher.sweeps import table
from launcher.sweeps.folder import SweepDir
from support.ranks import environment
from support.slurm import Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
WORDS = (
    *(
        "model=tiny",
        "data.train=builtin:quickstart-text",
        "batch.sequences=4",
        "run.name=s",
        "train.steps=4",
    ),
    *("launch=slurm", "launch.processes=1", "train.threads=1"),
)


@pytest.fixture
def cluster(cluster: Cluster) -> Iterator[Cluster]:
    yield cluster
    cluster.run("scancel", f"--user={os.environ.get('USER', 'root')}", check=False)
    wait_for(lambda: not cluster.run("squeue", "-h", check=False), "the end of all jobs")


def _launcher(cluster: Cluster, folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.stub_trials", "control", *words],
        cwd=folder,
        env=environment(**cluster.environment),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _states(sweep: SweepDir) -> dict[int, str]:
    return {trial.number: trial.run.status().state.value for trial in sweep.trials()}


def test_a_thousand_trials_are_one_submission(cluster, tmp_path, monkeypatch):
    held = "cluster.sbatch=[--hold]"
    words = ("optim.lr=range(1,101)", "seed=range(1,11)", held, "launch.max_parallel=8")
    _launcher(cluster, tmp_path, "submit", "-m", *WORDS, *words)
    sweep = SweepDir(tmp_path / "runs" / "s")
    trials = sweep.trials()
    assert _states(sweep) == dict.fromkeys(range(1000), "queued")
    (array,) = sweep.path.glob("array-*")
    runs = (array / "trials.txt").read_text().splitlines()
    assert runs == [str(trial.run) for trial in trials]
    (job,) = {queue_job(trial.run, 1).partition("_")[0] for trial in trials}
    assert cluster.run("squeue", "-h", "-j", job, "-o", "%K") == "0-999%8"
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    assert {row.state for row in table.rows(sweep)} == {"queued"}
    _launcher(cluster, tmp_path, "sweep", "cancel", "s")
    assert _states(sweep) == dict.fromkeys(range(1000), "cancelled")
    assert cluster.run("squeue", "-h", "-j", job, check=False) == ""
