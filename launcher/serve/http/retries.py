"""Requests that clients send again because an answer was lost: what they made is made once.

`Idempotency-Key` names a request, for a day and within its project. What it has made is noted in
the transaction that makes it, so that neither a crash nor two servers make it twice.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Header
from sqlalchemy import delete
from sqlalchemy.orm import Session

from launcher.serve.db.database import Database
from launcher.serve.db.tables import Answered, now
from launcher.serve.http.failure import ApiError

LIVES_S = 24 * 3600
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", max_length=256)]


def known(session: Session, project_id: str, key: str | None, *asked: object) -> str | None:
    """Id of what the request with this key has made; None if there was none, or no key.

    `asked` is all that the request asks for. `ApiError` 400 if the key was another request's.
    """
    if not key:
        return None
    hashed = _hash(key)
    Database.lock(session, f"answered {project_id} {hashed}")
    found = session.get(Answered, (project_id, hashed))
    if found is None or found.created_at <= now() - LIVES_S:
        return None
    if found.asked != _hash(*asked):
        raise ApiError(
            400,
            "This Idempotency-Key was sent with another request: use a new key for a new request.",
            param="Idempotency-Key",
            code="idempotency_key_reused",
        )
    return found.object


def note(session: Session, project_id: str, key: str | None, made: str, *asked: object) -> None:
    """Remember what the request has made; the same `asked` as for `known`."""
    if key:
        row = Answered(
            project_id=project_id,
            key=_hash(key),
            asked=_hash(*asked),
            object=made,
            created_at=now(),
        )
        session.merge(row)


def forget(session: Session) -> None:
    """Drop what is too old."""
    session.execute(delete(Answered).where(Answered.created_at <= now() - LIVES_S))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()
