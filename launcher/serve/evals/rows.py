"""Rows of evals, their runs and items: who works on which run, and what has become of each item.

An item's result, and the run's counts that it adds to, are written in one transaction by the server
that has the run: however often servers die, each item counts once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, undefer

from launcher.serve.db.database import Database, comparable, new_id
from launcher.serve.db.tables import RUN_STATES, Eval, EvalItem, EvalRun, now
from launcher.serve.http.failure import ApiError
from launcher.serve.jobs.ownership import LEASE_S, Owner
from launcher.serve.webhooks import outbox

QUEUED, IN_PROGRESS, COMPLETED, FAILED, CANCELED = RUN_STATES
OPEN = (QUEUED, IN_PROGRESS)
PENDING = "pending"
#: State of a run that has ended -> its event.
_EVENTS = {COMPLETED: "succeeded", FAILED: "failed", CANCELED: "canceled"}
#: Runs that are worked on at a time: of one project, and at one server.
OF_PROJECT, AT_A_TIME = 2, 8
_ROWS = 100


class LostRunError(Exception):
    """The run has ended, is gone, or is another server's."""


def find_eval(session: Session, project_id: str, eval_id: str, *, for_update: bool = False) -> Eval:
    """An eval of the project; 404 in the envelope without it."""
    wanted = select(Eval).where(Eval.id == comparable(eval_id), Eval.project_id == project_id)
    found = session.scalar(wanted.with_for_update() if for_update else wanted)
    if found is None:
        raise ApiError(404, f"No such eval: {eval_id}", param="eval_id", code="not_found")
    return found


def find_run(
    session: Session,
    project_id: str,
    eval_id: str,
    run_id: str,
    *,
    for_update: bool = False,
    with_source: bool = False,
) -> EvalRun:
    """A run of an eval of the project, `with_source` if that is to be read; 404 in the envelope
    without it."""
    wanted = select(EvalRun).where(
        EvalRun.id == comparable(run_id),
        EvalRun.eval_id == comparable(eval_id),
        EvalRun.project_id == project_id,
    )
    if with_source:
        wanted = wanted.options(undefer(EvalRun.source))
    found = session.scalar(wanted.with_for_update() if for_update else wanted)
    if found is None:
        raise ApiError(404, f"No such run of an eval: {run_id}", param="run_id", code="not_found")
    return found


def remove_run(session: Session, run: EvalRun) -> None:
    """Delete a run and its items; whoever works on it finds it gone."""
    session.execute(delete(EvalItem).where(EvalItem.run_id == run.id))
    session.delete(run)


def remove_eval(session: Session, found: Eval) -> list[str]:
    """Delete an eval and all its runs, whose ids are returned."""
    runs = select(EvalRun).where(EvalRun.eval_id == found.id).with_for_update()
    gone = list(session.scalars(runs))
    for run in gone:
        remove_run(session, run)
    session.flush()
    session.delete(found)
    return [run.id for run in gone]


def claim(database: Database, owner: Owner) -> list[str]:
    """Ids of the runs that are this server's to work on for the next seconds.

    Those that wait take turns by project, the one with the fewest at work first.
    """
    is_open = EvalRun.state.in_(OPEN)
    with database.read() as session:
        if session.scalar(select(EvalRun.number).where(is_open).limit(1)) is None:
            return []
    columns = (EvalRun.number, EvalRun.id, EvalRun.project_id, EvalRun.owner, EvalRun.lease_until)
    with database.begin() as session:
        Database.lock(session, "eval runs")
        rows: Sequence[Any] = session.execute(
            select(*columns).where(is_open).order_by(EvalRun.number)
        ).all()
        mine = [row for row in rows if row.owner == owner.name]
        free = [row for row in rows if row.owner != owner.name and owner.may_take(row)]
        ids = {row.number for row in free}
        working = Counter(row.project_id for row in rows if row.number not in ids)
        renewed = [row for row in mine if row.lease_until < time.time() + LEASE_S * 2 / 3]
        while free and len(mine) < AT_A_TIME:
            turn = min(free, key=lambda row: (working[row.project_id], row.number))
            if working[turn.project_id] >= OF_PROJECT:
                break
            free.remove(turn)
            working[turn.project_id] += 1
            mine.append(turn)
            renewed.append(turn)
        if renewed:
            numbers = [row.number for row in renewed]
            until = {"owner": owner.name, "lease_until": time.time() + LEASE_S}
            session.execute(update(EvalRun).where(EvalRun.number.in_(numbers)).values(**until))
        return [row.id for row in mine]


