"""The web service: routes, and every error in the envelope that clients know."""

from __future__ import annotations

import secrets
import sys

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from launcher import registry
from launcher.api.failure import ApiError
from launcher.api.service import Service
from launcher.errors import StorageError

#: Modules of launcher.api.routes, in the order in which paths are tried.
ROUTES: tuple[str, ...] = ("models", "chat", "page")


def create_app(service: Service) -> FastAPI:
    """The service as an ASGI application."""
    app = FastAPI(title="launcher", docs_url=None, redoc_url=None)
    app.state.service = service
    for name in ROUTES:
        app.include_router(registry.load(f"launcher.api.routes.{name}:router"))
    app.exception_handler(ApiError)(_answer)
    app.exception_handler(HTTPException)(_no_route)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(StorageError)(_unavailable)
    app.middleware("http")(_with_request_id)
    return app


async def _with_request_id(request: Request, go_on) -> Response:  # type: ignore[no-untyped-def]
    response: Response = await go_on(request)
    response.headers["x-request-id"] = f"req_{secrets.token_hex(16)}"
    return response


def _answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = ApiError(
        error.status_code,
        f"Invalid URL ({request.method} {request.url.path})"
        if error.status_code == 404
        else str(error.detail),
        headers=dict(error.headers or {}),
    )
    return _answer(request, known)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    name = ".".join(where) or None
    found = f"{first['msg']} - '{name}'" if name else str(first["msg"])
    return _answer(request, ApiError(400, found, param=name))


def _unavailable(request: Request, error: Exception) -> Response:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return _answer(request, ApiError(503, "The service cannot keep this at present."))
