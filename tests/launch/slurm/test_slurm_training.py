"""Real training under Slurm: the numbers are those of a run on one host, requeued or not."""

from __future__ import annotations

import pytest

from launcher.core.rundir import State
from launcher.launch.queue import queue_job
from support import project
from support.project import LAUNCHER, Project
from support.slurm import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

SIZE = ("batch.sequences=8", "train.steps=30", "checkpoint.every_steps=100")


def test_requeued_on_two_nodes_equals_undisturbed_on_one(cluster, tmp_path, tiny_llama):
    here = Project(tmp_path, tiny_llama)
    here.write_data(project.conversations(60))
    alone = (*here.words("local", *SIZE, "engine=zero3"), "launch.processes=4")
    done = here.run((*LAUNCHER, "train"), *alone)
    assert done.code == 0, done.output
    spread = (*here.words("spread", *SIZE, "engine=zero3"), "launch=slurm", "launch.nodes=2")
    started = here.start((*LAUNCHER, "train"), *spread, "launch.processes=2", **cluster.environment)
    run = here.folder_of("spread")
    started.wait_until(lambda: run.status().step >= 3, "step 3")
    cluster.run("scontrol", "requeue", queue_job(run, 1))
    wait_for(lambda: run.status().attempt == 2, "the second attempt")
    done = started.end()
    assert done.code == 0, done.output
    assert run.status().state is State.succeeded
    local = here.folder_of("local")
    assert project.losses(run) == project.losses(local)
    assert project.checkpoint_files(run)[30] == project.checkpoint_files(local)[30]
    hosts = {line["host"] for line in (project.read_json(run.heartbeat(r)) for r in range(4))}
    assert len(hosts) == 2
