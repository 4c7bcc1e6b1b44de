"""Jobs that the client wants cancelled or paused: their processes are ended."""

from __future__ import annotations

from launcher.core.errors import ConfigError
from launcher.core.rundir import State
from launcher.launch.outcome import settled
from launcher.runs.cancel import cancel
from launcher.serve.db.tables import Job, JobState
from launcher.serve.jobs import launch, outcome, progress
from launcher.serve.jobs.launch import Attempt
from launcher.serve.jobs.workspace import Workplace


def stop(place: Workplace, job: Job) -> None:
    """End the job's run, with a checkpoint if it is to go on later. May take minutes.

    Raises `LauncherError` where another try may do.
    """
    run = place.run_of(job.id)
    if not run.exists():
        outcome.stopped(place, job.id, attempts=0)
        return
    found = launch.look(run)
    if found is Attempt.pending:
        return  # it cannot be told to end before it is there
    if found is Attempt.there or not settled(run.status()):
        try:
            cancel(run, now=job.wanted is JobState.cancelled)
        except ConfigError:
            if not run.status().state.is_final:  # otherwise it has ended by itself
                raise
    status = run.status()
    progress.note_progress(place, job, run)  # since the last look
    if status.state is State.succeeded and job.state is JobState.paused:
        outcome.succeed(place, job, run)
    else:
        outcome.stopped(place, job.id, attempts=status.attempt)
