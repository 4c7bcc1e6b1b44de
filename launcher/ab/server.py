"""The web service of a study: the page, what a judge sees, and the votes."""

# Annotations are not postponed here: FastAPI reads them, those of local names too.
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field

from launcher.ab.study import Judge, Study
from launcher.errors import StorageError

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
    app.middleware("http")(_guard)
    return app


def _serve_file(app: FastAPI, path: str, file: Path) -> None:
    @app.get(path)
    def serve() -> FileResponse:
        return FileResponse(file)


def _unavailable(_: Request, error: Exception) -> JSONResponse:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return JSONResponse({"detail": "cannot be saved at present"}, 503)


async def _guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    length = request.headers.get("content-length", "0")
    too_long = not length.isdecimal() or int(length) > MAX_BODY
    if too_long or "transfer-encoding" in request.headers:
        response: Response = JSONResponse({"detail": "too long"}, 413)
    else:
        response = await go_on(request)
    response.headers.update(HEADERS)
    return response
