"""/v1/chat/completions and /v1/completions."""

# Annotations are not postponed here: FastAPI reads them.
import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from launcher.serve.chat import models
from launcher.serve.chat.model_process import Line
from launcher.serve.chat.pool import Failed, ModelPool, ModelSource
from launcher.serve.chat.responses import Answer, refuse, unavailable
from launcher.serve.chat.wire_chat import ChatRequest, CompletionRequest, Sampled
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service

_LOOK_EVERY_S = 0.5

_T = TypeVar("_T")


@contextlib.asynccontextmanager
async def _with_pool(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with ModelPool(app.state.service) as pool:
        yield {"pool": pool}


router = APIRouter(prefix="/v1", tags=["chat"], lifespan=_with_pool)


@router.post("/chat/completions")
async def create_chat_completion(
    asked: ChatRequest, request: Request, caller: Asking, service: Served
) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events."""
    return await _answer(asked, request, caller, service, is_chat=True)


@router.post("/completions")
async def create_completion(
    asked: CompletionRequest, request: Request, caller: Asking, service: Served
) -> Response:
    """Continue a text, whole or as a stream of server-sent events."""
    return await _answer(asked, request, caller, service, is_chat=False)


async def _answer(
    asked: Sampled, request: Request, caller: Caller, service: Service, *, is_chat: bool
) -> Response:
    named = request.scope["state"].get("deployment", asked.model)
    if named != asked.model:
        found = (
            f"The address names the model '{named}', the body '{asked.model}': name one of them."
        )
        raise ApiError(400, found, param="model")
    source = await run_in_threadpool(_find, service, caller, asked.model)
    wanted = asked.request(service.site.chat.max_tokens)
    pool: ModelPool = request.state.pool
    functions = isinstance(asked, ChatRequest) and bool(asked.functions)
    answer = Answer(asked.model, wanted["n"], is_chat=is_chat, functions=functions)
    most = service.site.quota_of(caller.project).questions
    size = request.scope["state"].get("body_bytes", 0)
    lines = pool.ask(source, wanted, caller.project_id, most, size)
    try:
        if not asked.stream:
            return JSONResponse(await _unless_gone(request, answer.whole(lines)))
        # An error has a status of its own as long as nothing has been sent.
        first = await _unless_gone(request, anext(lines))
        refuse(first)
    except Failed as error:
        raise unavailable() from error
    finally:
        if not asked.stream:
            await lines.aclose()
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return StreamingResponse(
        answer.events(_again(first, lines), with_usage),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def _find(service: Service, caller: Caller, name: str) -> ModelSource:
    with service.database.read() as session:
        return models.source(session, service.site, caller.project_id, name)


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
