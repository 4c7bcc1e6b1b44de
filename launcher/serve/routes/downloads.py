"""Downloads of the page: links that need no key, asked for with one."""

# Annotations are not postponed here: FastAPI reads them.
import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from starlette.types import Receive, Scope, Send

from launcher.core import asgi
from launcher.serve.db.tables import Job, Key
from launcher.serve.files import downloads
from launcher.serve.http import links
from launcher.serve.http.access import DEMO, Asking, Served
from launcher.serve.http.failure import missing_job

router = APIRouter(include_in_schema=False)
#: Within which a download has to begin.
_LINK_S = 60
_PURPOSE = "download"


@router.get("/v1/fine_tuning/jobs/{job_id}/downloads")
def list_downloads(job_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """What can be taken away of a job: kind, filename, bytes, and a url that is good for a minute.

    A link carries no key, but ends with the key that it was asked for with.
    """
    wanted = select(Job).where(Job.id == job_id, Job.project_id == caller.project_id)
    with service.database.read() as session:
        job = session.scalar(wanted)
        if job is None:
            raise missing_job(job_id)
        found = downloads.of(session, service, job)
    secret, until = links.secret_of(service.home), int(time.time()) + _LINK_S

    def url(kind: str) -> str:
        words = (_PURPOSE, job_id, kind, caller.key_id)
        return f"downloads/{links.signed(words, until, secret)}"

    data = [
        {"kind": one.kind, "filename": one.filename, "bytes": one.size, "url": url(one.kind)}
        for one in found
    ]
    return {"object": "list", "data": data}


@router.get("/downloads/{signed}")
def download(signed: str, request: Request, service: Served) -> StreamingResponse:
    """One of them, to whoever has been given the link to it."""
    words = links.read(signed, links.secret_of(service.home), 4)
    if words is None or words[0] != _PURPOSE:
        raise links.not_good()
    _, job_id, kind, key_id = words
    with service.database.read() as session:
        job = session.scalars(select(Job).where(Job.id == job_id)).one()
        key = session.get(Key, key_id)
        if key_id == DEMO:
            is_good = asgi.names_loopback(request.headers.get("host", ""))
        else:
            is_good = key is not None and key.revoked_at is None
        found = {one.kind: one for one in downloads.of(session, service, job)}.get(kind)
    if not is_good or found is None:
        raise links.not_good()
    headers = {
        "Content-Length": str(found.size),
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(found.filename, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return _Pieces(found.content(service), headers)


class _Pieces(StreamingResponse):
    """Pieces of open files, which are closed however the answer ends."""

    media_type = "application/octet-stream"

    def __init__(self, pieces: Iterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(pieces, headers=headers)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        with contextlib.closing(self._pieces):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)
