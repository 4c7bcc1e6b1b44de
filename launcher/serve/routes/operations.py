"""/healthz, /readyz and /metrics, for whoever keeps the service running."""

# Annotations are not postponed here: FastAPI reads them.
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from launcher.core.errors import StorageError
from launcher.serve.http.access import Served
from launcher.serve.jobs import heartbeat
from launcher.serve.service import Service

router = APIRouter(include_in_schema=False)

#: Balancers look with HEAD.
_METHODS = ["GET", "HEAD"]
#: A controller silent for longer does no work.
_SILENT_S = 60.0


@router.api_route("/healthz", methods=_METHODS)
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.api_route("/readyz", methods=_METHODS)
def readyz(service: Served) -> JSONResponse:
    """Whether requests can be served: 200, or 503, with what is wrong."""
    found = {
        "database": _database(service),
        "store": _store(service),
        "controller": _controller(service),
    }
    ready = all(state == "ok" for state in found.values())
    status = "ok" if ready else "unavailable"
    return JSONResponse({"status": status, **found}, 200 if ready else 503)


@router.api_route("/metrics", methods=_METHODS)
def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _database(service: Service) -> str:
    try:
        with service.database.read() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return "cannot be asked"
    return "ok"


def _store(service: Service) -> str:
    try:
        service.store.check()
    except StorageError:
        return "cannot be written to"
    return "ok"


def _controller(service: Service) -> str:
    silent_s = heartbeat.age_s(service.home)
    if silent_s is None:
        return "has not begun"
    return "ok" if silent_s < _SILENT_S else f"silent for {silent_s:.0f} s"
