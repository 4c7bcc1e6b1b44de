"""Jobs on a real Slurm cluster: their end, cancel, pause, preemption, submissions cut off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from launcher.launch.queue import queue_job
from launcher.launch.spec import job_file
from launcher.rundir import read_json, write_json
from support.slurm import Cluster
from support.workshop import Workshop, workshop

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]

WORDS = ("launch=slurm", "launch.processes=1", "cluster.gpus_per_node=0", "train.threads=1")
ACCOUNT = "colours"
LONG = {"n_epochs": 50, "batch_size": 1, "learning_rate_multiplier": 1}


@pytest.fixture(scope="module")
def shop(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    home = tmp_path_factory.mktemp("jobs") / "home"
    # A cluster that is not the tests' own may have accounts, and this one not among them.
    account = ACCOUNT if cluster.is_own else None
    with workshop(home, *WORDS, account=account, **cluster.environment) as made:
        made.start()
        yield made


def names(cluster: Cluster) -> list[str]:
    """Runs whose jobs Slurm has, waiting or running."""
    return cluster.run("squeue", "-h", "-o", "%j").split()


def test_preemption_is_invisible(shop, cluster):
    job_id = shop.create(hyperparameters={**LONG, "n_epochs": 5})
    shop.wait(lambda: shop.row(job_id).cursor.get("marks"), "a checkpoint")
    run = shop.run(job_id)
    cluster.run("scontrol", "requeue", queue_job(run, 1))
    shop.wait(lambda: run.status().attempt == 2 or shop.job(job_id)["status"] != "running", "it")
    job = shop.await_status(job_id, "succeeded")
    assert run.attempts() == [1, 2]
    assert Counter(shop.steps(job_id)) == Counter(range(1, 61))
    told = [event.message for event in shop.events(job_id) if event.type == "message"]
    assert told[2:4] == ["Files validated, moving job to queued state", "Fine-tuning job started"]
    assert told[-1] == "The job has successfully completed"
    assert not [text for text in told if "preempt" in text or "again" in text]
    assert job["trained_tokens"] > 0


def test_cancel_reaches_slurm(shop, cluster):
    running = shop.create(hyperparameters=LONG)
    shop.wait(lambda: running in names(cluster), "the job")
    told = cluster.run("scontrol", "show", "job", queue_job(shop.run(running), 1))
    assert f"Account={ACCOUNT}" in told.split() or not cluster.is_own
    shop.wait(lambda: shop.steps(running), "the first step")
    assert running in names(cluster)
    assert shop.ask(running, "cancel")["status"] == "cancelled"
    shop.await_idle(running)
    shop.wait(lambda: running not in names(cluster), "the end of the job")
    assert shop.job(running)["status"] == "cancelled"


def test_paused_in_slurm_and_resumed(shop, cluster):
    job_id = shop.create(hyperparameters={**LONG, "n_epochs": 4})
    shop.wait(lambda: len(shop.steps(job_id)) > 3, "some steps")
    shop.ask(job_id, "pause")
    shop.await_idle(job_id)
    assert job_id not in names(cluster)
    shop.ask(job_id, "resume")
    shop.await_status(job_id, "succeeded")
    assert Counter(shop.steps(job_id)) == Counter(range(1, 49))


def test_a_submission_that_was_cut_off_is_not_made_twice(cluster, tmp_path):
    with workshop(tmp_path / "home", *WORDS, **cluster.environment) as shop:
        controller = shop.start()
        job_id = shop.create(hyperparameters={**LONG, "n_epochs": 2})
        run = shop.run(job_id)
        shop.wait(lambda: job_id in names(cluster), "the job")
        shop.kill(controller)
        # As if it had died between sbatch and its note.
        raw = read_json(job_file(run, 1))
        submitted = raw.pop("job", None)
        write_json(job_file(run, 1), raw)
        shop.start()
        shop.await_status(job_id, "succeeded")
        assert run.attempts() == [1]
        assert submitted is None or queue_job(run, 1) == submitted
