"""Which controller works on which job, and which jobs may start: one has each at a time."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, false, func, not_, or_, select
from sqlalchemy.orm import Session

from launcher.core.processes import alive, space
from launcher.launch.queue import has_queue, is_installed
from launcher.runs.slots import free_slot
from launcher.serve.db.database import Database
from launcher.serve.db.tables import Batch, EvalRun, Job, JobState, Project

LEASE_S = 30.0
_OPEN = (JobState.validating_files, JobState.queued, JobState.running)


class LostJobError(Exception):
    """Another controller has taken the job over; this one leaves it alone."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A controller process, or a server's."""

    host: str
    space: str
    """What its process id belongs to."""
    pid: int
    since: float
    """Unix time at which it was there."""

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        place = hashlib.sha256(space().encode()).hexdigest()[:12]
        return cls(socket.gethostname(), place, os.getpid(), time.time())

    @property
    def name(self) -> str:
        """As it stands in a row."""
        return f"{self.host} {self.space} {self.pid} {self.since:.3f}"

    def may_take(self, job: Job | Batch | EvalRun | Row[Any]) -> bool:
        """Whether the job, or a server's batch or run, is its own or nobody's: a process of this
        host that died has none."""
        if job.owner in (None, self.name) or job.lease_until < time.time():
            return True
        host, place, pid, since = str(job.owner).rsplit(" ", 3)
        return (host, place) == (self.host, self.space) and not alive(int(pid), float(since))


def line(session: Session, most: Callable[[str], int | None] = lambda _: None) -> dict[str, int]:
    """Jobs that wait for a place here, by id, and which of them each is, from 1: the order in which
    `claim` gives it to them if no further job comes; those of a project that has as many as it may
    run come last."""
    lines: dict[str, deque[str]] = {}
    for row in _waiting(session):
        if _takes_place(row.launch):
            lines.setdefault(row.project_id, deque()).append(row.id)
    running = _running(session)
    named = select(Project).where(Project.id.in_(lines))
    began = {project.id: project.began_at for project in session.scalars(named)}
    limits = {project.id: most(project.name) for project in session.scalars(named)}

    oldest = {name: number for number, name in enumerate(lines)}

    def order(name: str) -> tuple[bool, int, float, int, str]:
        limit = limits[name]
        is_full = limit is not None and running[name] >= limit
        return is_full, running[name], began[name], oldest[name], name

    found: dict[str, int] = {}
    turns = [order(name) for name in lines]
    heapq.heapify(turns)
    while turns:
        name = turns[0][-1]
        found[lines[name].popleft()] = len(found) + 1
        running[name] += 1
        began[name] = time.time() + len(found)
        if lines[name]:
            heapq.heapreplace(turns, order(name))
        else:
            heapq.heappop(turns)
    return found


def claim(
    database: Database,
    owner: Owner,
    parallel: int,
    most: Callable[[str], int | None] = lambda _: None,
) -> list[str]:
    """Ids of the jobs that are this controller's to work on, oldest first, for the next seconds.

    A job that waits for a place on this machine gets one if less than `parallel` are taken,
    whichever controller of this machine has taken them.

    Those that wait take turns by project: the one with the fewest running is next, of those the
    one that was longest ago, and its oldest job. `most` says how many of a project, by name, may
    run at a time. Of those that go on waiting no more is read than whose they are.
    """
    with database.begin() as session:
        Database.lock(session, "jobs")
        is_open = or_(Job.state.in_(_OPEN), Job.wanted.is_not(None))
        jobs = list(session.scalars(select(Job).where(is_open, not_(_WAITS)).order_by(Job.number)))
        taken = [
            job.cursor["slot"]
            for job in jobs
            if "slot" in job.cursor and job.cursor.get("host") == owner.host
        ]
        got = [job for job in jobs if owner.may_take(job) and _take(job, owner, taken, parallel)]
        lines: dict[str, deque[Row[Any]]] = {}
        for row in _waiting(session):
            if owner.may_take(row):
                lines.setdefault(row.project_id, deque()).append(row)
        running = _running(session)
        named = select(Project).where(Project.id.in_(lines))
        projects = {project.id: project for project in session.scalars(named)}
        while lines:
            turn = min(lines, key=lambda one: (running[one], projects[one].began_at))
            limit = most(projects[turn].name)
            is_full = limit is not None and running[turn] >= limit
            row = lines[turn].popleft()
            needs_place = _takes_place(row.launch)
            if needs_place and free_slot(taken, parallel) is None:
                # There is none for its others either, but some may be for a queue.
                lines[turn] = deque(one for one in lines[turn] if not _takes_place(one.launch))
            elif not is_full:
                job = session.scalars(select(Job).where(Job.number == row.number)).one()
                if _take(job, owner, taken, parallel):
                    got.append(job)
                    running[turn] += 1
                    projects[turn].began_at = time.time()
            if is_full or not lines[turn]:
                del lines[turn]
        return [job.id for job in sorted(got, key=lambda job: job.number)]


