"""A request to a model, from the route that got it to its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from launcher.serve.chat import models
from launcher.serve.chat.model_process import Line
from launcher.serve.chat.pool import Failed, ModelPool, ModelSource
from launcher.serve.chat.responses import unavailable
from launcher.serve.http.access import Caller
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service

_LOOK_EVERY_S = 0.5

_T = TypeVar("_T")


class Telling(Protocol):
    """Tells a client what a model says, in one of the forms that clients know."""

    async def whole(self, lines: AsyncGenerator[Line, None]) -> dict[str, Any]:
        """The body of an answer that is not streamed; `ApiError` if the model refuses."""

    def events(self, lines: AsyncGenerator[Line, None]) -> AsyncGenerator[str, None]:
        """A streamed answer, event by event; a model that dies in its midst says so in one."""

    def refuse(self, line: Line) -> None:
        """`ApiError` if the line says that there is no answer."""


async def answered(
    request: Request,
    caller: Caller,
    service: Service,
    model: str,
    wanted: Line,
    answer: Telling,
    *,
    stream: bool,
) -> Response:
    """What `model` answers to what is `wanted`, whole or as a stream of server-sent events.

    Raises `ApiError` for a model that is none of the caller's, has no room, or refuses.
    """
    named = request.scope["state"].get("deployment", model)
    if named != model:
        found = f"The address names the model '{named}', the body '{model}': name one of them."
        raise ApiError(400, found, param="model")
    source = await run_in_threadpool(_find, service, caller.project_id, model)
    pool: ModelPool = request.state.pool
    most = service.site.quota_of(caller.project).questions
    size = request.scope["state"].get("body_bytes", 0)
    # A batch waits for turns of its own: it does not go before what people of its project ask.
    turn = request.scope["state"].get("turn", caller.project_id)
    lines = pool.ask(source, wanted, turn, most, size)
    try:
        if not stream:
            return JSONResponse(await _unless_gone(request, answer.whole(lines)))
        # An error has a status of its own as long as nothing has been sent.
        first = await _unless_gone(request, anext(lines))
        answer.refuse(first)
    except Failed as error:
        raise unavailable() from error
    finally:
        if not stream:
            await lines.aclose()
    return StreamingResponse(
        answer.events(_again(first, lines)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def told(
    pool: ModelPool,
    service: Service,
    project_id: str,
    model: str,
    wanted: Line,
    answer: Telling,
    turn: str,
) -> dict[str, Any]:
    """The same as a body for a question of the service's own, for a project, whose `turn` it is.

    Raises `ApiError` for a model that is none of the project's, or refuses, and `Failed` for one
    that cannot be opened, or dies.
    """
    source = await run_in_threadpool(_find, service, project_id, model)
    async with contextlib.aclosing(pool.ask(source, wanted, turn)) as lines:
        return await answer.whole(lines)


def _find(service: Service, project_id: str, name: str) -> ModelSource:
    with service.database.read() as session:
        return models.source(session, service.site, project_id, name)


async def _again(first: Line, lines: AsyncGenerator[Line, None]) -> AsyncGenerator[Line, None]:
    async with contextlib.aclosing(lines):
        yield first
        async for line in lines:
            yield line


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """The result of `work`, which is cancelled as soon as the client has hung up."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_EVERY_S))[0]:
            if await request.is_disconnected():
                raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
