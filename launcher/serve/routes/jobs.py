"""/v1/fine_tuning/jobs: rows are read and written here; the controller does the work."""

# Annotations are not postponed here: FastAPI reads them.
import re
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from launcher.serve import quota
from launcher.serve.chat import models
from launcher.serve.db.database import comparable, new_id
from launcher.serve.db.tables import Event, Job, JobState, Model, now
from launcher.serve.files import project_files
from launcher.serve.http import paging, retries
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.http.failure import ApiError, missing_job
from launcher.serve.http.wire import Bounded, Page
from launcher.serve.jobs import journal, wire_jobs
from launcher.serve.jobs.journal import Note
from launcher.serve.routes.graders import Graders
from launcher.serve.service import Service
from launcher.serve.site import Site
from launcher.serve.webhooks import outbox

router = APIRouter(prefix="/v1/fine_tuning/jobs")
_LABEL = re.compile(r"metadata\[(.*)\]", re.DOTALL)
#: `metadata[KEY]=VALUE`, which is read from the query itself; `metadata=null` for jobs with none.
_LABELS = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "schema": {
        "anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]
    },
}
Limit = Annotated[int, Query(ge=1)]
#: Blank is none: some clients write what is not there so.
After = Annotated[str | None, AfterValidator(lambda after: after or None)]
#: Made once: this is asked most often.
_ONE = select(Job).where(Job.id == bindparam("job"), Job.project_id == bindparam("project"))


@router.post("", response_model=wire_jobs.JobView)
async def create(
    asked: wire_jobs.NewJob,
    caller: Asking,
    service: Served,
    graders: Graders,
    key: retries.IdempotencyKey = None,
) -> dict[str, Any]:
    """A new job; it begins by itself."""
    if asked.grader is not None:
        where = "method.reinforcement.grader"
        await graders.require_sound(caller.project_id, asked.grader, where)
    return await run_in_threadpool(_create, asked, caller, service, key)


def _create(
    asked: wire_jobs.NewJob, caller: Caller, service: Service, key: str | None
) -> dict[str, Any]:
    if asked.integrations:
        _require_wandb(service.site)
    wanted = "job", asked.model_dump_json()
    with service.database.begin() as session:
        made = retries.known(session, caller.project_id, key, *wanted)
        if made is not None:
            return wire_jobs.job_view(_find(session, caller, made), service.site.organization)
        quota.require_place(session, service.site, caller.project_id)
        _require_file(session, caller, asked.training_file, "training_file")
        if asked.validation_file is not None:
            _require_file(session, caller, asked.validation_file, "validation_file")
        model, offer = models.startable(session, service.site, caller.project_id, asked.model)
        _require_effort(service.site, offer, asked)
        job = Job(
            id=new_id("ftjob-"),
            project_id=caller.project_id,
            model=model,
            training_file=asked.training_file,
            validation_file=asked.validation_file,
            method=asked.kind,
            asked={**asked.asked(), "model": asked.model, "offer": offer},
            suffix=asked.suffix,
            seed=secrets.randbelow(1 << 31) if asked.seed is None else asked.seed,
            labels=asked.metadata,
            integrations=[one.model_dump() for one in asked.integrations or []] or None,
        )
        session.add(job)
        session.flush()
        journal.write(session, job.id, _first_notes(job))
        retries.note(session, caller.project_id, key, job.id, *wanted)
    return wire_jobs.job_view(job, service.site.organization)


