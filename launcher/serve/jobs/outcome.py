"""How jobs end: with a model and a result file, with an error, or because somebody wanted it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, Status
from launcher.serve import judges, naming
from launcher.serve.db.tables import Event, Job, JobState, Model, Permission, now
from launcher.serve.files import project_files
from launcher.serve.jobs import journal, measurements, ownership
from launcher.serve.jobs.journal import Note
from launcher.serve.jobs.measurements import Measured
from launcher.serve.jobs.methods import METHODS
from launcher.serve.jobs.workspace import GRADER, Workplace
from launcher.serve.webhooks import outbox

_RESULTS = "step_metrics.csv"
_CODES = {
    ExitCode.usage: "invalid_configuration",
    ExitCode.data: "invalid_file_format",
    ExitCode.out_of_memory: "out_of_memory",
    ExitCode.diverged: "training_diverged",
    ExitCode.hang: "training_hung",
    ExitCode.storage: "storage_error",
}
_LONGEST_MESSAGE = 2000
_FILES = ("training_file", "validation_file")
_GRADER = "method.reinforcement.grader"
#: What may stand before the place of a problem in the reason that a run gives.
_BEFORE = re.compile(r"^(?:rank \d+ on \S+: |data preparation failed: |error: )*(?:grader:)?")


def succeed(place: Workplace, ended: Job, run: RunDir) -> None:
    """The run is done: its model, its result file and its last numbers, in one go."""
    method = METHODS[ended.method]
    steps, _ = measurements.read(
        run.metrics, measurements.BEGIN, method, evaluates=lambda _: False, ended=True
    )
    organization, store = place.service.site.organization, place.service.store
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(store.incoming())
        table.write(measurements.table(steps, method))
        store.prepare(table)
        session, job = stack.enter_context(place.owned(ended.id))
        if job.state.is_final:
            _release(job)
            return
        result = read_json(run.best, {}).get("result")
        # The weights of the last step, unless the site asks for the best ones.
        last = next((step for step in steps if step.step == result), steps[-1] if steps else None)
        name = naming.final_name(job, organization)
        if last is not None:
            _add_final(session, job, name, last)
        result = project_files.insert(
            session, store, table, job.project_id, _RESULTS, project_files.RESULTS
        )
        job.result_file = result.id
        job.trained_tokens = steps[-1].tokens if steps else 0
        job.fine_tuned_model = name
        job.state, job.finished_at = JobState.succeeded, now()
        new = unnoted(session, job.id, steps)
        notes = _last_notes(job, name, new, steps[-1].step if steps else 0)
        journal.write(session, job.id, [journal.STARTED, *notes])
        outbox.job_ended(session, job)
        _release(job)


def fail_run(place: Workplace, job_id: str, status: Status) -> None:
    """The run has failed."""
    found = ExitCode(status.exit_code) if status.exit_code in set(ExitCode) else ExitCode.internal
    reason = status.reason or "The job failed for a reason that is not known."
    param = _blamed(place.data_of(job_id), reason)
    code = _CODES.get(found, "server_error")
    if found is ExitCode.data and param not in _FILES:
        code = "invalid_configuration" if param is None else "invalid_grader"
    fail(place, job_id, code, reason, param)


def _blamed(folder: Path, reason: str) -> str | None:
    """What of a job is wrong by the first place that a run's reason names; `folder` has the files
    that the run reads. None if it is nothing that a client has sent."""
    places = {
        "data.train": "training_file",
        str(folder / "training.jsonl"): "training_file",
        "data.validation": "validation_file",
        str(folder / "validation.jsonl"): "validation_file",
        "objective.grader": _GRADER,
        str(folder / GRADER): _GRADER,
    }
    for line in reason.splitlines():
        where = _BEFORE.sub("", line)
        for own, param in places.items():
            if re.match(rf"{re.escape(own)}[:.]", where):
                return param
    return None


def fail(place: Workplace, job_id: str, code: str, message: str, param: str | None) -> None:
    """The job has failed, unless it was cancelled meanwhile; none of its processes is left."""
    # Where things lie here is nothing to the client.
    message = message.replace(str(place.service.home), "...")[:_LONGEST_MESSAGE]
    with place.owned(job_id) as (session, job):
        if not job.state.is_final:
            job.error = {"code": code, "message": message, "param": param}
            job.state, job.finished_at = JobState.failed, now()
            note = Note("failed", message, level="error")
            journal.write(session, job.id, [note])
            outbox.job_ended(session, job)
        _release(job)


def cancelled_elsewhere(place: Workplace, job_id: str, status: Status) -> None:
    """Somebody has cancelled the run, and not through this service."""
    with place.owned(job_id) as (session, job):
        if not job.state.is_final:
            job.state, job.finished_at = JobState.cancelled, now()
            text = "Fine-tuning job cancelled by the site"
            journal.write(session, job.id, [Note("cancelled", text, level="warn")])
            outbox.job_ended(session, job)
        _release(job)


def stopped(place: Workplace, job_id: str, attempts: int) -> None:
    """What the client wanted is done: no process is left of the run's `attempts` so far."""
    with place.owned(job_id) as (_, job):
        job.cursor = {**job.cursor, "attempts": attempts}
        _release(job)


