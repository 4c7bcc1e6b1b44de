"""The page at /, and the reports that it shows."""

# Annotations are not postponed here: FastAPI reads them.
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from sqlalchemy import select

from launcher.core.rundir import RunDir
from launcher.serve.db.tables import Job
from launcher.serve.http import links
from launcher.serve.http.access import Asking, Served
from launcher.serve.http.failure import ApiError, missing_job
from launcher.serve.jobs import reports

_FOLDER = Path(__file__).parents[1] / "page"
_COMMON = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PAGE = {
    **_COMMON,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}
#: A report holds text of the data. It names the one script that may run by its hash, and is in a
#: sandbox of no origin: whatever it did, it could neither see the key nor ask the service.
REPORT = {
    **_COMMON,
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        " script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Cache-Control": "no-store",
}


@contextlib.asynccontextmanager
async def _with_reports(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"data_reports": reports.DataReports(app.state.service)}


router = APIRouter(include_in_schema=False, lifespan=_with_reports)


def _serve(path: str, name: str) -> None:
    @router.get(path)
    def serve() -> FileResponse:
        return FileResponse(_FOLDER / name, headers=_PAGE)


_serve("/", "page.html")
for _file in sorted(_FOLDER.iterdir()):
    _serve(f"/{_file.name}", _file.name)


@router.get("/v1/fine_tuning/jobs/{job_id}/reports")
def list_reports(job_id: str, caller: Asking, service: Served) -> dict[str, Any]:
    """Links to a job's reports, good for minutes, and its comparison with the base model."""
    wanted = select(Job.id).where(Job.id == job_id, Job.project_id == caller.project_id)
    with service.database.read() as session:
        if session.scalar(wanted) is None:
            raise missing_job(job_id)
    return {
        "object": "list",
        "data": reports.offered(service, job_id),
        "comparison": reports.comparison(service, job_id),
    }


@router.get("/reports/{signed}")
async def show_report(signed: str, request: Request, service: Served) -> Response:
    """A report, to whoever has been given the link to it."""
    secret = await run_in_threadpool(links.secret_of, service.home)
    found = reports.read(signed, secret)
    if found is None:
        raise links.not_good()
    job, kind = found
    page: Path | None = RunDir(service.runs / job).report
    if kind == "data":
        made: reports.DataReports = request.state.data_reports
        page = await made.page(job)
    if page is None or not page.is_file():
        raise ApiError(404, "There is no such report.")
    return FileResponse(page, media_type="text/html", headers=REPORT)
