"""/v1/uploads: files that come in parts."""

# Annotations are not postponed here: FastAPI reads them.
from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from launcher.serve.files import uploads
from launcher.serve.files.intake import Working, received
from launcher.serve.http import retries, wire
from launcher.serve.http.access import Asking, Served

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("")
def create(
    wanted: wire.NewUpload, service: Served, caller: Asking, key: retries.IdempotencyKey = None
) -> wire.UploadView:
    """Begin a file that comes in parts, within the hour."""
    return uploads.create(service, caller.project_id, wanted, key)


@router.post("/{upload_id}/parts", openapi_extra=_FORM)
async def add_part(
    upload_id: str,
    request: Request,
    service: Served,
    caller: Asking,
    workers: Working,
    key: retries.IdempotencyKey = None,
) -> wire.PartView:
    """Add a part; parts may come at the same time."""
    await run_in_threadpool(_require_pending, service, caller.project_id, upload_id)
    limit = service.site.limits.part_bytes
    async with received(request, service.store, caller.project_id, "data", limit) as (
        form,
        content,
    ):
        form.require_known()
        return await to_thread.run_sync(
            uploads.add_part,
            service,
            caller.project_id,
            upload_id,
            content,
            key,
            limiter=workers.reading(caller.project_id),
        )


@router.post("/{upload_id}/complete")
async def complete(
    upload_id: str, asked: wire.Completion, service: Served, caller: Asking, workers: Working
) -> wire.UploadView:
    """Make a file of the parts, in this order."""
    return await to_thread.run_sync(
        uploads.complete,
        service,
        workers.lookers,
        caller.project_id,
        upload_id,
        asked,
        limiter=workers.reading(caller.project_id),
    )


@router.post("/{upload_id}/cancel")
def cancel(upload_id: str, service: Served, caller: Asking) -> wire.UploadView:
    """Give the upload up."""
    return uploads.cancel(service, caller.project_id, upload_id)


def _require_pending(service: Served, project_id: str, upload_id: str) -> None:
    with service.database.read() as session:
        uploads.pending(session, project_id, upload_id)