def _release(job: Job) -> None:
    job.wanted = None
    ownership.give_up_place(job)


def _add_final(session: Session, job: Job, name: str, last: Measured) -> None:
    # A checkpoint of this step may have been noted before anyone knew that it is the last: whoever
    # may use it may use the model.
    own = Model.job_id == job.id, Model.step == last.step
    permitted = select(Permission).where(Permission.model.in_(select(Model.name).where(*own)))
    kept = [(one.id, one.project_id, one.created_at) for one in session.scalars(permitted)]
    session.execute(delete(Permission).where(Permission.id.in_([one[0] for one in kept])))
    session.execute(delete(Model).where(*own))
    session.add(
        Model(
            name=name,
            project_id=job.project_id,
            job_id=job.id,
            step=last.step,
            checkpoint_id=naming.checkpoint_id(job, last.step),
            metrics=last.metrics(),
            is_final=True,
        )
    )
    session.flush()
    session.add_all(
        Permission(id=found, model=name, project_id=project, created_at=at)
        for found, project, at in kept
    )


def unnoted(session: Session, job_id: str, steps: Sequence[Measured]) -> list[Measured]:
    """Those of the steps that have no event yet, whatever was read of their file before."""
    wanted = select(Event.key).where(Event.job_id == job_id, Event.type == "metrics")
    noted = set(session.scalars(wanted))
    return [step for step in steps if _key(step) not in noted]


def _last_notes(job: Job, name: str, new: list[Measured], total: int) -> list[Note]:
    return [
        *(step_note(job, step, total) for step in new),
        Note(f"checkpoint-{total}", f"Checkpoint created at step {total} with Snapshot ID: {name}"),
        Note("model", f"New fine-tuned model created: {name}"),
        Note("succeeded", "The job has successfully completed"),
    ]


def step_note(job: Job, step: Measured, total: int) -> Note:
    """The event of a step."""
    data = {**step.metrics(), **_scores(job, step), "total_steps": total}
    text, time = step.message(total), int(step.time) or None
    return Note(_key(step), text, data, type="metrics", created_at=time)


def _key(step: Measured) -> str:
    return f"step-{step.step}"


def _scores(job: Job, step: Measured) -> dict[str, Any]:
    """The rewards of a step, of each grader within a `multi` too; nothing of other methods."""
    names = ("train_reward_mean", "valid_reward_mean")
    means = {name: step.beside[name] for name in names if step.beside.get(name) is not None}
    if "grader" not in job.asked or not means:
        return {}
    graders = [
        {
            "name": str(own.get("name")),
            "type": str(own.get("type")),
            "train_reward_mean": step.parts[name],
        }
        for name, own in judges.parts_of(job.asked["grader"]).items()
        if name in step.parts
    ]
    return {"scores": {**means, "graders": graders}}