@contextlib.contextmanager
def owned(database: Database, owner: Owner, run_id: str) -> Iterator[tuple[Session, EvalRun]]:
    """A transaction on a run that is still this server's; else `LostRunError`."""
    with database.begin() as session:
        wanted = select(EvalRun).where(EvalRun.id == run_id).with_for_update()
        run = session.scalar(wanted)
        if run is None or run.owner != owner.name or run.state not in OPEN:
            raise LostRunError(run_id)
        yield session, run


def give_back(database: Database, owner: Owner) -> None:
    """Leave all runs to others: this server ends."""
    mine = EvalRun.owner == owner.name
    with database.begin() as session:
        session.execute(update(EvalRun).where(mine).values(owner=None, lease_until=0.0))


def add_items(
    session: Session,
    run: EvalRun,
    first: int,
    items: Sequence[tuple[dict[str, Any], dict[str, Any] | None]],
) -> int:
    """Items of a run, with the answers beside them, from place `first` on; those that are there
    already stay. Returns the bytes that have been added."""
    added = 0
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    for start in range(0, len(items), _ROWS):
        values: list[dict[str, Any]] = [
            {
                "id": new_id("outputitem_"),
                "run_id": run.id,
                "place": first + start + number,
                "bytes": size_of(item) + size_of(given),
                "created_at": now(),
                "state": PENDING,
                "item": item,
                "given": given,
                "results": [],
            }
            for number, (item, given) in enumerate(items[start : start + _ROWS])
        ]
        statement = dialect.insert(EvalItem).values(values)
        statement = statement.on_conflict_do_nothing(index_elements=["run_id", "place"])
        added += sum(session.scalars(statement.returning(EvalItem.bytes)))
    run.item_bytes += added
    return added


def size_of(value: Any) -> int:
    """Bytes of a value in the database."""
    return len(json.dumps(value))


def pending(session: Session, run_id: str, after: int, most: int) -> list[EvalItem]:
    """The next items that nothing is known of, behind a place."""
    wanted = select(EvalItem).where(
        EvalItem.run_id == run_id, EvalItem.state == PENDING, EvalItem.place > after
    )
    return list(session.scalars(wanted.order_by(EvalItem.place).limit(most)))


def begin(session: Session, run: EvalRun, total: int, names: Sequence[str]) -> None:
    """All items are there: they can be asked and graded."""
    run.state = IN_PROGRESS
    run.counts = {"total": total, "pass": 0, "fail": 0, "error": 0}
    run.verdicts = {name: {"pass": 0, "fail": 0, "error": 0} for name in names}


def settle(
    session: Session,
    run: EvalRun,
    item_id: str,
    sample: dict[str, Any] | None,
    results: Sequence[dict[str, Any]],
    usage: Mapping[str, Mapping[str, int]],
) -> int:
    """Note what has become of an item: the result of each criterion, none where it could not be
    answered, and the tokens that it has cost. Returns the bytes that it takes more than before."""
    item = session.scalar(select(EvalItem).where(EvalItem.id == item_id).with_for_update())
    if item is None or item.state != PENDING:
        return 0
    more = size_of(sample) + size_of(results) - size_of(item.given)
    item.bytes += more
    run.item_bytes += more
    states = [result["status"] for result in results]
    is_error = "error" in states or not results
    item.state = "error" if is_error else "fail" if "fail" in states else "pass"
    item.created_at, item.given, item.sample = now(), None, sample
    item.results = [*results]
    run.counts = {**run.counts, item.state: run.counts[item.state] + 1}
    verdicts = {name: dict(found) for name, found in run.verdicts.items()}
    for result in results:
        verdicts[result["name"]][result["status"]] += 1
    for found in verdicts.values() if not results else ():
        found["error"] += 1
    run.verdicts = verdicts
    used = {name: dict(found) for name, found in run.usage.items()}
    for name, own in usage.items():
        found = used.setdefault(name, dict.fromkeys(own, 0))
        used[name] = {kind: count + own[kind] for kind, count in found.items()}
    run.usage = used
    return more


def end(session: Session, run: EvalRun, state: str, error: tuple[str, str] | None = None) -> None:
    """The run has come to its end; whoever wants to know is told."""
    run.state, run.finished_at = state, now()
    run.owner, run.lease_until = None, 0.0
    if error is not None:
        run.error = {"code": error[0], "message": error[1]}
    waiting = EvalItem.run_id == run.id, EvalItem.state == PENDING
    gone = select(func.coalesce(func.sum(EvalItem.bytes), 0)).where(*waiting)
    run.item_bytes -= int(session.scalar(gone) or 0)
    session.execute(delete(EvalItem).where(*waiting))
    outbox.note(session, run.project_id, f"eval.run.{_EVENTS[state]}", {"id": run.id})
