"""Jobs whose turn it is: the run folder is made and handed to its back end, once."""

from __future__ import annotations

import shutil
import time
from enum import Enum

from launcher.config import create
from launcher.config.schema import Config
from launcher.core.errors import ConfigError
from launcher.core.files import storage_errors
from launcher.core.rundir import RunDir, State
from launcher.launch.local import START_TIMEOUT_S, supervisor_file
from launcher.launch.outcome import settled
from launcher.launch.queue import has_queue, is_installed, queue_job, queue_of
from launcher.launch.retry import BusyError
from launcher.launch.spec import AttemptState, LaunchSpec, backend_name, job_file
from launcher.runs import start
from launcher.runs.logs import backend_of
from launcher.runs.slots import Slots
from launcher.serve.db.tables import Job, JobState
from launcher.serve.jobs import journal, outcome
from launcher.serve.jobs.workspace import Workplace

#: What was started just before a controller died may take so long to be seen.
_START_S = START_TIMEOUT_S + 10.0
_SUBMIT_S = 60.0


class Attempt(Enum):
    """What there is of a run's last attempt."""

    none = "none"
    """Nothing was submitted, as far as can be told now."""
    pending = "pending"
    """It may have been submitted by a controller that died: it can still come up."""
    there = "there"
    """Processes, or a queue job; or nobody can tell."""
    gone = "gone"
    """It has ended, or its processes are lost."""


def launch(place: Workplace, job: Job) -> None:
    """Start the run of a job that has its place, or take over what was started already.

    Raises `LauncherError` where another try may do: a queue is away, the disk is full.
    """
    run = place.run_of(job.id)
    try:
        if not run.exists():
            _make(place, job, run)
        found = look(run)
        is_old = run.status().attempt <= job.cursor.get("attempts", 0)  # before a pause
        if found is Attempt.none or (is_old and found is Attempt.gone):
            begin(place, job, run)
        elif is_old or found is Attempt.pending:
            return
    except ConfigError as error:
        outcome.fail(place, job.id, "invalid_configuration", str(error), None)
        return
    with place.owned(job.id) as (session, row):
        row.cursor = {**row.cursor, "started": True}
        # In a queue it waits on: the queue says when it runs.
        if row.state is JobState.queued and not has_queue(row.cursor["launch"]):
            row.state = JobState.running
            journal.write(session, row.id, [journal.STARTED])


def require_installed(job: Job) -> None:
    """Raise `ConfigError` if the launch back end of a job is gone: it would be wrong to look for
    its run on this host, or to start it again."""
    name = job.cursor.get("launch")
    if name is not None and not is_installed(name):
        found = f"launch={name} is not installed here: the job stays as it is until it is again"
        hint = "install its package, or put its folder back on PYTHONPATH, and restart the service"
        raise ConfigError(found, where="launch.name", hint=hint)


def look(run: RunDir) -> Attempt:
    """What there is of the run's last attempt. `BusyError` if a queue had to be asked."""
    status = run.status()
    name = backend_name(run, status.attempt)
    if name is None:
        return Attempt.none
    age_s = time.time() - job_file(run, status.attempt).stat().st_mtime
    queue = queue_of(name)
    if queue is not None:
        known = queue_job(run, status.attempt) or queue.recover(run, status.attempt)
        if known is None:
            return Attempt.pending if age_s < _SUBMIT_S else Attempt.none
    elif not supervisor_file(run, status.attempt).exists():
        is_over = age_s > _START_S or settled(status)
        return Attempt.none if is_over else Attempt.pending
    backend = backend_of(run, status.attempt)
    assert backend is not None
    is_gone = backend.status(run, status.attempt) is AttemptState.gone
    return Attempt.gone if is_gone else Attempt.there


def begin(place: Workplace, job: Job, run: RunDir) -> None:
    """Start the next attempt."""
    slot = job.cursor.get("slot")

    def fitted(spec: LaunchSpec, config: Config) -> LaunchSpec:
        if slot is None:
            return spec
        slots = Slots(config, place.service.site.queue.parallel, where="queue.parallel")
        return slots.fitted(spec, config, slot)

    attempt = start.begin(run)
    try:
        start.submit(run, attempt, attached=False, fitted=fitted, patience_s=0)
    except BusyError:
        # Whether it was submitted is not known: the next try asks.
        run.set_status(State.preparing, attempt=attempt)
        raise


def _make(place: Workplace, job: Job, run: RunDir) -> None:
    """Make the run folder, anew if a crash has left half of one."""
    with storage_errors(run.path):
        if run.path.exists():
            shutil.rmtree(run.path)
    made = place.translated(job)
    start.rehearsed(run, made.config, made.plan.world_size, ask=True, patience_s=0)
    create.make(create.named(made.config, made.words), made.config, made.plan, made.words)