@router.get(
    "",
    response_model=Bounded[wire_jobs.JobView],
    openapi_extra={"parameters": [_LABELS]},
)
def list_jobs(
    request: Request,
    caller: Asking,
    service: Served,
    after: After = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """Jobs of the project, newest first, perhaps only those with certain metadata."""
    wanted, only_without = {}, False
    for name, value in request.query_params.multi_items():
        if label := _LABEL.fullmatch(name):
            wanted[label[1]] = value
        elif name == "metadata" and value in ("", "null"):
            only_without = True

    def keep(job: Job) -> bool:
        labels = job.labels or {}
        return not (only_without and labels) and wanted.items() <= labels.items()

    with service.database.read() as session:
        number = None
        if after is not None:
            number = _find(session, caller, after, paging.unknown_cursor(after)).number
        own = [Job.project_id == caller.project_id]
        jobs, more = paging.page(
            session, Job, own, Job.number, after=number, limit=limit, keep=keep
        )
    return paging.as_list(
        (wire_jobs.job_view(job, service.site.organization) for job in jobs), more
    )


@router.get("/{job_id}", response_model=wire_jobs.JobView)
async def retrieve(job_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """One job. Clients poll for it, so no thread is changed for it where none is needed."""
    job = await service.database.ask(lambda session: _find(session, caller, job_id))
    return wire_jobs.job_view(job, service.site.organization)


@router.post("/{job_id}/cancel", response_model=wire_jobs.JobView)
def cancel(job_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """End the job for good; it is cancelled at once, its processes soon after."""
    with service.database.begin() as session:
        job = _find(session, caller, job_id, for_update=True)
        if job.state is not JobState.cancelled:
            _require(job, "cancel", not job.state.is_final)
            job.state, job.wanted = JobState.cancelled, JobState.cancelled
            job.finished_at = now()
            journal.write(session, job.id, [Note("cancelled", "Fine-tuning job cancelled")])
            outbox.job_ended(session, job)
    return wire_jobs.job_view(job, service.site.organization)


@router.post("/{job_id}/pause", response_model=wire_jobs.JobView)
def pause(job_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """Hold the job; a running one saves a checkpoint first."""
    with service.database.begin() as session:
        job = _find(session, caller, job_id, for_update=True)
        if job.state is not JobState.paused:
            _require(job, "pause", not job.state.is_final)
            job.state, job.wanted = JobState.paused, JobState.paused
            job.estimated_finish = None
            key = f"paused-{new_id('', 8)}"
            journal.write(session, job.id, [Note(key, "Fine-tuning job paused")])
    return wire_jobs.job_view(job, service.site.organization)


@router.post("/{job_id}/resume", response_model=wire_jobs.JobView)
def resume(job_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """Let a paused job go on from where it was."""
    with service.database.begin() as session:
        job = _find(session, caller, job_id, for_update=True)
        if _is_resumed(session, job):  # the answer to the first request was lost
            return wire_jobs.job_view(job, service.site.organization)
        _require(job, "resume", job.state is JobState.paused)
        # Without numbers its files have not been looked at yet.
        job.state = JobState.queued if job.hyperparameters else JobState.validating_files
        key = f"resumed-{new_id('', 8)}"
        journal.write(session, job.id, [Note(key, "Fine-tuning job resumed")])
    return wire_jobs.job_view(job, service.site.organization)


@router.get("/{job_id}/events", response_model=Page[wire_jobs.EventView])
def events(
    job_id: str, caller: Asking, service: Served, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """What happened to the job, newest first."""
    with service.database.read() as session:
        job, number = _find(session, caller, job_id), None
        own = [Event.job_id == job.id]
        if after is not None:
            last = session.scalar(select(Event).where(*own, Event.id == comparable(after)))
            if last is None:
                raise paging.unknown_cursor(after)
            number = last.number
        found, more = paging.page(session, Event, own, Event.number, after=number, limit=limit)
    return paging.as_list(map(wire_jobs.event_view, found), more)


@router.get(
    "/{job_id}/checkpoints",
    response_model=Bounded[wire_jobs.CheckpointView],
)
def checkpoints(
    job_id: str, caller: Asking, service: Served, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """Checkpoints that can be used as models, newest first."""
    with service.database.read() as session:
        job, step = _find(session, caller, job_id), None
        own = [Model.job_id == job.id]
        if after is not None:
            chosen = Model.checkpoint_id == comparable(after)
            last = session.scalar(select(Model).where(*own, chosen))
            if last is None:
                raise paging.unknown_cursor(after)
            step = last.step
        own.append(Model.deleted_at.is_(None))
        found, more = paging.page(session, Model, own, Model.step, after=step, limit=limit)
    return paging.as_list(map(wire_jobs.checkpoint_view, found), more)


def _find(
    session: Session,
    caller: Caller,
    job_id: str,
    missing: ApiError | None = None,
    *,
    for_update: bool = False,
) -> Job:
    named = {"job": comparable(job_id), "project": caller.project_id}
    job = session.scalar(_ONE.with_for_update() if for_update else _ONE, named)
    if job is None:
        raise missing or missing_job(job_id)
    return job


def _is_resumed(session: Session, job: Job) -> bool:
    if job.state is JobState.paused or job.state.is_final:
        return False
    wanted = select(Event.id).where(Event.job_id == job.id, Event.key.startswith("resumed-"))
    return session.scalar(wanted.limit(1)) is not None


def _require(job: Job, action: str, possible: bool) -> None:
    if not possible:
        found = f'Cannot {action} a job {job.id} that already has status "{job.state.value}".'
        if not job.state.is_final:
            found = f'Cannot {action} a job {job.id} that has status "{job.state.value}".'
        raise ApiError(400, found)


def _require_file(session: Session, caller: Caller, file_id: str, param: str) -> None:
    try:
        file = project_files.find(session, caller.project_id, file_id)
    except ApiError as error:
        raise ApiError(400, f"invalid {param}: {file_id}", param=param) from error
    if file.purpose != project_files.TRAINING:
        found = f"File {file_id} has purpose '{file.purpose}', but needs 'fine-tune'."
        raise ApiError(400, found, param=param)


def _require_wandb(site: Site) -> None:
    if not site.has_wandb:
        found = "The integration 'wandb' is not available: this service is not logged in to"
        raise ApiError(400, f"{found} Weights & Biases.", param="integrations")


def _require_effort(site: Site, offer: str, asked: wire_jobs.NewJob) -> None:
    """`ApiError` 400 for an effort that the model's template does not read."""
    wanted = asked.asked().get("reasoning_effort", "default")
    known = site.models.get(site.resolve(offer) or offer)
    if wanted != "default" and not (known and known.reasoning_effort):
        found = f"The model '{asked.model}' knows no reasoning effort: leave it out, or 'default'."
        raise ApiError(400, found, param="method.reinforcement.hyperparameters.reasoning_effort")


def _first_notes(job: Job) -> list[Note]:
    validation = f" and validation file: {job.validation_file}" if job.validation_file else ""
    return [
        Note("created", f"Created fine-tuning job: {job.id}"),
        Note("validating", f"Validating training file: {job.training_file}{validation}"),
    ]
