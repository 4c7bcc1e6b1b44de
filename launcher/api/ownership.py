"""Which controller works on which job, and which jobs may start: one has each at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from launcher.api.database import Database
from launcher.api.tables import Job, JobState, Project
from launcher.jobs.slots import free_slot
from launcher.procfs import alive, space

LEASE_S = 30.0
#: Back ends with a queue of their own: all jobs go there at once.
QUEUED = ("slurm",)
_OPEN = (JobState.validating_files, JobState.queued, JobState.running)


class LostJobError(Exception):
    """Another controller has taken the job over; this one leaves it alone."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A controller process."""

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

    def may_take(self, job: Job) -> bool:
        """Whether the job is its own or nobody's: a controller of this host that died has none."""
        if job.owner in (None, self.name) or job.lease_until < time.time():
            return True
        host, place, pid, since = str(job.owner).rsplit(" ", 3)
        return (host, place) == (self.host, self.space) and not alive(int(pid), float(since))


def line(session: Session, most: Callable[[str], int | None] = lambda _: None) -> list[str]:
    """Ids of the jobs that wait for a place here, in the order in which `claim` gives it to them if
    no further job comes; those of a project that has as many as it may run come last."""
    waiting = or_(Job.state.in_(_OPEN), Job.wanted.is_not(None))
    jobs = list(session.scalars(select(Job).where(waiting).order_by(Job.number)))
    running = Counter(job.project_id for job in jobs if _has_place(job))
    lines: dict[str, deque[Job]] = {}
    for job in jobs:
        if job.state is JobState.queued and needs_slot(job):
            lines.setdefault(job.project_id, deque()).append(job)
    named = select(Project).where(Project.id.in_(lines))
    projects = {project.id: project for project in session.scalars(named)}
    began = {name: project.began_at for name, project in projects.items()}
    limits = {name: most(project.name) for name, project in projects.items()}

    def order(name: str) -> tuple[bool, int, float]:
        limit = limits[name]
        return limit is not None and running[name] >= limit, running[name], began[name]

    found: list[str] = []
    while lines:
        turn = min(lines, key=order)
        found.append(lines[turn].popleft().id)
        running[turn] += 1
        began[turn] = time.time() + len(found)
        if not lines[turn]:
            del lines[turn]
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
    run at a time.
    """
    with database.begin() as session:
        Database.lock(session, "jobs")
        waiting = or_(Job.state.in_(_OPEN), Job.wanted.is_not(None))
        jobs = list(session.scalars(select(Job).where(waiting).order_by(Job.number)))
        taken = [
            job.cursor["slot"]
            for job in jobs
            if "slot" in job.cursor and job.cursor.get("host") == owner.host
        ]
        free = [job for job in jobs if owner.may_take(job)]
        got = {job.id for job in free if not _waits(job) and _take(job, owner, taken, parallel)}
        running = Counter(job.project_id for job in jobs if _has_place(job))
        lines: dict[str, deque[Job]] = {}
        for job in free:
            if _waits(job):
                lines.setdefault(job.project_id, deque()).append(job)
        named = select(Project).where(Project.id.in_(lines))
        projects = {project.id: project for project in session.scalars(named)}
        while lines:
            turn = min(lines, key=lambda one: (running[one], projects[one].began_at))
            limit = most(projects[turn].name)
            is_full = limit is not None and running[turn] >= limit
            job = lines[turn].popleft()
            if not is_full and _take(job, owner, taken, parallel):
                got.add(job.id)
                running[turn] += 1
                projects[turn].began_at = time.time()
            if is_full or not lines[turn]:
                del lines[turn]
        return [job.id for job in jobs if job.id in got]


def _waits(job: Job) -> bool:
    """Whether it is to run and does not: for a place here, or its turn to go to Slurm."""
    return job.state is JobState.queued and job.wanted is None and not _has_place(job)


def _has_place(job: Job) -> bool:
    return "slot" in job.cursor or bool(job.cursor.get("started"))


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


def needs_slot(job: Job) -> bool:
    """Whether the job waits for a place on some machine."""
    waits = job.state is JobState.queued and job.wanted is None
    return waits and "slot" not in job.cursor and job.cursor.get("launch") not in QUEUED


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
