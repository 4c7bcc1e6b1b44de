"""Jobs that run: what their runs have measured and saved, and what has become of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from launcher.core.errors import ExitCode, StorageError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, State, Status
from launcher.launch.outcome import settled
from launcher.launch.queue import has_queue, queue_job
from launcher.launch.retry import BusyError
from launcher.serve import naming
from launcher.serve.db.tables import Event, Job, JobState, Model, now
from launcher.serve.jobs import journal, launch, measurements, outcome
from launcher.serve.jobs.journal import Note
from launcher.serve.jobs.launch import Attempt
from launcher.serve.jobs.measurements import Place
from launcher.serve.jobs.methods import METHODS
from launcher.serve.jobs.workspace import Workplace

#: Weight of the newest steps in a job's expected end: single ones are slow or quick by chance.
_NEWEST = 0.3
#: Times that a run whose processes vanish is started again.
_MOST_LOSSES = 5


def follow(place: Workplace, job: Job, seen: Status | None) -> None:
    """Note what is new, and how the job goes on.

    `seen` is what its queue has said of the run lately, None if nothing: then it is only read.
    """
    run = place.run_of(job.id)
    is_queued = has_queue(job.cursor["launch"])
    status = _of_queue(run, seen) if is_queued else _of_this_host(run)
    note_progress(place, job, run)
    if status is None:
        return
    if status.state is State.succeeded:
        outcome.succeed(place, job, run)
    elif status.state is State.failed:
        outcome.fail_run(place, job.id, status)
    elif status.state is State.cancelled:
        outcome.cancelled_elsewhere(place, job.id, status)
    elif status.state is State.preempted:
        _again(place, job, run)
    elif job.state is JobState.queued and status.state in (State.preparing, State.running):
        with place.owned(job.id) as (session, row):
            if row.state is JobState.queued:
                row.state = JobState.running
                journal.write(session, row.id, [journal.STARTED])


def _of_this_host(run: RunDir) -> Status | None:
    """The state of a run with processes here; preempted if they vanished or were killed, None if
    nobody knows."""
    found = launch.look(run)
    status = run.status()  # after: the last word comes before the end
    if found is Attempt.gone:
        return status if settled(status) and not status.lost else Status(State.preempted)
    if found is Attempt.none:
        return Status(State.preempted)
    return None if settled(status) or found is Attempt.pending else status


def _of_queue(run: RunDir, seen: Status | None) -> Status | None:
    """The state that the queue has told, if it is about the attempt at hand."""
    attempt = run.status().attempt
    if queue_job(run, attempt) is None:
        return Status(State.preempted) if launch.look(run) is Attempt.none else None
    if seen is None or seen.state is State.unknown or seen.attempt != attempt:
        return None
    if seen.state is State.preempted and launch.look(run) is not Attempt.gone:
        return None  # the queue starts it again
    return seen


def _again(place: Workplace, job: Job, run: RunDir) -> None:
    """Go on with a run that was stopped, but not because the client wanted it."""
    status = run.status()
    step = status.step or 0
    # It went on since the last loss: losses in weeks are none in a row.
    losses = job.cursor.get("losses", 0) if step <= job.cursor.get("lost_at", 0) else 0
    if losses >= _MOST_LOSSES:
        code, found = int(ExitCode.internal), "the processes of the job were lost again and again"
        found += f": {status.reason}" if status.lost else ""
        outcome.fail_run(place, job.id, Status(State.failed, reason=found, exit_code=code))
        return
    with place.owned(job.id) as (_, row):
        if row.wanted is not None:
            return
        row.estimated_finish = None
    is_loss = True
    try:
        launch.begin(place, job, run)
    except (BusyError, StorageError):  # a scheduler that takes nothing, a full disk, a rank that
        is_loss = False  # still saves: no loss of the job's
        raise
    finally:
        if is_loss:
            with place.owned(job.id) as (_, row):
                row.cursor = {**row.cursor, "losses": losses + 1, "lost_at": step}


def note_progress(place: Workplace, job: Job, run: RunDir) -> None:
    """Write new steps and checkpoints; nothing is written where nothing is new."""
    saved = _saved(run)  # before the metrics: they are written before a checkpoint is
    status = run.status()
    attempt, (every, total) = status.attempt, _lengths(job, status)
    place_read = Place(job.cursor.get("position", 0), job.cursor.get("mark", ""))

    def evaluates(step: int) -> bool:
        return job.validation_file is not None and (step % every == 0 or step >= total)

    # The last step is told with the job's end, which reads it all once more.
    method = METHODS[job.method]
    steps, end = measurements.read(
        run.metrics, place_read, method, evaluates=evaluates, ended=False
    )
    marks = [step for step in saved if step % every == 0 and step < total]
    known = job.cursor.get("marks", []), job.cursor.get("attempt")
    dropped = None if job.cursor.get("prepared") else _dropped(run)
    if not steps and end == place_read and known == (marks, attempt) and dropped is None:
        return
    with place.owned(job.id) as (session, row):
        if dropped:
            journal.write(session, row.id, [journal.STARTED, *dropped])
        if steps or marks:
            notes = [outcome.step_note(row, step, total) for step in steps]
            journal.write(session, row.id, [journal.STARTED, *notes])
        _note_checkpoints(session, row, marks, place.service.site.organization)
        # Of an attempt just begun, the first that is read are the steps of those before it.
        is_of_old = attempt != row.cursor.get("attempt", attempt)
        if steps and not is_of_old and row.state is JobState.running:
            row.estimated_finish = _steadied(
                row.estimated_finish, measurements.expected_end(steps, total)
            )
        read = {"attempt": attempt, "position": end.position, "mark": end.mark}
        row.cursor = {**row.cursor, **read, "marks": marks}
        if dropped is not None:
            row.cursor = {**row.cursor, "prepared": True}


def _dropped(run: RunDir) -> list[Note] | None:
    """Warnings of examples that are too long to be learned from, a file each; None before the run's
    data is prepared."""
    folders = read_json(run.data)
    if not isinstance(folders, dict):
        return None
    found = []
    for split, file in (("train", "training"), ("validation", "validation")):
        folder = folders.get(split)
        index = read_json(Path(folder) / "index.json", {}) if folder else {}
        counts = index.get("counts", {})
        if count := counts.get("dropped", 0):
            text = f"{count:,} of {counts['read']:,} examples of the {file} file are left out: they"
            text += (
                f" are longer than the {index['max_length']:,} tokens that this model learns from"
            )
            data = {"file": f"{file}_file", "left_out": count, "examples": counts["read"]}
            found.append(Note(f"dropped-{file}", text, data, level="warn"))
    return found


def _steadied(known: int | None, found: int | None) -> int | None:
    if known is None or found is None:
        return known if found is None else found
    return round(known + _NEWEST * (found - known))


def _lengths(job: Job, status: Status) -> tuple[int, int]:
    """Steps between two checkpoints, and of the job: fewer where the run has dropped examples.

    Those are dropped of which nothing is left to learn once they are cut.
    """
    used, examples = job.hyperparameters, job.cursor["examples"]
    batch = used["batch_size"]
    total = status.steps or math.ceil(used["n_epochs"] * examples / batch)
    return used.get("eval_interval") or math.ceil(examples / batch), total


def _saved(run: RunDir) -> list[int]:
    """Steps of the complete checkpoints."""
    manifests = (read_json(path) for path in run.checkpoints.glob("step-*/manifest.json"))
    return sorted(int(found["step"]) for found in manifests if isinstance(found, dict))


def _note_checkpoints(session: Session, job: Job, marks: list[int], organization: str) -> None:
    known = {m.step: m for m in session.scalars(select(Model).where(Model.job_id == job.id))}
    for step in marks:
        if step in known:
            continue
        name = naming.checkpoint_name(job, organization, step)
        session.add(
            Model(
                name=name,
                project_id=job.project_id,
                job_id=job.id,
                step=step,
                checkpoint_id=naming.checkpoint_id(job, step),
                metrics=_metrics(session, job, step),
            )
        )
        text = f"Checkpoint created at step {step} with Snapshot ID: {name}"
        journal.write(session, job.id, [Note(f"checkpoint-{step}", text)])
    for step, model in known.items():
        if step not in marks and not model.is_final and model.deleted_at is None:
            model.deleted_at = now()


def _metrics(session: Session, job: Job, step: int) -> dict[str, Any]:
    key = Event.key == f"step-{step}"
    data = session.scalar(select(Event.data).where(Event.job_id == job.id, key))
    numbers = {name: x for name, x in (data or {}).items() if isinstance(x, int | float)}
    return {name: x for name, x in numbers.items() if name != "total_steps"}
