"""The check of a new job's files, as the controller does it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select

from launcher.serve.db.tables import Event, Job, JobState
from launcher.serve.jobs import admission, ownership
from launcher.serve.jobs.ownership import Owner
from launcher.serve.jobs.workspace import Workplace
from support.workshop import JOBS


def checked(client, service, lines: list[str], **asked: Any) -> Job:
    """A job that learns from these lines, once its files have been looked at."""
    sent = {"file": ("a.jsonl", "\n".join(lines).encode())}
    file = client.post("/v1/files", files=sent, data={"purpose": "fine-tune"}).json()["id"]
    made = client.post(JOBS, json={"model": "tiny", "training_file": file, **asked}).json()["id"]
    place = Workplace(service, Owner.here())
    ownership.claim(service.database, place.owner, 1)
    with service.database.read() as session:
        job = session.scalars(select(Job).where(Job.id == made)).one()
    admission.check(place, job)
    with service.database.read() as session:
        return session.scalars(select(Job).where(Job.id == made)).one()


def test_files_are_those_of_the_method(client, service) -> None:
    user, good, bad = ({"role": role, "content": role} for role in ("user", "assistant", "tool"))
    bad = {**bad, "role": "assistant"}
    chats = [json.dumps({"messages": [user, good]})] * 10
    both = {"preferred_output": [good], "non_preferred_output": [bad]}
    pairs = [json.dumps({"input": {"messages": [user]}, **both})] * 10
    dpo = {"method": {"type": "dpo"}}
    job = checked(client, service, pairs, **dpo)
    assert job.state is JobState.queued
    assert job.hyperparameters == {
        "n_epochs": 10,
        "batch_size": 1,
        "learning_rate_multiplier": 1.0,
        "beta": 0.1,
    }
    for lines, asked, other in ((chats, dpo, "supervised"), (pairs, {}, "dpo")):
        job = checked(client, service, lines, **asked)
        assert job.state is JobState.failed
        assert job.error is not None
        assert (job.error["code"], job.error["param"]) == ("invalid_file_format", "training_file")
        assert "Example 1 (line 1) has " in job.error["message"]
        assert f'Create the job with "method": {{"type": "{other}"}}.' in job.error["message"]
    job = checked(client, service, pairs[:9], **dpo)
    assert job.error == {
        "code": "invalid_n_examples",
        "message": "Training file has 9 example(s), but must have at least 10 examples",
        "param": "training_file",
    }


def test_members_that_nobody_reads_are_a_warning_event(client, service) -> None:
    answer = {"role": "assistant", "content": "b", "wieght": 0}
    record = {"messages": [{"role": "user", "content": "a"}, answer]}
    lines = [json.dumps({**record, "id": n}) for n in range(10)]
    sent = {"file": ("a.jsonl", "\n".join(lines).encode())}
    file = client.post("/v1/files", files=sent, data={"purpose": "fine-tune"}).json()["id"]
    asked = {"model": "tiny", "training_file": file, "validation_file": file}
    made = client.post("/v1/fine_tuning/jobs", json=asked).json()["id"]
    place = Workplace(service, Owner.here())
    assert ownership.claim(service.database, place.owner, 1) == [made]
    with service.database.read() as session:
        job = session.scalars(select(Job)).one()
    admission.check(place, job)
    with service.database.read() as session:
        assert session.scalars(select(Job.state)).one() is JobState.queued
        events = {event.key: event for event in session.scalars(select(Event))}
    warned = events["unread-training"]
    assert warned.level == "warn"
    assert warned.message == (
        "The training file has members that are not known: 'id' of the example (10 times, first in"
        " line 1); 'wieght' of a message (10 times, first in line 1, did you mean 'weight'?). Those"
        " of messages are given to the model's template, which may leave them out; nothing else"
        " reads them."
    )
    assert events["unread-validation"].message.startswith("The validation file has members")
