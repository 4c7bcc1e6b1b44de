"""What is to be sent: noted in the transaction in which it happens, so that neither is without the
other, and sent by whoever is there."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from launcher.serve.db.database import Database, new_id
from launcher.serve.db.tables import Batch, Delivery, Job, WebhookEndpoint, now
from launcher.serve.webhooks import endpoints

PENDING, SENT, GIVEN_UP = "pending", "sent", "given_up"
#: Being sent at a time for one project, so that one whose endpoints are slow holds up no other.
OF_PROJECT = 2
#: Seconds to the second try; each further pause is twice as long, up to an hour.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 3600.0
#: What is sent or given up is remembered so long.
_KEPT_S = 30 * 24 * 3600
_LONGEST_ANSWER = 200


@dataclass(frozen=True, slots=True)
class Letter:
    """One try of a delivery."""

    number: int
    attempt: int
    project_id: str
    url: str
    event: str
    """Id of the event, the same at each try and each endpoint."""
    body: str
    secrets: list[str]


def job_ended(session: Session, job: Job) -> None:
    """Note that a job has come to its end, for all endpoints that want to know."""
    note(session, job.project_id, f"fine_tuning.job.{job.state.value}", {"id": job.id})


def batch_ended(session: Session, batch: Batch) -> None:
    """The same of a batch."""
    note(session, batch.project_id, f"batch.{batch.state.value}", {"id": batch.id})


def note(session: Session, project_id: str, kind: str, data: dict[str, Any]) -> None:
    """Note an event of `kind` for the endpoints of the project that want to know of it."""
    endpoints.lock(session, project_id)
    own = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    wanting = [one for one in session.scalars(own) if kind in one.events]
    if not wanting:
        return
    event = new_id("evt_")
    body = message(event, kind, data)
    session.add_all(
        Delivery(event=event, endpoint_id=one.id, project_id=project_id, type=kind, body=body)
        for one in wanting
    )


def message(event: str, kind: str, data: dict[str, Any]) -> str:
    """The body of an event, as clients' types say."""
    told = {"id": event, "object": "event", "created_at": now(), "type": kind, "data": data}
    return json.dumps(told, separators=(",", ":"))


def claim(database: Database, most: int, lease_s: float) -> list[Letter]:
    """Up to `most` that are due, for this caller alone as long as `lease_s`: if it dies, others
    send them then. However many wait, few are looked at."""
    due = Delivery.state == PENDING, Delivery.due_at <= time.time()
    waiting = select(Delivery.project_id).where(*due).distinct()
    with database.read() as session:
        projects = sorted(session.scalars(waiting))
    if not projects:
        return []
    found: list[Letter] = []
    with database.begin() as session:
        Database.lock(session, "webhooks")
        under_way = select(Delivery.project_id, func.count()).where(
            Delivery.leased_until > time.time()
        )
        taken = {row[0]: row[1] for row in session.execute(under_way.group_by(Delivery.project_id))}
        for project in sorted(projects, key=lambda one: taken.get(one, 0)):
            room = min(OF_PROJECT - taken.get(project, 0), most - len(found))
            if room > 0:
                found += _taken(session, project, room, lease_s)
    return found


def _taken(session: Session, project_id: str, most: int, lease_s: float) -> list[Letter]:
    due = (
        select(Delivery, WebhookEndpoint)
        .join(WebhookEndpoint, Delivery.endpoint_id == WebhookEndpoint.id)
        .where(
            Delivery.state == PENDING,
            Delivery.project_id == project_id,
            Delivery.due_at <= time.time(),
        )
        .order_by(Delivery.due_at, Delivery.number)
        .limit(most)
        .with_for_update(of=Delivery, skip_locked=True)
    )
    found = []
    for delivery, endpoint in session.execute(due):
        delivery.attempts += 1
        delivery.due_at = delivery.leased_until = time.time() + lease_s
        found.append(
            Letter(
                number=delivery.number,
                attempt=delivery.attempts,
                project_id=project_id,
                url=endpoint.url,
                event=delivery.event,
                body=delivery.body,
                secrets=endpoints.secrets_of(endpoint),
            )
        )
    return found


def settle(
    database: Database, letter: Letter, answer: str, *, is_sent: bool, tries_s: float
) -> str:
    """Note how a try ended, and that it is tried again later, unless it was sent or is older than
    `tries_s`; the state that it is in now. What a later try has noted stays."""
    wanted = select(Delivery).where(Delivery.number == letter.number).with_for_update()
    with database.begin() as session:
        delivery = session.scalar(wanted)
        if delivery is None:  # with its endpoint
            return GIVEN_UP
        if delivery.state != PENDING or delivery.attempts != letter.attempt:
            return delivery.state
        delivery.answer, delivery.leased_until = answer[:_LONGEST_ANSWER], 0.0
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(delivery.attempts - 1, 20))
        delivery.due_at = time.time() + pause
        if is_sent:
            delivery.state, delivery.ended_at = SENT, now()
        elif delivery.due_at > delivery.created_at + tries_s:
            delivery.state, delivery.ended_at = GIVEN_UP, now()
        return delivery.state


def forget(session: Session) -> None:
    """Drop what ended long ago."""
    session.execute(delete(Delivery).where(Delivery.ended_at <= now() - _KEPT_S))
