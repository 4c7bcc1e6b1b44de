"""`python -m launcher.serve.jobs.controller HOME`: all work on jobs, and telling of it.

Any number of them may work on one database: each job has one at a time. A controller may die at
any moment; the next one goes on from what stands in the rows and the run folders.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import FrameType

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from launcher.core.errors import LauncherError
from launcher.core.fairness import TurnThreads
from launcher.core.rundir import Status
from launcher.launch.outcome import settled
from launcher.launch.queue import has_queue, queue_job
from launcher.runs.status import ListedRun, observed_rows
from launcher.serve import permissions
from launcher.serve.db.tables import Job, JobState
from launcher.serve.http import logs
from launcher.serve.jobs import (
    admission,
    cancellation,
    heartbeat,
    launch,
    outcome,
    ownership,
    progress,
)
from launcher.serve.jobs.ownership import LostJobError, Owner
from launcher.serve.jobs.workspace import Workplace
from launcher.serve.service import Service
from launcher.serve.webhooks.sender import Sender

_LOG = logging.getLogger("launcher.serve.jobs.controller")  # not __main__
_EVERY_S = 1.0
#: Seconds between two questions to a queue; fewer when a run says that it has ended.
_ASK_S = 5.0
_ENDING_S = 1.0
_RETRY_S = 5.0
#: Threads that check files give way after this.
_SWITCH_S = 0.0005
#: A fault of ours in a row that ends the job.
_MOST_FAULTS = 10
#: Threads by what they do: checks and stops take long, and must not hold up the rest. Of each kind
#: the projects take turns: one may have hundreds of jobs to submit to a slow scheduler.
_THREADS = {"check": 16, "stop": 8, "step": 4, "ask": 1}


class Controller:
    """Looks at all jobs again and again, one short step each."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._pools = {kind: TurnThreads(count, kind) for kind, count in _THREADS.items()}
        self._busy: dict[str, Future[None]] = {}
        self._checks: dict[str, Future[None]] = {}
        self._not_before: dict[str, float] = {}
        self._faults: dict[str, int] = {}
        self._seen: dict[str, Status] = {}
        self._asked: Future[None] | None = None
        self._ask_at = 0.0

    def look(self) -> None:
        """Begin a step of each job that has none under way."""
        service = self._place.service
        parallel = service.site.queue.parallel
        ids = ownership.claim(
            service.database,
            self._place.owner,
            parallel,
            lambda project: service.site.quota_of(project).running_jobs,
        )
        self._busy = {job: step for job, step in self._busy.items() if not step.done()}
        with service.database.read() as session:
            jobs = list(session.scalars(select(Job).where(Job.id.in_(ids)).order_by(Job.number)))
        self._ask([job for job in jobs if has_queue(job.cursor.get("launch"))])
        for job in jobs:
            if job.id in self._busy or self._not_before.get(job.id, 0) > time.monotonic():
                continue
            kind = _kind(job)
            # One check of a project at a time: they take long, and no other's waits for them.
            before = self._checks.get(job.project_id)
            if kind == "check" and before is not None and not before.done():
                continue
            step = functools.partial(self._step, job.id)
            self._busy[job.id] = self._pools[kind].submit(job.project_id, step)
            if kind == "check":
                self._checks[job.project_id] = self._busy[job.id]

    def close(self) -> None:
        """Begin nothing more."""
        for pool in self._pools.values():
            pool.close()

    def _step(self, job_id: str) -> None:
        try:
            # As it stands now, not when the step was put in line.
            with self._place.service.database.read() as session:
                job = session.scalars(select(Job).where(Job.id == job_id)).one()
            if job.owner == self._place.owner.name:
                self._advance(job)
            self._faults.pop(job_id, None)
        except LostJobError:
            _LOG.warning("job %s: another controller has taken it over", job_id)
        except IntegrityError as error:  # no other try will do better
            _LOG.exception("job %s: a fault of the service", job_id)
            self._fault(job_id, error)
        except (LauncherError, OSError, SQLAlchemyError) as error:
            _LOG.error("job %s: %s; it is tried again", job_id, error)
            self._not_before[job_id] = time.monotonic() + _RETRY_S
        except Exception as error:
            _LOG.exception("job %s: a fault of the service", job_id)
            self._fault(job_id, error)

    def _advance(self, job: Job) -> None:
        launch.require_installed(job)
        if job.wanted is not None:
            cancellation.stop(self._place, job)
        elif job.state is JobState.validating_files:
            admission.check(self._place, job)
        elif job.cursor.get("started"):
            progress.follow(self._place, job, self._seen.get(job.id))
        elif job.state is JobState.queued and not ownership.needs_slot(job):
            self._seen.pop(job.id, None)
            launch.launch(self._place, job)

    def _fault(self, job_id: str, error: Exception) -> None:
        """A fault of ours may pass; one that stays must not keep the job for ever."""
        self._not_before[job_id] = time.monotonic() + _RETRY_S
        self._faults[job_id] = self._faults.get(job_id, 0) + 1
        if self._faults[job_id] < _MOST_FAULTS:
            return
        try:
            name = type(error).__name__
            outcome.fail(self._place, job_id, "server_error", f"internal error: {name}", None)
        except (LostJobError, SQLAlchemyError):
            _LOG.exception("job %s could not be failed", job_id)

    def _ask(self, jobs: Sequence[Job]) -> None:
        """Ask each queue about all its jobs at once, now and then, and wait for no answer."""
        if time.monotonic() < self._ask_at or (self._asked and not self._asked.done()):
            return
        runs = [self._place.run_of(job.id) for job in jobs if job.cursor.get("started")]
        rows = [
            ListedRun(run.name, str(run), status)
            for run in runs
            if queue_job(run, (status := run.status()).attempt)
        ]
        if not rows:
            return
        ending_soon = any(settled(row.status) for row in rows)
        self._ask_at = time.monotonic() + (_ENDING_S if ending_soon else _ASK_S)
        self._asked = self._pools["ask"].submit("", functools.partial(self._observe, rows))

    def _observe(self, rows: list[ListedRun]) -> None:
        try:
            self._seen.update({row.name: row.status for row in observed_rows(rows)})
        except LauncherError as error:
            _LOG.error("queue: %s", error)


def _kind(job: Job) -> str:
    if job.wanted is not None:
        return "stop"
    return "check" if job.state is JobState.validating_files else "step"


def main(argv: Sequence[str]) -> int:
    """Work until SIGTERM or SIGINT; jobs run on after that."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher.serve.jobs.controller", description=__doc__
    )
    parser.add_argument("home", type=Path)
    parser.add_argument("--every", type=float, default=_EVERY_S, help="seconds between two looks")
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text")
    parsed = parser.parse_args(argv)
    logs.start(parsed.log_format)
    permissions.close_to_others()
    service = Service.open(parsed.home)
    sys.setswitchinterval(_SWITCH_S)
    # Relative paths in the site's overrides start there.
    os.chdir(service.home)
    controller = Controller(Workplace(service, Owner.here()))
    sender = Sender(service)
    sender.start()
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while not ended.is_set():
        try:
            heartbeat.sign(service.home)
            controller.look()
        except (LauncherError, OSError, SQLAlchemyError) as error:
            _LOG.error("%s; it is tried again", error)
        ended.wait(parsed.every)
    controller.close()
    sender.stop()
    logs.stop()
    # A check or a stop may take minutes; whoever comes next does it again.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
