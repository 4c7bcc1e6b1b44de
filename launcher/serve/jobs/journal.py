"""Writes events of jobs: each once, however often it is noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from launcher.serve.db.database import new_id
from launcher.serve.db.tables import Event, now

#: Rows of one statement: PostgreSQL takes 65,535 values.
_ROWS = 500


@dataclass(frozen=True, slots=True)
class Note:
    """An event to be written; `key` tells it from the others of its job."""

    key: str
    message: str
    data: dict[str, Any] | None = None
    level: str = "info"
    type: str = "message"
    created_at: int | None = None


#: Before whatever a run is heard of: it may train before its queue says that it runs.
STARTED = Note("started", "Fine-tuning job started")


def write(session: Session, job_id: str, notes: Sequence[Note]) -> None:
    """Write the notes that are not there yet, in this order."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    for first in range(0, len(notes), _ROWS):
        rows = [
            {
                "id": new_id("ftevent-"),
                "job_id": job_id,
                "key": note.key,
                "created_at": note.created_at or now(),
                "level": note.level,
                "type": note.type,
                "message": note.message,
                "data": note.data,
            }
            for note in notes[first : first + _ROWS]
        ]
        statement = dialect.insert(Event).values(rows)
        session.execute(statement.on_conflict_do_nothing(index_elements=["job_id", "key"]))
