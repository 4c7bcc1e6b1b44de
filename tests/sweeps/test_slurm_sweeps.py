"""Sweeps on a real Slurm cluster, with stub trials: one array, each trial on its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import ExitCode
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


def _start(cluster: Cluster, folder: Path, *words: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "support.stub_trials", "control", *words],
        cwd=folder,
        env=environment(**cluster.environment, **environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _launcher(cluster: Cluster, folder: Path, *words: str, **environ: str) -> str:
    with _start(cluster, folder, *words, **environ) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def _states(sweep: SweepDir) -> dict[int, str]:
    return {trial.number: trial.run.status().state.value for trial in sweep.trials()}


def _starts(sweep: SweepDir) -> dict[int, int]:
    files = {trial.number: trial.run.path / "starts" for trial in sweep.trials()}
    return {n: len(f.read_text().splitlines()) for n, f in files.items() if f.exists()}


def test_wrong_trials_of_an_array_fail_once_and_the_others_succeed(cluster, weird_tmp_path):
    folder = weird_tmp_path
    words = ("optim.lr=1e-3,-1", "optim.weight_decay=0,1,2", "launch.max_parallel=4")
    output = _launcher(cluster, folder, "train", "-m", *WORDS, *words)
    sweep = SweepDir(folder / "runs" / "s")
    codes = [trial.run.status().exit_code for trial in sweep.trials()]
    assert codes == [ExitCode.ok, ExitCode.diverged, ExitCode.data, *[ExitCode.usage] * 3], output
    assert _starts(sweep) == {0: 1, 1: 1, 2: 1}
    jobs = {queue_job(trial.run, 1).partition("_")[0] for trial in sweep.trials()[:3]}
    assert len(jobs) == 1
    assert len(list(sweep.path.glob("array-*"))) == 1


def test_a_requeued_trial_goes_on_alone(cluster, tmp_path):
    _launcher(cluster, tmp_path, "submit", "-m", *WORDS, "seed=1,2,3", LAUNCHER_STUB_STEP_S="2")
    sweep = SweepDir(tmp_path / "runs" / "s")
    wait_for(lambda: 1 in _starts(sweep), "the second trial")
    cluster.run("scontrol", "requeue", queue_job(sweep.trials()[1].run, 1))
    _launcher(cluster, tmp_path, "sweep", "resume", "s")
    assert _states(sweep) == dict.fromkeys(range(3), "succeeded")
    assert _starts(sweep) == {0: 1, 1: 2, 2: 1}
    assert len(list(sweep.path.glob("array-*"))) == 1


def test_scancel_of_the_array_cancels_the_trials_of_a_followed_sweep(cluster, tmp_path):
    words = ("train", "-m", *WORDS, "seed=1,2,3", "launch.max_parallel=1")
    with _start(cluster, tmp_path, *words, LAUNCHER_STUB_STEP_S="60") as controller:
        sweep = SweepDir(tmp_path / "runs" / "s")
        wait_for(lambda: 0 in _starts(sweep), "the first trial")
        cluster.run("scancel", queue_job(sweep.trials()[2].run, 1).partition("_")[0])
        output, _ = controller.communicate(timeout=200)
    assert _states(sweep) == dict.fromkeys(range(3), "cancelled"), output
    assert _starts(sweep) == {0: 1}
    assert controller.returncode == ExitCode.interrupted, output


def test_optuna_through_the_queue(cluster, tmp_path):
    space = ("sweep=optuna", "sweep.trials=5", "optim.lr=tag(log,interval(1e-5,1e-1))")
    _launcher(cluster, tmp_path, "train", "-m", *WORDS, *space, "launch.max_parallel=3")
    sweep = SweepDir(tmp_path / "runs" / "s")
    assert _states(sweep) == dict.fromkeys(range(5), "succeeded")
    assert _starts(sweep) == dict.fromkeys(range(5), 1)
    first = (next(sweep.path.glob("array-0001")) / "trials.txt").read_text().splitlines()
    assert len(first) == 3


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
