"""Real training under Slurm, disturbed: it goes on without a hand, to the same weights."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator

import pytest

from launcher.core.rundir import RunDir, State
from launcher.launch.queue import queue_job
from support import project
from support.project import LAUNCHER, Project
from support.slurm import Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS = 300
SIZE = ("batch.sequences=4", f"train.steps={STEPS}", "checkpoint.every_steps=50", "engine=zero2")
#: For starts and requeues on a machine that does other things too.
PATIENCE_S = 300


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A folder with the run `alone`, which nothing has disturbed."""
    made = Project(tmp_path_factory.mktemp("faults"))
    made.write_data(project.conversations(60))
    done = made.run((*LAUNCHER, "train"), *made.words("alone", *SIZE, "launch.processes=2"))
    assert done.code == 0, done.output
    return made


@dataclasses.dataclass(frozen=True)
class Disturbed:
    """A run of one rank on each of two nodes."""

    run: RunDir
    cluster: Cluster
    here: Project

    def await_step(self, step: int) -> None:
        wait_for(lambda: self.run.status().step >= step, f"step {step}", PATIENCE_S)

    def equals_undisturbed(self) -> None:
        """Wait for the end, and compare with the run that was left alone."""
        wait_for(lambda: self.run.status().state.is_final, "the end of the run", PATIENCE_S)
        assert self.run.status().state is State.succeeded, self.run.status()
        assert max(self.run.attempts()) > 1
        alone = self.here.folder_of("alone")
        assert project.losses(self.run) == project.losses(alone)
        files = project.checkpoint_files(self.run)
        assert files[STEPS] == project.checkpoint_files(alone)[STEPS]


@pytest.fixture
def submit(here: Project, cluster: Cluster) -> Iterator[Callable[..., Disturbed]]:
    jobs = []

    def submit(name: str, *words: str) -> Disturbed:
        spread = ("launch=slurm", "launch.nodes=2", "launch.processes=1", *words)
        command = (*here.words(name, *SIZE), *spread)
        done = here.run((*LAUNCHER, "submit"), *command, **cluster.environment)
        assert done.code == 0, done.output
        run = here.folder_of(name)
        jobs.append(queue_job(run, 1))
        return Disturbed(run, cluster, here)

    yield submit
    for job in jobs:
        cluster.run("scancel", job, check=False)
    wait_for(lambda: not cluster.run("squeue", "-h", check=False), "the end of all jobs")


def test_time_limit(submit):
    made = submit("limit", "cluster.time=1", "launch.grace_s=10")
    made.await_step(60)
    # It would be done before the shortest limit that Slurm has, whose signal lets it go on.
    project.kill_rank(made.run, 1, signal.SIGSTOP)
    wait_for(lambda: made.run.status().state is State.queued, "the requeue", PATIENCE_S)
    assert "stopped by SIGUSR1" in made.run.status().reason
    made.equals_undisturbed()


def test_preemption(submit, cluster):
    made = submit("preempted")
    made.await_step(60)
    cluster.run("sbatch", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap=sleep 1")
    made.equals_undisturbed()


def test_lost_node(submit, cluster):
    cluster.require_own("lose a node")
    made = submit("lost")
    made.await_step(60)
    job = queue_job(made.run, 1)
    cluster.kill("n2")
    for rank in range(2):  # a machine that is gone takes its processes along
        if project.read_json(made.run.heartbeat(rank))["host"] == "n2":
            project.kill_rank(made.run, rank, signal.SIGKILL)
    wait_for(lambda: cluster.word(job) == "PENDING", "the requeue", PATIENCE_S)
    cluster.again("n2")
    made.equals_undisturbed()


def test_killed_rank(submit):
    made = submit("killed")
    made.await_step(60)
    project.kill_rank(made.run, 1, signal.SIGKILL)
    wait_for(lambda: made.run.status().state is State.queued, "the requeue")
    assert "rank 1 was killed by SIGKILL" in made.run.status().reason
    made.equals_undisturbed()


def test_stopped_rank(submit):
    made = submit("stopped", "watchdog.timeout_s=5")
    made.await_step(60)
    project.kill_rank(made.run, 1, signal.SIGSTOP)
    wait_for(lambda: made.run.status().state is State.queued, "the requeue")
    reason = made.run.status().reason
    assert "rank 1" in reason
    assert "stopped" in reason
    made.equals_undisturbed()


def test_only_rank_stopped(submit):
    made = submit("single", "launch.nodes=1", "watchdog.timeout_s=5")
    made.await_step(60)
    project.kill_rank(made.run, 0, signal.SIGSTOP)
    wait_for(lambda: made.run.status().state is State.queued, "the requeue")
    assert "rank 0" in made.run.status().reason
    wait_for(lambda: made.run.status().state.is_final, "the end of the run", PATIENCE_S)
    assert made.run.status().state is State.succeeded


def test_cancelled(submit, here, cluster):
    made = submit("cancelled")
    made.await_step(60)
    pids = [project.rank_pid(made.run, rank) for rank in range(2)]
    done = here.run((*LAUNCHER, "cancel", "cancelled"), **cluster.environment)
    assert done.code == 0, done.output
    assert made.run.status().state is State.cancelled
    wait_for(lambda: not any(map(project.is_alive, pids)), "the end of the ranks")
    assert max(project.checkpoint_files(made.run)) >= 60
    assert made.run.attempts() == [1]
