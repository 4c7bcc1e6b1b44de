"""Jobs in every queue: their end, cancel, pause, preemption, submissions cut off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from launcher.launch.queue import queue_job
from support.queues import Bench
from support.workshop import Workshop, workshop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LONG = {"n_epochs": 50, "batch_size": 1, "learning_rate_multiplier": 1}


@pytest.fixture(scope="module")
def shop(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    home = tmp_path_factory.mktemp("jobs") / "home"
    with workshop(home, *bench.one, **bench.environ) as made:
        made.start()
        yield made
        bench.empty()


def test_preemption_is_invisible(shop, bench):
    job_id = shop.create(hyperparameters={**LONG, "n_epochs": 5})
    shop.wait(lambda: shop.row(job_id).cursor.get("marks"), "a checkpoint")
    run = shop.run(job_id)
    bench.requeue(queue_job(run, 1))
    shop.wait(lambda: run.status().attempt == 2 or shop.job(job_id)["status"] != "running", "it")
    job = shop.await_status(job_id, "succeeded")
    assert run.attempts() == [1, 2]
    assert Counter(shop.steps(job_id)) == Counter(range(1, 61))
    told = [event.message for event in shop.events(job_id) if event.type == "message"]
    assert told[2:4] == ["Files validated, moving job to queued state", "Fine-tuning job started"]
    assert told[-1] == "The job has successfully completed"
    assert not [text for text in told if "preempt" in text or "again" in text]
    assert job["trained_tokens"] > 0


def test_cancel_reaches_the_queue(shop, bench):
    running = shop.create(hyperparameters=LONG)
    run = shop.run(running)
    shop.wait(lambda: bench.has(run), "the job")
    shop.wait(lambda: shop.steps(running), "the first step")
    assert bench.has(run)
    assert shop.ask(running, "cancel")["status"] == "cancelled"
    shop.await_idle(running)
    shop.wait(lambda: not bench.has(run), "the end of the job")
    assert shop.job(running)["status"] == "cancelled"


def test_a_job_that_waits_in_the_queue_is_queued(shop, bench):
    with bench.full():
        job_id = shop.create(hyperparameters={**LONG, "n_epochs": 1})
        run = shop.run(job_id)
        shop.wait(lambda: bench.has(run), "the job")
        shop.wait(lambda: shop.row(job_id).cursor.get("started"), "the controller")
        assert shop.job(job_id)["status"] == "queued"
        assert shop.ask(job_id, "cancel")["status"] == "cancelled"
        shop.await_idle(job_id)
        assert not bench.has(run)
    assert not run.metrics.exists()


def test_paused_in_the_queue_and_resumed(shop, bench):
    job_id = shop.create(hyperparameters={**LONG, "n_epochs": 4})
    shop.wait(lambda: len(shop.steps(job_id)) > 3, "some steps")
    shop.ask(job_id, "pause")
    shop.await_idle(job_id)
    assert not bench.has(shop.run(job_id))
    shop.ask(job_id, "resume")
    shop.await_status(job_id, "succeeded")
    assert Counter(shop.steps(job_id)) == Counter(range(1, 49))


def test_a_submission_that_was_cut_off_is_not_made_twice(bench, tmp_path):
    with workshop(tmp_path / "home", *bench.one, **bench.environ) as shop:
        controller = shop.start()
        job_id = shop.create(hyperparameters={**LONG, "n_epochs": 2})
        run = shop.run(job_id)
        shop.wait(lambda: bench.has(run), "the job")
        shop.kill(controller)
        submitted = queue_job(run, 1)
        bench.lose_answer(run)
        shop.start()
        shop.await_status(job_id, "succeeded")
        assert run.attempts() == [1]
        assert submitted is None or queue_job(run, 1) == submitted
