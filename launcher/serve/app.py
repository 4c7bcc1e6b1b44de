"""The web service: routes, and every error in the envelope that clients know."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from launcher import __version__
from launcher.core import registry
from launcher.core.errors import LauncherError
from launcher.serve.db.database import AWAY
from launcher.serve.files.intake import Workers
from launcher.serve.http.access import Keys
from launcher.serve.http.audit import Auditor
from launcher.serve.http.edge import Edge
from launcher.serve.http.failure import ApiError, answer, not_now, unknown_member
from launcher.serve.http.gate import Gate
from launcher.serve.http.metrics import Metrics
from launcher.serve.http.openapi import document
from launcher.serve.http.unread import nothing_unread
from launcher.serve.http.wire import TAG, UNKNOWN
from launcher.serve.service import Service

#: Modules of launcher.serve.routes, in the order in which paths are tried.
ROUTES: tuple[str, ...] = (
    *("files", "uploads", "jobs", "graders", "models", "chat", "responses", "batches", "evals"),
    *("checkpoint_permissions", "webhooks", "operations", "overview", "downloads", "page"),
)

#: Of what a client has sent, no more is sent back.
_SHOWN, _LONGEST = 100, 1000
_TYPE = re.compile(r"str|int|float|bool|list\[.*\]")
_LOG = logging.getLogger(__name__)


def create_app(
    service: Service,
    demo_key: str | None = None,
    lifespan: Any = None,
) -> FastAPI:
    """The service as an ASGI application; `demo_key` is good as long as it lives."""
    workers = Workers()

    @contextlib.asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app) if lifespan else contextlib.nullcontext():
            yield
        workers.lookers.close()

    app = FastAPI(
        title="launcher",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=living,
    )
    metrics = Metrics(service.database)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    app.state.service = service
    app.state.metrics = metrics
    app.state.workers = workers
    for name in ROUTES:
        router = registry.load(f"launcher.serve.routes.{name}:router")
        app.include_router(router, dependencies=[Depends(nothing_unread)])
    app.exception_handler(ApiError)(_answer)
    app.exception_handler(HTTPException)(_no_route)
    app.exception_handler(RequestValidationError)(_invalid)
    for kind in (LauncherError, *AWAY):
        app.exception_handler(kind)(_unavailable)
    app.exception_handler(DataError)(_unkeepable)
    # Innermost first.
    keys = Keys(service.database, demo_key)
    app.add_middleware(Gate, keys=keys, site=service.site)
    app.add_middleware(Auditor, database=service.database)
    app.add_middleware(Edge, metrics=metrics)
    return app


def _answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return answer(error)


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    unknown = error.status_code in (404, 405)
    found = f"Invalid URL ({request.method} {request.url.path})" if unknown else str(error.detail)
    headers = dict(error.headers or {})
    methods = _methods(request) if error.status_code == 405 else []
    if methods:  # of all routes with this path: Starlette names those of one
        headers["allow"] = ", ".join(methods)
    return answer(ApiError(error.status_code, found, headers=headers))


def _methods(request: Request) -> list[str]:
    found = set()
    for path, operations in request.app.openapi()["paths"].items():
        if compile_path(path)[0].match(request.url.path):
            found |= {method.upper() for method in operations}
    return sorted(found)


def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    parts = (str(part)[:_SHOWN] for part in first["loc"])
    where = [
        part for part in parts if part not in ("body", "query", "path") and not part.startswith(TAG)
    ]
    # Where several types would do, pydantic adds which one it means.
    where = list(itertools.takewhile(lambda part: not _TYPE.fullmatch(part), where))
    said = str(first["msg"])[:_LONGEST]
    if first["type"] == UNKNOWN:
        return answer(unknown_member(".".join([*where, first["ctx"]["name"][:_SHOWN]]), said))
    name = ".".join(where) or None
    found = f"{said} - '{name}'" if name else said
    return answer(ApiError(400, found, param=name))


def _unavailable(request: Request, error: Exception) -> Response:
    _LOG.error("%s", error, extra={"request_id": request.state.request_id})
    return answer(not_now())


def _unkeepable(_: Request, __: Exception) -> Response:
    return answer(ApiError(400, "The request holds a value that cannot be kept."))
