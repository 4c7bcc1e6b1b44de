"""Whole jobs through real controllers: to their end, cancelled, paused, and killed on the way."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from launcher.core import processes
from launcher.core.rundir import State
from launcher.serve.db.tables import Model
from support.postgres import SKIP, postgres
from support.workshop import JOBS, Workshop, examples, workshop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

QUICK = {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": "auto"}
LONG = {"n_epochs": 50, "batch_size": 1, "learning_rate_multiplier": "auto"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory):
    with workshop(tmp_path_factory.mktemp("jobs") / "home") as made:
        made.start()
        yield made


def finished_as_told(shop: Workshop, job_id: str, steps: int) -> None:
    """A job that has succeeded is there once, with all that belongs to it."""
    job = shop.job(job_id)
    assert job["status"] == "succeeded", job
    assert Counter(shop.steps(job_id)) == Counter(range(1, steps + 1))
    messages = Counter(event.message for event in shop.events(job_id))
    assert messages["The job has successfully completed"] == 1
    assert messages["Fine-tuning job started"] == 1
    assert messages[f"New fine-tuned model created: {job['fine_tuned_model']}"] == 1
    assert len(job["result_files"]) == 1
    content = shop.client.get(f"/v1/files/{job['result_files'][0]}/content").text
    assert len(content.splitlines()) == steps + 1
    assert job["trained_tokens"] > 0
    assert shop.row(job_id).owner is None
    assert shop.supervisors(job_id) == []


def test_a_job_from_file_to_model(shop):
    validation = shop.upload(examples(4))
    asked = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 2}
    job_id = shop.create(validation_file=validation, suffix="x", hyperparameters=asked)
    job = shop.await_status(job_id, "succeeded")
    finished_as_told(shop, job_id, 9)
    assert job["hyperparameters"] == asked
    assert job["fine_tuned_model"].startswith("ft:tiny:local:x:")
    assert job["finished_at"] >= job["created_at"]
    born = [event.message for event in shop.events(job_id)]
    assert born[0] == f"Created fine-tuning job: {job_id}"
    assert born[2].startswith("All 4 validation examples are in the training file too")
    assert born[3:5] == ["Files validated, moving job to queued state", "Fine-tuning job started"]
    assert born[-2:] == [
        f"New fine-tuned model created: {job['fine_tuned_model']}",
        "The job has successfully completed",
    ]
    page = shop.client.get(f"{JOBS}/{job_id}/checkpoints").json()
    assert [one["step_number"] for one in page["data"]] == [9, 6, 3]
    for one in page["data"]:
        measured = {"step", "train_loss", "full_valid_loss", "full_valid_mean_token_accuracy"}
        measured.add("train_mean_token_accuracy")
        assert measured <= set(one["metrics"]), one
    assert page["data"][0]["fine_tuned_model_checkpoint"] == job["fine_tuned_model"]
    config = (shop.run(job_id).export / "config.json").read_text()
    assert json.loads(config)["model_type"] == "llama"
    further = shop.create(model=job["fine_tuned_model"], hyperparameters=QUICK)
    tuned = shop.await_status(further, "succeeded")
    assert tuned["fine_tuned_model"].startswith("ft:tiny:local::")
    from_checkpoint = page["data"][1]["fine_tuned_model_checkpoint"]
    third = shop.create(model=from_checkpoint, hyperparameters=QUICK)
    shop.client.delete(f"/v1/models/{job['fine_tuned_model']}")
    assert shop.await_status(third, "succeeded")["model"] == from_checkpoint
    for tuned_on in (further, third):
        losses = [event.data["train_loss"] for event in shop.events(tuned_on) if event.data]
        assert losses[0] < 4  # not the 6 nats of an untrained model


def test_bad_files_fail_the_job(shop):
    few = shop.create(shop.upload(examples(9)))
    job = shop.await_status(few, "failed")
    assert job["error"] == {
        "code": "invalid_n_examples",
        "message": "Training file has 9 example(s), but must have at least 10 examples",
        "param": "training_file",
    }
    wrong = json.dumps({"messages": [{"role": "robot", "content": "a"}]}).encode() + b"\n"
    validation = shop.upload(wrong)
    job = shop.await_status(shop.create(validation_file=validation), "failed")
    assert (job["error"]["code"], job["error"]["param"]) == (
        "invalid_file_format",
        "validation_file",
    )
    assert "Example 1 (line 1)" in job["error"]["message"]
    assert job["finished_at"] is not None


def test_cancelled_while_it_runs(shop):
    job_id = shop.create(hyperparameters=LONG)
    shop.await_status(job_id, "running")
    shop.wait(lambda: shop.steps(job_id), "the first step")
    asked = shop.ask(job_id, "cancel")
    assert asked["status"] == "cancelled"
    shop.await_idle(job_id)
    assert shop.run(job_id).status().state is State.cancelled
    assert shop.supervisors(job_id) == []
    assert shop.job(job_id) == asked


def test_paused_and_resumed_loses_no_step(shop):
    job_id = shop.create(hyperparameters={**LONG, "n_epochs": 5})
    shop.wait(lambda: len(shop.steps(job_id)) > 3, "some steps")
    assert shop.ask(job_id, "pause")["status"] == "paused"
    shop.await_idle(job_id)
    assert shop.supervisors(job_id) == []
    assert shop.run(job_id).status().state is not State.succeeded
    assert "slot" not in shop.row(job_id).cursor
    assert shop.job(job_id)["status"] == "paused"
    assert shop.ask(job_id, "resume")["status"] == "queued"
    shop.await_status(job_id, "succeeded")
    finished_as_told(shop, job_id, 60)
    assert shop.run(job_id).attempts() == [1, 2]


def test_one_at_a_time(shop):
    running = shop.create(hyperparameters=LONG)
    waiting = shop.create(hyperparameters=QUICK)
    shop.await_status(running, "running")
    shop.await_status(waiting, "queued")
    time.sleep(0.5)
    assert not shop.run(waiting).exists()
    shop.ask(waiting, "cancel")
    shop.ask(running, "cancel")
    shop.await_idle(waiting)
    assert not shop.run(waiting).exists()


@pytest.mark.parametrize("killed", ["supervisor", "rank"])
def test_a_lost_run_goes_on_from_its_checkpoint(shop, killed):
    job_id = shop.create(hyperparameters={**LONG, "n_epochs": 4})
    shop.wait(lambda: shop.row(job_id).cursor.get("marks"), "a checkpoint")
    (victim,) = shop.supervisors(job_id)
    if killed == "rank":
        victim = processes.children(victim)[0]
    processes.send(victim, processes.signal.SIGKILL)
    shop.await_status(job_id, "succeeded")
    finished_as_told(shop, job_id, 48)
    assert shop.run(job_id).attempts() == [1, 2]


def test_a_failed_run_fails_the_job(shop):
    """Answers that are cut off, because what comes before is too long, cannot be learned."""
    question = {"role": "user", "content": "Why? " * 500}
    messages = [question, {"role": "assistant", "content": "Because."}]
    file = shop.upload((json.dumps({"messages": messages}) + "\n").encode() * 10)
    job = shop.await_status(shop.create(file), "failed")
    error = job["error"]
    assert (error["code"], error["param"]) == ("invalid_file_format", "training_file")
    assert str(shop.home) not in error["message"]
    assert job["fine_tuned_model"] is None
    assert shop.row(job["id"]).owner is None


def test_examples_of_which_nothing_is_left_take_no_steps(shop):
    """Of half of them the answer is cut off; the job ends where it would be half way."""
    messages = [
        {"role": "user", "content": "Why? " * 500},
        {"role": "assistant", "content": "Because."},
    ]
    file = shop.upload(examples(6) + (json.dumps({"messages": messages}) + "\n").encode() * 6)
    asked = {"n_epochs": 2, "batch_size": 4}
    job_id = shop.create(file, hyperparameters=asked)
    shop.await_status(job_id, "succeeded")
    finished_as_told(shop, job_id, 3)
    assert shop.events(job_id)[-4].message.startswith("Step 3/3: ")
    (warned,) = [own for own in shop.events(job_id) if own.level == "warn"]
    assert warned.message.startswith("6 of 12 examples of the training file are left out")
    page = shop.client.get(f"{JOBS}/{job_id}/checkpoints").json()
    assert [one["step_number"] for one in page["data"]] == [3]


def test_old_checkpoints_go(shop):
    job_id = shop.create(hyperparameters={**QUICK, "n_epochs": 5, "batch_size": 12})
    shop.await_status(job_id, "succeeded")
    page = shop.client.get(f"{JOBS}/{job_id}/checkpoints").json()
    assert [one["step_number"] for one in page["data"]] == [5, 4, 3]
    folders = [path.name for path in shop.run(job_id).checkpoints.iterdir()]
    assert sorted(folders) == ["step-00000003", "step-00000004", "step-00000005"]
    with shop.service.database.read() as session:
        models = list(session.scalars(select(Model).where(Model.job_id == job_id)))
    assert [model.step for model in models if model.is_final] == [5]


def kill_again_and_again(shop: Workshop, ids: list[str], within_s: float, kills: int) -> int:
    """Kill the controller at random moments until the jobs have ended; returns how often."""
    chance, done = random.Random(0), 0
    end = time.monotonic() + within_s
    while time.monotonic() < end and done < kills:
        controller = shop.start()
        time.sleep(chance.uniform(0.6, 2.5))
        shop.kill(controller)
        done += 1
        states = {shop.job(job_id)["status"] for job_id in ids}
        if states <= {"succeeded", "failed", "cancelled"}:
            break
    shop.start()
    return done


def test_killed_at_any_moment_nothing_is_lost_doubled_or_stuck(tmp_path):
    with workshop(tmp_path / "home") as shop:
        ids = [shop.create(hyperparameters={**QUICK, "n_epochs": 4}) for _ in range(3)]
        unwanted = shop.create(hyperparameters=LONG)
        assert kill_again_and_again(shop, ids, 40, 12) > 3
        for job_id in ids:
            shop.await_status(job_id, "succeeded")
            finished_as_told(shop, job_id, 24)
        shop.wait(lambda: shop.steps(unwanted), "the first step")
        shop.kill(shop.controllers[-1])
        shop.ask(unwanted, "cancel")
        shop.start()
        shop.await_idle(unwanted)
        assert shop.supervisors(unwanted) == []
        assert shop.job(unwanted)["status"] == "cancelled"


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Settings of both kinds."""
    if request.param == "sqlite":
        yield None
        return
    with postgres() as url:
        if url is None:
            pytest.skip(SKIP)
        yield url


def test_two_controllers_start_a_job_once(tmp_path, database):
    with workshop(tmp_path / "home", database=database) as shop:
        job_id = shop.create(hyperparameters=QUICK)
        first, _ = shop.start(), shop.start()
        assert len(shop.wait(lambda: shop.supervisors(job_id), "the run")) == 1
        shop.kill(first)
        shop.await_status(job_id, "succeeded")
        finished_as_told(shop, job_id, 6)
        assert shop.run(job_id).attempts() == [1]
