"""/v1/chat/completions and /v1/completions."""

# Annotations are not postponed here: FastAPI reads them.
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from launcher.serve.chat.asking import answered
from launcher.serve.chat.pool import ModelPool
from launcher.serve.chat.responses import Answer
from launcher.serve.chat.wire_chat import ChatRequest, CompletionRequest, Sampled
from launcher.serve.http.access import Asking, Caller, Served
from launcher.serve.service import Service


@contextlib.asynccontextmanager
async def _with_pool(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with ModelPool(app.state.service) as pool:
        app.state.pool = pool  # for what the service asks by itself
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
    wanted = asked.request(service.site.chat.max_tokens)
    answer = Answer(
        asked.model,
        wanted["n"],
        is_chat=is_chat,
        functions=isinstance(asked, ChatRequest) and bool(asked.functions),
        logprobs=wanted.get("logprobs") is not None,
        with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )
    return await answered(
        request, caller, service, asked.model, wanted, answer, stream=bool(asked.stream)
    )
