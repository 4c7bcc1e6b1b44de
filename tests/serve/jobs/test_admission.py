"""The check of a new job's files, as the controller does it."""

from __future__ import annotations

import json

from sqlalchemy import select

from launcher.serve.db.tables import Event, Job, JobState
from launcher.serve.jobs import admission, ownership
from launcher.serve.jobs.ownership import Owner
from launcher.serve.jobs.workspace import Workplace


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