#: Whether a job has a place, or is in a queue, and whether it is to run and does not.
_HAS_PLACE = or_(Job.cursor["slot"].as_string().is_not(None), Job.cursor["started"].as_boolean())
_WAITS = and_(
    Job.state == JobState.queued,
    Job.wanted.is_(None),
    Job.cursor["slot"].as_string().is_(None),
    func.coalesce(Job.cursor["started"].as_boolean(), false()).is_(False),
)


def _waiting(session: Session) -> Sequence[Row[Any]]:
    """Of all jobs that wait what says whose turn it is, oldest first."""
    launch = Job.cursor["launch"].as_string().label("launch")
    columns = Job.number, Job.id, Job.project_id, Job.owner, Job.lease_until, launch
    return session.execute(select(*columns).where(_WAITS).order_by(Job.number)).all()


def _running(session: Session) -> Counter[str]:
    """How many jobs of each project have a place."""
    is_open = or_(Job.state.in_(_OPEN), Job.wanted.is_not(None))
    counted = select(Job.project_id, func.count()).where(is_open, _HAS_PLACE)
    rows = session.execute(counted.group_by(Job.project_id)).all()
    return Counter({row[0]: row[1] for row in rows})


def _take(job: Job, owner: Owner, taken: list[int], parallel: int) -> bool:
    if needs_slot(job):
        slot = free_slot(taken, parallel)
        if slot is None:
            return False
        taken.append(slot)
        job.cursor = {**job.cursor, "slot": slot, "host": owner.host}
    elif job.cursor.get("host", owner.host) != owner.host:
        return False  # its processes are on another machine
    if job.owner != owner.name or job.lease_until < time.time() + LEASE_S * 2 / 3:
        job.owner, job.lease_until = owner.name, time.time() + LEASE_S
    return True


def _takes_place(name: str | None) -> bool:
    """Whether jobs of this launch back end, None as long as it is not known, run on a machine of
    the service. Of one that is not installed any more nobody here knows where they run."""
    return name is None or (is_installed(name) and not has_queue(name))


def needs_slot(job: Job) -> bool:
    """Whether the job waits for a place on some machine."""
    waits = job.state is JobState.queued and job.wanted is None
    return waits and "slot" not in job.cursor and _takes_place(job.cursor.get("launch"))


def give_up_place(job: Job) -> None:
    """The job has no processes and no controller any more."""
    left = ("slot", "host", "started")
    job.cursor = {key: value for key, value in job.cursor.items() if key not in left}
    job.owner, job.lease_until = None, 0.0


@contextlib.contextmanager
def owned(database: Database, owner: Owner, job_id: str) -> Iterator[tuple[Session, Job]]:
    """A transaction on a job that is still this controller's; else `LostJobError`."""
    with database.begin() as session:
        job = session.scalars(select(Job).where(Job.id == job_id).with_for_update()).one()
        if job.owner != owner.name:
            raise LostJobError(job_id)
        yield session, job
