"""/v1/files."""

# Annotations are not postponed here: FastAPI reads them.
import contextlib
from typing import IO, Annotated, Literal
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from launcher.serve import quota
from launcher.serve.files import project_files
from launcher.serve.files.inspection import Lookers
from launcher.serve.files.intake import Working, received
from launcher.serve.http import retries, wire
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.http.failure import ApiError
from launcher.serve.http.multipart import Form
from launcher.serve.service import Service
from launcher.serve.store import Incoming

router = APIRouter(prefix="/v1/files", tags=["files"])

_PIECE = 256 << 10
_EXPIRES_AFTER = {name: f"expires_after[{name}]" for name in wire.ExpiresAfter.model_fields}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(wire.PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": wire.SHORTEST_S,
                            "maximum": wire.LONGEST_S,
                        },
                    },
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_FORM)
async def create(
    request: Request,
    service: Served,
    caller: Asking,
    workers: Working,
    key: retries.IdempotencyKey = None,
) -> wire.FileView:
    """Upload a file: it is streamed to the store, and looked at if it is for fine-tuning."""
    project = caller.project_id
    async with received(
        request, service.store, project, "file", service.site.limits.file_bytes
    ) as found:
        return await to_thread.run_sync(
            _insert, service, workers.lookers, caller, key, *found, limiter=workers.reading(project)
        )


@router.get("")
def index(
    service: Served,
    caller: Asking,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> wire.Bounded[wire.FileView]:
    """The project's files."""
    with service.database.read() as session:
        found, more = project_files.page(
            session,
            caller.project_id,
            after=after or None,
            limit=limit,
            newest_first=order == "desc",
            purpose=purpose or None,
        )
        data = [project_files.shown(file) for file in found]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return wire.Bounded[wire.FileView](data=data, has_more=more, first_id=first, last_id=last)


@router.get("/{file_id}")
async def retrieve(file_id: str, service: Served, caller: Asking) -> wire.FileView:
    """One file. Clients poll for it, so no thread is changed for it where none is needed."""
    found = await service.database.ask(lambda s: project_files.find(s, caller.project_id, file_id))
    return project_files.shown(found)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string"}}}},
    },
)
def content(file_id: str, service: Served, caller: Asking) -> StreamingResponse:
    """The bytes of a file."""
    with service.database.read() as session:
        file = project_files.find(session, caller.project_id, file_id)
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(file.filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    return _Content(service.store.open(file.sha256), headers)


@router.delete("/{file_id}")
def delete(file_id: str, service: Served, caller: Asking) -> wire.Deleted:
    """Delete a file, and its content unless another file has the same."""
    project_files.remove(service.database, service.store, caller.project_id, file_id)
    return wire.Deleted(id=file_id, object="file")


def _insert(
    service: Service,
    lookers: Lookers,
    caller: Caller,
    key: str | None,
    form: Form,
    content: Incoming,
) -> wire.FileView:
    form.require_known("purpose", *_EXPIRES_AFTER.values())
    purpose = project_files.require_purpose(form.fields.get("purpose"))
    expires_after_s = _expires_after_s(form)
    if purpose == project_files.TRAINING:
        project_files.require_lines(service, lookers, content)
    assert form.filename is not None
    service.store.prepare(content)
    project_id = caller.project_id
    asked = "file", content.sha256, form.filename, purpose, expires_after_s
    with service.database.begin() as session:
        made = retries.known(session, project_id, key, *asked)
        if made is not None:
            with contextlib.suppress(ApiError):  # it was deleted since: it is made again
                return project_files.shown(project_files.find(session, project_id, made))
        quota.require_room(session, service.site, project_id, content.bytes)
        file = project_files.insert(
            session,
            service.store,
            content,
            project_id,
            form.filename,
            purpose,
            expires_after_s,
        )
        retries.note(session, project_id, key, file.id, *asked)
        return project_files.shown(file)


def _expires_after_s(form: Form) -> int | None:
    names = _EXPIRES_AFTER
    stated = {key: form.fields[name] for key, name in names.items() if name in form.fields}
    if not stated:
        return None
    try:
        return wire.ExpiresAfter.model_validate(stated).seconds
    except ValidationError as error:
        first = error.errors()[0]
        name = names[str(first["loc"][0])]
        raise ApiError(400, f"{first['msg']} - '{name}'", param=name) from error


class _Content(StreamingResponse):
    """The bytes of an open file, which is closed however the answer ends."""

    media_type = "application/octet-stream"

    def __init__(self, opened: IO[bytes], headers: dict[str, str]) -> None:
        super().__init__(iter(lambda: opened.read(_PIECE), b""), headers=headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        with self._opened:  # a generator's own would wait for the garbage collector
            await super().__call__(scope, receive, send)
