"""/v1/batches: rows are read and written here; `launcher.serve.batches` does the work."""

# Annotations are not postponed here: FastAPI reads them.
import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI
from sqlalchemy import select
from sqlalchemy.orm import Session

from launcher.serve import quota
from launcher.serve.batches import claims, wire_batches
from launcher.serve.batches.asking import asker
from launcher.serve.batches.wire_batches import BatchView, batch_view
from launcher.serve.batches.worker import BatchWorker
from launcher.serve.db.database import comparable, new_id
from launcher.serve.db.tables import Batch, BatchState, File, now
from launcher.serve.files import project_files
from launcher.serve.http import paging, retries
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.http.failure import ApiError
from launcher.serve.http.wire import Bounded
from launcher.serve.routes.jobs import After, Limit
from launcher.serve.site import Site

_PURPOSE = "batch"


@contextlib.asynccontextmanager
async def _with_worker(app: FastAPI) -> AsyncIterator[None]:
    worker = BatchWorker(app.state.service, asker(app, app.state.pool))
    working = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await working


#: The pool of models is that of `launcher.serve.routes.chat`.
router = APIRouter(prefix="/v1/batches", tags=["batches"], lifespan=_with_worker)


@router.post("", response_model=BatchView)
def create(
    asked: wire_batches.NewBatch,
    caller: Asking,
    service: Served,
    key: retries.IdempotencyKey = None,
) -> dict[str, Any]:
    """A new batch; it begins by itself."""
    if asked.endpoint not in wire_batches.ENDPOINTS:
        names = " and ".join(wire_batches.ENDPOINTS)
        found = f"Batches for '{asked.endpoint}' are not answered here; those for {names} are."
        raise ApiError(400, found, param="endpoint")
    wanted = "batch", asked.model_dump_json()
    with service.database.begin() as session:
        made = retries.known(session, caller.project_id, key, *wanted)
        if made is not None:
            return batch_view(_find(session, caller, made))
        file = _require_file(session, service.site, caller, asked.input_file_id)
        quota.require_batch(session, service.site, caller.project_id)
        # So much is kept of the requests until the batch has ended, and the answers take as much
        # at least.
        quota.require_room(session, service.site, caller.project_id, file.bytes)
        born, expiry = now(), asked.output_expires_after
        batch = Batch(
            id=new_id("batch_"),
            project_id=caller.project_id,
            endpoint=asked.endpoint,
            input_file=file.id,
            input_bytes=file.bytes,
            labels=asked.metadata,
            output_expires_after=expiry.seconds if expiry else None,
            created_at=born,
            expires_at=born + wire_batches.WINDOW_S,
        )
        session.add(batch)
        session.flush()
        retries.note(session, caller.project_id, key, batch.id, *wanted)
    return batch_view(batch)


@router.get("", response_model=Bounded[BatchView])
def list_batches(
    caller: Asking, service: Served, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """Batches of the project, newest first."""
    with service.database.read() as session:
        number = None
        if after is not None:
            number = _find(session, caller, after, paging.unknown_cursor(after)).number
        own = [Batch.project_id == caller.project_id]
        found, more = paging.page(session, Batch, own, Batch.number, after=number, limit=limit)
    return paging.as_list(map(batch_view, found), more)


@router.get("/{batch_id}", response_model=BatchView)
async def retrieve(batch_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """One batch. Clients poll for it, so no thread is changed for it where none is needed."""
    return batch_view(await service.database.ask(lambda session: _find(session, caller, batch_id)))


@router.post("/{batch_id}/cancel", response_model=BatchView)
def cancel(batch_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """Answer no more of the batch; files of what is done come soon after."""
    with service.database.begin() as session:
        batch = _find(session, caller, batch_id, for_update=True)
        if batch.state not in (BatchState.cancelling, BatchState.cancelled):
            if batch.state not in (BatchState.validating, BatchState.in_progress):
                found = f"Cannot cancel a batch with status '{batch.state.value}'."
                raise ApiError(400, found)
            claims.come_to(batch, BatchState.cancelling)
    return batch_view(batch)


def _find(
    session: Session,
    caller: Caller,
    batch_id: str,
    missing: ApiError | None = None,
    *,
    for_update: bool = False,
) -> Batch:
    named = Batch.id == comparable(batch_id), Batch.project_id == caller.project_id
    wanted = select(Batch).where(*named)
    batch = session.scalar(wanted.with_for_update() if for_update else wanted)
    if batch is None:
        raise missing or ApiError(404, f"No batch found with id '{batch_id}'.", param="batch_id")
    return batch


def _require_file(session: Session, site: Site, caller: Caller, file_id: str) -> File:
    param = "input_file_id"
    try:
        file = project_files.find(session, caller.project_id, comparable(file_id))
    except ApiError as error:
        raise ApiError(400, f"invalid {param}: {file_id}", param=param) from error
    if file.purpose != _PURPOSE:
        found = f"File {file_id} has purpose '{file.purpose}', but needs '{_PURPOSE}'."
        raise ApiError(400, found, param=param)
    if file.bytes > site.batches.file_bytes:
        most = f"at most {site.batches.file_bytes:,} bytes are accepted"
        raise ApiError(400, f"File {file_id} is too large for a batch: {most}.", param=param)
    return file
