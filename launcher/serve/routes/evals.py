"""/v1/evals: evals, their runs, and the items of these; `launcher.serve.evals.worker` does the
work."""

# Annotations are not postponed here: FastAPI reads them.
import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session, undefer

from launcher.serve import quota
from launcher.serve.chat import models
from launcher.serve.db.database import comparable, new_id
from launcher.serve.db.tables import Eval, EvalItem, EvalRun, now
from launcher.serve.evals import criteria, lines, report, rows, wire_evals
from launcher.serve.evals.questions import Questions
from launcher.serve.evals.worker import Runner
from launcher.serve.files import project_files
from launcher.serve.http import links, paging, retries
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.http.failure import ApiError
from launcher.serve.http.wire import Bounded
from launcher.serve.routes.graders import Graders
from launcher.serve.routes.jobs import After, Limit
from launcher.serve.routes.page import REPORT
from launcher.serve.service import Service

#: Purposes of files whose lines are items.
_PURPOSES = ("evals", project_files.TRAINING)
Order = Literal["asc", "desc"]


@contextlib.asynccontextmanager
async def _with_runner(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    # The pool of models and the graders are those of routes that come before.
    service, state = app.state.service, app.state
    runner = Runner(service, state.pool, state.grading)
    working = asyncio.create_task(runner.run())
    try:
        yield {"eval_reports": report.Reports(service), "eval_runner": runner}
    finally:
        working.cancel()
        await asyncio.wait({working})


router = APIRouter(tags=["evals"], lifespan=_with_runner)


@router.post("/v1/evals", response_model=wire_evals.EvalView, status_code=201)
async def create(
    asked: wire_evals.NewEval,
    caller: Asking,
    service: Served,
    graders: Graders,
    key: retries.IdempotencyKey = None,
) -> dict[str, Any]:
    """A new eval: what its items look like, and by what answers are measured."""
    source = asked.data_source_config
    await criteria.require_sound(graders, caller.project_id, asked.testing_criteria, source)

    def make() -> dict[str, Any]:
        wanted = "eval", asked.model_dump_json()
        with service.database.begin() as session:
            known = retries.known(session, caller.project_id, key, *wanted)
            if known is not None:
                return wire_evals.eval_view(rows.find_eval(session, caller.project_id, known))
            name = new_id("eval_")
            made = Eval(
                id=name,
                project_id=caller.project_id,
                name=asked.name or name,
                source=source.model_dump(exclude_unset=True),
                criteria=asked.testing_criteria,
                labels=asked.metadata,
            )
            session.add(made)
            session.flush()
            retries.note(session, caller.project_id, key, made.id, *wanted)
            return wire_evals.eval_view(made)

    return await run_in_threadpool(make)


@router.get("/v1/evals", response_model=Bounded[wire_evals.EvalView])
def list_evals(
    caller: Asking,
    service: Served,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
    order_by: Literal["created_at", "updated_at"] = "created_at",
) -> dict[str, Any]:
    """Evals of the project, by when they were made or changed."""
    limit, ascends = min(limit, paging.MOST), order == "asc"
    with service.database.read() as session:
        wanted = select(Eval).where(Eval.project_id == caller.project_id)
        # What is made later never has a lower number, and perhaps the same second.
        columns = (Eval.updated_at if order_by == "updated_at" else Eval.created_at, Eval.number)
        if after is not None:
            last = session.scalar(wanted.where(Eval.id == comparable(after)))
            if last is None:
                raise paging.unknown_cursor(after)
            place = tuple_(getattr(last, order_by), last.number)
            wanted = wanted.where(tuple_(*columns) > place if ascends else tuple_(*columns) < place)
        ordered = wanted.order_by(*(one if ascends else one.desc() for one in columns))
        found = list(session.scalars(ordered.limit(limit + 1)))
    return paging.as_list(map(wire_evals.eval_view, found[:limit]), len(found) > limit)


@router.get("/v1/evals/{eval_id}", response_model=wire_evals.EvalView)
def retrieve(eval_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """One eval."""
    with service.database.read() as session:
        return wire_evals.eval_view(rows.find_eval(session, caller.project_id, eval_id))


@router.post("/v1/evals/{eval_id}", response_model=wire_evals.EvalView)
def update(
    eval_id: str, asked: wire_evals.ChangedEval, caller: Asking, service: Served
) -> dict[str, Any]:
    """Change its name or metadata: what is given."""
    with service.database.begin() as session:
        found = rows.find_eval(session, caller.project_id, eval_id, for_update=True)
        if asked.name is not None:
            found.name = asked.name
        if "metadata" in asked.model_fields_set:
            found.labels = asked.metadata
        found.updated_at = now()
        return wire_evals.eval_view(found)


@router.delete("/v1/evals/{eval_id}")
def delete(eval_id: str, caller: Asking, service: Served) -> wire_evals.DeletedEval:
    """Delete it with its runs, also those under way."""
    with service.database.begin() as session:
        found = rows.find_eval(session, caller.project_id, eval_id, for_update=True)
        gone = rows.remove_eval(session, found)
    for run_id in gone:
        report.forget(service, run_id)
    return wire_evals.DeletedEval(eval_id=eval_id)


# ---- runs


@router.post("/v1/evals/{eval_id}/runs", response_model=wire_evals.EvalRunView, status_code=201)
async def create_run(
    eval_id: str,
    asked: wire_evals.NewRun,
    request: Request,
    caller: Asking,
    service: Served,
    graders: Graders,
    key: retries.IdempotencyKey = None,
) -> dict[str, Any]:
    """A new run; it begins by itself."""
    with_eval = await service.database.ask(
        lambda session: rows.find_eval(session, caller.project_id, eval_id)
    )
    source = asked.data_source.model_dump(exclude_unset=True, by_alias=True)
    schema, site = with_eval.source["item_schema"], service.site
    if source["type"] != "jsonl":
        questions = await run_in_threadpool(
            Questions, source, site.chat.max_tokens, site.limits.body_bytes
        )
        reads = [place.key for place in questions.places]
        criteria.require_readable(reads, schema, "data_source.input_messages")
    if source["source"]["type"] == "file_content":
        needs_samples = source["type"] == "jsonl" and with_eval.source.get("include_sample_schema")
        faults = lines.ItemFaults()
        read = lines.of_request(source["source"]["content"], faults)
        if needs_samples:
            lines.require_samples(read, faults)
        await lines.check(graders, caller.project_id, schema, read, faults)
        if faults.text:
            raise ApiError(400, faults.text, param="data_source.source.content")
    made = await run_in_threadpool(_create_run, eval_id, asked, source, caller, service, key)
    request.state.eval_runner.wake()
    return await run_in_threadpool(_view, made, service, request)


def _create_run(
    eval_id: str,
    asked: wire_evals.NewRun,
    source: dict[str, Any],
    caller: Caller,
    service: Service,
    key: str | None,
) -> EvalRun:
    wanted, size = ("eval run", eval_id, asked.model_dump_json()), rows.size_of(source)
    with service.database.begin() as session:
        known = retries.known(session, caller.project_id, key, *wanted)
        if known is not None:
            return rows.find_run(session, caller.project_id, eval_id, known, with_source=True)
        # Against its deletion meanwhile.
        rows.find_eval(session, caller.project_id, eval_id, for_update=True)
        quota.require_eval_run(session, service.site, caller.project_id)
        quota.require_room(session, service.site, caller.project_id, size)
        model = source.get("model", "")
        if model:
            models.source(session, service.site, caller.project_id, model)
        if source["source"]["type"] == "file_id":
            _require_file(session, caller, source["source"]["id"])
        name = new_id("evalrun_")
        made = EvalRun(
            id=name,
            eval_id=eval_id,
            project_id=caller.project_id,
            name=asked.name or name,
            model=model,
            source_bytes=size,
            source=source,
            labels=asked.metadata,
        )
        session.add(made)
        session.flush()
        retries.note(session, caller.project_id, key, made.id, *wanted)
    return made


@router.get("/v1/evals/{eval_id}/runs", response_model=Bounded[wire_evals.EvalRunView])
def list_runs(
    eval_id: str,
    request: Request,
    caller: Asking,
    service: Served,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: wire_evals.RunState | None = None,
) -> dict[str, Any]:
    """Runs of an eval, by when they were made."""
    with service.database.read() as session:
        rows.find_eval(session, caller.project_id, eval_id)
        own, number = [EvalRun.eval_id == comparable(eval_id)], None
        if after is not None:
            last = session.scalar(select(EvalRun).where(*own, EvalRun.id == comparable(after)))
            if last is None:
                raise paging.unknown_cursor(after)
            number = last.number
        if status is not None:
            own.append(EvalRun.state == status)
        found, more = paging.sized_page(
            *(session, EvalRun, own, EvalRun.number, EvalRun.source_bytes),
            after=number,
            limit=limit,
            ascends=order == "asc",
            options=[undefer(EvalRun.source)],
        )
    return paging.as_list([_view(run, service, request) for run in found], more)


@router.get("/v1/evals/{eval_id}/runs/{run_id}", response_model=wire_evals.EvalRunView)
def retrieve_run(
    eval_id: str, run_id: str, request: Request, caller: Asking, service: Served
) -> dict[str, Any]:
    """One run."""
    with service.database.read() as session:
        found = rows.find_run(session, caller.project_id, eval_id, run_id, with_source=True)
    return _view(found, service, request)


# Clients before 3.54 of Python cancel by the first of these paths.
@router.post("/v1/evals/{eval_id}/runs/{run_id}", response_model=wire_evals.EvalRunView)
@router.post("/v1/evals/{eval_id}/runs/{run_id}/cancel", response_model=wire_evals.EvalRunView)
def cancel_run(
    eval_id: str, run_id: str, request: Request, caller: Asking, service: Served
) -> dict[str, Any]:
    """End the run; what is graded of it stays."""
    with service.database.begin() as session:
        found = rows.find_run(session, caller.project_id, eval_id, run_id, for_update=True)
        if found.state in rows.OPEN:
            rows.end(session, found, rows.CANCELED)
        elif found.state != rows.CANCELED:
            message = f"Cannot cancel a run {run_id} that already has status '{found.state}'."
            raise ApiError(400, message)
    return retrieve_run(eval_id, run_id, request, caller, service)


@router.delete("/v1/evals/{eval_id}/runs/{run_id}")
def delete_run(eval_id: str, run_id: str, caller: Asking, service: Served) -> wire_evals.DeletedRun:
    """Delete the run with its items, also one under way."""
    with service.database.begin() as session:
        found = rows.find_run(session, caller.project_id, eval_id, run_id, for_update=True)
        rows.remove_run(session, found)
    report.forget(service, run_id)
    return wire_evals.DeletedRun(run_id=run_id)


# ---- items


@router.get(
    "/v1/evals/{eval_id}/runs/{run_id}/output_items",
    response_model=Bounded[wire_evals.ItemView],
)
def list_items(
    eval_id: str,
    run_id: str,
    caller: Asking,
    service: Served,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Literal["pass", "fail"] | None = None,
) -> dict[str, Any]:
    """Items of a run that have been graded, in the order of the data."""
    with service.database.read() as session:
        run = rows.find_run(session, caller.project_id, eval_id, run_id)
        own, place = [EvalItem.run_id == run.id, EvalItem.state != rows.PENDING], None
        if after is not None:
            last = session.scalar(select(EvalItem).where(*own, EvalItem.id == comparable(after)))
            if last is None:
                raise paging.unknown_cursor(after)
            place = last.place
        if status is not None:
            own.append(EvalItem.state == status)
        found, more = paging.sized_page(
            *(session, EvalItem, own, EvalItem.place, EvalItem.bytes),
            after=place,
            limit=limit,
            ascends=order == "asc",
        )
    return paging.as_list((wire_evals.item_view(one, run.eval_id) for one in found), more)


@router.get(
    "/v1/evals/{eval_id}/runs/{run_id}/output_items/{item_id}",
    response_model=wire_evals.ItemView,
)
def retrieve_item(
    eval_id: str, run_id: str, item_id: str, caller: Asking, service: Served
) -> dict[str, Any]:
    """One of them."""
    with service.database.read() as session:
        run = rows.find_run(session, caller.project_id, eval_id, run_id)
        wanted = select(EvalItem).where(
            EvalItem.run_id == run.id,
            EvalItem.id == comparable(item_id),
            EvalItem.state != rows.PENDING,
        )
        found = session.scalar(wanted)
        if found is None:
            message = f"No such output item: {item_id}"
            raise ApiError(404, message, param="output_item_id", code="not_found")
        return wire_evals.item_view(found, run.eval_id)


@router.get("/reports/evals/{signed}", include_in_schema=False)
async def show_report(signed: str, request: Request, service: Served) -> Response:
    """The page of a run, to whoever has been given the link to it."""
    secret = await run_in_threadpool(links.secret_of, service.home)
    run_id = report.read(signed, secret)
    if run_id is None:
        raise links.not_good()
    reports: report.Reports = request.state.eval_reports
    page = await reports.page(run_id)
    if page is None:
        raise ApiError(404, "There is no such report.")
    return FileResponse(page, media_type="text/html", headers=REPORT)


def _view(run: EvalRun, service: Service, request: Request) -> dict[str, Any]:
    return wire_evals.run_view(run, f"{request.base_url}{report.path(service, run)}")


def _require_file(session: Session, caller: Caller, file_id: str) -> None:
    where = "data_source.source.id"
    try:
        file = project_files.find(session, caller.project_id, comparable(file_id))
    except ApiError as error:
        raise ApiError(400, f"No such file: {file_id}", param=where) from error
    if file.purpose not in _PURPOSES:
        found = f"File {file_id} has purpose '{file.purpose}', but needs 'evals' or 'fine-tune'."
        raise ApiError(400, found, param=where)
