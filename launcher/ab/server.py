"""The web service of a study: the page, what a judge sees, and the votes."""

# Annotations are not postponed here: FastAPI reads them, those of local names too.
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launcher.ab.study import Judge, Study
from launcher.core.errors import StorageError

FILES = {"": "page.html", "page.css": "page.css", "page.js": "page.js", "icon.svg": "icon.svg"}
#: Longest comment in characters, and longest body of a request in bytes.
MAX_COMMENT = 4000
MAX_BODY = 64 << 10
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


ItemId = Annotated[int, InPath(ge=1, lt=1 << 53)]


class Vote(BaseModel):
    """What the page sends."""

    choice: Literal["left", "right", "tie", "bad"]
    comment: str = Field("", max_length=MAX_COMMENT)
    seconds: float | None = Field(None, ge=0, lt=1e9)


def create_app(study: Study) -> FastAPI:
    """The service. Without a judge's token there is nothing but the page, which names no model."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=600)

    def judge(authorization: Annotated[str, Header()] = "") -> Judge:
        found = study.judge_of(authorization.removeprefix("Bearer "))
        if found is None:
            raise HTTPException(404)  # as for a path that does not exist
        return found

    Known = Annotated[Judge, Depends(judge)]

    @app.get("/api/study")
    def show_study(judge: Known) -> dict[str, Any]:
        return {
            "question": study.question(),
            "judge": judge.name,
            "items": study.order(judge),
            "votes": study.votes_of(judge),
        }

    @app.get("/api/items/{item}")
    def show_item(item: ItemId, judge: Known) -> dict[str, str]:
        shown = study.shown(judge, item)
        if shown is None:
            raise HTTPException(404)
        return shown

    @app.put("/api/votes/{item}")
    def vote(item: ItemId, vote: Vote, judge: Known) -> dict[str, bool]:
        if not study.vote(judge, item, vote.choice, vote.comment, vote.seconds):
            raise HTTPException(404)
        return {"saved": True}

    @app.delete("/api/votes/{item}")
    def undo(item: ItemId, judge: Known) -> dict[str, bool]:
        study.undo(judge, item)
        return {"saved": True}

    for path, name in FILES.items():
        _serve_file(app, f"/{path}", Path(__file__).with_name(name))
    app.exception_handler(StorageError)(_unavailable)
    app.exception_handler(RequestValidationError)(_no_vote)
    app.add_middleware(SecurityMiddleware)
    return app


def _serve_file(app: FastAPI, path: str, file: Path) -> None:
    @app.get(path)
    def serve() -> FileResponse:
        return FileResponse(file)


def _unavailable(_: Request, error: Exception) -> JSONResponse:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return JSONResponse({"detail": "cannot be saved at present"}, 503)


def _no_vote(_: Request, error: Exception) -> JSONResponse:
    # Without what was sent, which FastAPI would repeat: it need not even be text.
    return JSONResponse({"detail": "this is no vote"}, 422)


class SecurityMiddleware:
    """Puts our headers on every response, and refuses bodies that no vote has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app
        if scope["type"] == "http" and _is_too_long(Headers(scope=scope)):
            app = JSONResponse({"detail": "too long"}, 413)
        await app(scope, receive, send_with_headers)


def _is_too_long(headers: Headers) -> bool:
    length = headers.get("content-length", "0")
    return not length.isdecimal() or int(length) > MAX_BODY or "transfer-encoding" in headers
