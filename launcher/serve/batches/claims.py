"""Which server is at which batch: one at a time, and one that has died at none."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.orm import Session

from launcher.serve.batches.journal import Tally
from launcher.serve.db.database import Database
from launcher.serve.db.tables import Batch, BatchState, Project, now
from launcher.serve.jobs.ownership import LEASE_S, Owner

#: Batches of a project, and of all, that a server answers at a time.
OF_PROJECT, OF_ALL = 4, 64
#: Those of a project, and of all, that are looked at or ended meanwhile.
OTHERS_OF_PROJECT, OTHERS = 4, 8
#: All that it holds: also those whose requests wait for a model, which take no place above.
_MOST = 256
#: Taken at once.
_AT_ONCE = 8
#: Whether a batch takes long -> places of a project, and of all.
_PLACES = {True: (OF_PROJECT, OF_ALL), False: (OTHERS_OF_PROJECT, OTHERS)}
_OPEN = [state for state in BatchState if not state.is_final]


class LostBatchError(Exception):
    """Another server has taken the batch over; this one leaves it alone."""


def is_due(batch: Batch | Row[Any]) -> bool:
    """Whether there is nothing to be answered any more, but an end to be made."""
    ending = batch.state in (BatchState.cancelling, BatchState.finalizing)
    return ending or batch.expires_at <= now()


def claim(
    database: Database,
    owner: Owner,
    held: Mapping[str, Batch],
    but: Collection[str],
    asleep: Collection[str] = (),
) -> list[tuple[Batch, str]]:
    """Batches that nobody is at, for this server from now on, each with the name of its project:
    none of those `held` nor of `but`. Those `asleep`, of the held, only wait for their models: they
    take no place of others.

    First those to be looked at or ended, and first those of projects that have few. However many
    wait, few are taken at once.
    """
    columns = (Batch.id, Batch.project_id, Batch.state, Batch.expires_at)
    waiting = select(*columns, Batch.owner, Batch.lease_until).where(Batch.state.in_(_OPEN))
    with database.read() as session:
        rows: Any = session.execute(waiting.order_by(Batch.number)).all()
    free = [row for row in rows if row.id not in {*held, *but} and owner.may_take(row)]
    awake = [one for name, one in held.items() if name not in asleep]
    busy = Counter(one.project_id for one in awake)
    taken = {kind: Counter[str]() for kind in _PLACES}
    for one in awake:
        taken[_is_long(one)][one.project_id] += 1
    chosen: list[str] = []
    while free and len(chosen) < min(_AT_ONCE, _MOST - len(held)):
        row = min(free, key=lambda one: (_is_long(one), busy[one.project_id]))  # the oldest
        free.remove(row)
        alike, (most_of_project, most) = taken[_is_long(row)], _PLACES[_is_long(row)]
        if alike[row.project_id] < most_of_project and alike.total() < most:
            alike[row.project_id] += 1
            busy[row.project_id] += 1
            chosen.append(row.id)
    return _taken(database, owner, chosen)


def _is_long(batch: Batch | Row[Any]) -> bool:
    return batch.state is BatchState.in_progress and not is_due(batch)


def _taken(database: Database, owner: Owner, chosen: list[str]) -> list[tuple[Batch, str]]:
    if not chosen:
        return []
    found = []
    with database.begin() as session:
        Database.lock(session, "batches")
        wanted = select(Batch, Project.name).join(Project, Batch.project_id == Project.id)
        wanted = wanted.where(Batch.id.in_(chosen)).order_by(Batch.number)
        for batch, project in session.execute(wanted.with_for_update(of=Batch)):
            if not batch.state.is_final and owner.may_take(batch):
                batch.owner, batch.lease_until = owner.name, time.time() + LEASE_S
                batch.claims += 1
                found.append((batch, project))
    return found


def kept(database: Database, owner: Owner, tallies: Mapping[str, Tally]) -> dict[str, Batch]:
    """Of batches that are this server's, those that still are; noted is how much of them is done
    by now, and that it lives."""
    own = select(Batch).where(Batch.id.in_(tallies), Batch.owner == owner.name)
    with database.read() as session:
        found = {batch.id: batch for batch in session.scalars(own)}
    if not any(_is_behind(batch, tallies[batch.id]) for batch in found.values()):
        return found
    with database.begin() as session:
        found = {batch.id: batch for batch in session.scalars(own.with_for_update())}
        for batch in found.values():
            batch.lease_until = time.time() + LEASE_S
            if batch.state is BatchState.in_progress:
                note(batch, tallies[batch.id])
    return found


def _is_behind(batch: Batch, tally: Tally) -> bool:
    done = batch.completed + batch.failed
    is_told = batch.state is not BatchState.in_progress or done == tally.completed + tally.failed
    return not is_told or batch.lease_until < time.time() + LEASE_S * 2 / 3


def note(batch: Batch, tally: Tally) -> None:
    """Put into the row how much is done."""
    batch.completed, batch.failed = tally.completed, tally.failed
    batch.input_tokens, batch.output_tokens = tally.input_tokens, tally.output_tokens


def release(database: Database, owner: Owner, ids: Collection[str]) -> None:
    """Others may go on with them."""
    own = update(Batch).where(Batch.id.in_(ids), Batch.owner == owner.name)
    with database.begin() as session:
        session.execute(own.values(owner=None, lease_until=0.0))


@contextlib.contextmanager
def owned(database: Database, owner: Owner, batch_id: str) -> Iterator[tuple[Session, Batch]]:
    """A transaction on a batch that is still this server's; else `LostBatchError`."""
    with database.begin() as session:
        batch = session.scalars(select(Batch).where(Batch.id == batch_id).with_for_update()).one()
        if batch.owner != owner.name:
            raise LostBatchError(batch_id)
        yield session, batch


def come_to(batch: Batch, state: BatchState) -> None:
    """The batch is in this state from now on."""
    batch.state = state
    batch.times = {**batch.times, state.value: now()}
