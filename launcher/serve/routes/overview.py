"""What the page reads again and again: answered with 304 while nothing has changed."""

# Annotations are not postponed here: FastAPI reads them.
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from launcher.core.rundir import RunDir
from launcher.serve.db.tables import Audit, Job, JobState, Key, now
from launcher.serve.files.intake import Working
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.http.failure import missing_job
from launcher.serve.jobs import overview
from launcher.serve.jobs.curves import MOST, Curves
from launcher.serve.jobs.overview import Filter, Glances

_LONGEST = 500
_LAST = 1 << 53
#: Changes of all projects, of the last of which a project's are looked for.
_AUDITED = 1_000_000
Text = Annotated[str, Query(max_length=512)]
Step = Annotated[int, Query(ge=0, le=_LAST)]


@contextlib.asynccontextmanager
async def _remembering(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"curves": Curves(), "glances": Glances()}


router = APIRouter(prefix="/v1/fine_tuning", include_in_schema=False, lifespan=_remembering)


@router.get("/overview")
async def list_jobs(
    request: Request,
    caller: Asking,
    service: Served,
    workers: Working,
    q: Text = "",
    state: Annotated[list[JobState], Query()] = [],  # noqa: B006 - FastAPI makes it anew
    model: Text = "",
    metadata: Annotated[list[str], Query(max_length=16)] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=_LONGEST)] = 50,
) -> Response:
    """Jobs of the project, newest first, with all that a list shows of them."""
    wanted = Filter(q, state, model, metadata)

    def show() -> Response:
        with service.database.read() as session:
            found = overview.jobs(
                session, service, request.state.glances, caller.project_id, wanted, limit
            )
        return _answer(request, found)

    return await to_thread.run_sync(show, limiter=workers.showing(caller.project_id))


@router.get("/overview/{job_id}")
def show_job(job_id: str, request: Request, caller: Asking, service: Served) -> Response:
    """One job, and the newest of its events that are no steps."""
    with service.database.read() as session:
        job = _find(session, caller, job_id)
        glances = request.state.glances
        row = overview.rows(session, service, glances, caller.project_id, [job])[0]
        found = {"job": row, "events": overview.messages(session, job)}
    return _answer(request, found)


@router.get("/jobs/{job_id}/curve")
async def show_curve(
    job_id: str,
    request: Request,
    caller: Asking,
    service: Served,
    workers: Working,
    first: Step = 0,
    last: Step = _LAST,
    points: Annotated[int, Query(ge=2, le=MOST)] = MOST,
) -> Response:
    """What `curves.COLUMNS` says by step, of steps `first` to `last`."""
    curves: Curves = request.state.curves

    def show() -> Response:
        with service.database.read() as session:
            _find(session, caller, job_id)
        return _answer(request, curves.of(RunDir(service.runs / job_id), first, last, points))

    return await to_thread.run_sync(show, limiter=workers.showing(caller.project_id))


@router.get("/models")
def list_models(request: Request, caller: Asking, service: Served) -> Response:
    """The models that jobs of the project have made."""
    with service.database.read() as session:
        found = overview.made_models(session, service, caller.project_id)
    return _answer(request, {"object": "list", "data": found})


@router.get("/judges")
def list_judges(request: Request, caller: Asking, service: Served) -> Response:
    """Names of the models that graders may ask."""
    return _answer(request, {"object": "list", "data": sorted(service.site.judges)})


@router.get("/audit")
async def list_changes(
    request: Request,
    caller: Asking,
    service: Served,
    workers: Working,
    before: Step = _LAST,
    limit: Annotated[int, Query(ge=1, le=_LONGEST)] = 50,
) -> Response:
    """Requests that changed something in the project, or were refused, newest first; `before` is
    the number of the last one of the page before."""

    def show() -> Response:
        with service.database.read() as session:
            return _answer(request, _changes(session, caller, before, limit))

    return await to_thread.run_sync(show, limiter=workers.showing(caller.project_id))


def _changes(session: Session, caller: Caller, before: int, limit: int) -> dict[str, Any]:
    last = session.scalar(select(func.max(Audit.number))) or 0
    wanted = (
        select(Audit, Key.name)
        .outerjoin(Key, Key.id == Audit.key_id)
        .where(Audit.project_id == caller.project_id, Audit.number < before)
        # A grader that is tried or checked changes nothing.
        .where(Audit.number > last - _AUDITED, Audit.action.not_like("%/alpha/graders/%"))
        .order_by(Audit.number.desc())
        .limit(limit + 1)
    )
    found = [
        {
            "number": row.number,
            "time": row.time,
            "key_id": row.key_id,
            "key": name,
            "is_own_key": row.key_id == caller.key_id,
            "action": row.action,
            "object": row.object,
            "status": row.status,
        }
        for row, name in session.execute(wanted)
    ]
    return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}


def _find(session: Session, caller: Caller, job_id: str) -> Job:
    wanted = select(Job).where(Job.id == job_id, Job.project_id == caller.project_id)
    job = session.scalar(wanted)
    if job is None:
        raise missing_job(job_id)
    return job


def _answer(request: Request, found: dict[str, Any]) -> Response:
    """`found` with the server's time, by which the page reckons; 304 if the client has it."""
    body = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    tag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    at = now()
    headers = {
        **{"ETag": tag, "X-Now": str(at)},
        **{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    body = json.dumps({**found, "now": at}, ensure_ascii=False, separators=(",", ":"))
    return Response(body, media_type="application/json", headers=headers)
