"""One OpenAI-compatible endpoint in front of two: users are split, and what comes of it is kept."""

# Annotations are not postponed here: FastAPI reads them, those of local names too.
import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx2
from fastapi import FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from launcher.ab.traffic import Traffic
from launcher.core.errors import ConfigError, StorageError

#: Seconds to reach an endpoint; and between two pieces of an answer, since models are slow.
CONNECT_S, READ_S = 10.0, 600.0
#: Status kept for a request whose client went away; that of nginx.
CLIENT_GONE = 499
#: What would say which of the two has answered.
TELLING = ("system_fingerprint", "service_tier", "provider")


class Feedback(BaseModel):
    """What a user thought of a response: 0 or 1, or anything in -1 to 1; one scale for all."""

    id: str
    value: float = Field(ge=-1, le=1, allow_inf_nan=False)
    comment: str = Field("", max_length=4000)


@dataclass(slots=True)
class Sent:
    """A request on its way; `id` is ours, so that feedback finds it and nobody guesses it."""

    side: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    began: float = field(default_factory=time.monotonic)
    first_s: float | None = None

    def elapsed_s(self) -> float:
        """Seconds since it came in."""
        return time.monotonic() - self.began


def require_url(text: str, where: str) -> None:
    """Raise `ConfigError` unless `text` can be an endpoint's base URL."""
    try:
        url = httpx2.URL(text)
        is_plain = url.host and (url.port or 0) < 1 << 16 and not (url.query or url.fragment)
        if is_plain and url.scheme in ("http", "https"):
            return
    except httpx2.InvalidURL:
        pass
    hint = "http(s)://HOST[:PORT]/v1, the base URL of an endpoint"
    raise ConfigError(f"{text!r} is no address of an endpoint", where=where, hint=hint)


def create_app(traffic: Traffic, urls: Mapping[str, str], model: str) -> FastAPI:
    """The service. Responses carry `model` and an id of ours, whichever endpoint made them."""
    endpoints = {side: ModelServer(url) for side, url in urls.items()}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for endpoint in endpoints.values():
            await endpoint.client.aclose()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        known = {"id": model, "object": "model", "created": 0, "owned_by": "launcher"}
        return {"object": "list", "data": [known]}

    @app.post("/v1/chat/completions")
    async def complete(
        request: Request,
        x_user: Annotated[str | None, Header()] = None,
        authorization: Annotated[str | None, Header()] = None,
    ) -> Response:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            return _refusal(400, "the body is not JSON")
        if not isinstance(body, dict):
            return _refusal(400, "the body is not a JSON object")
        user = body.get("user")
        user = x_user if user is None else user
        if isinstance(user, bool) or not isinstance(user, str | int | None):
            return _refusal(400, "`user` is neither text nor a whole number")
        assignment = traffic.assign(None if user in (None, "") else str(user))
        sent = Sent(assignment.side)
        await run_in_threadpool(traffic.begin, sent.id, assignment)
        passage = Passage(traffic, sent, model)
        return await passage.through(endpoints[sent.side], body, authorization)

    @app.post("/v1/feedback")
    def feedback(said: Feedback) -> Response:
        if not traffic.feedback(said.id, said.value, said.comment):
            return _refusal(404, "there is no response of this id")
        return JSONResponse({"id": said.id, "value": said.value})

    @app.exception_handler(RequestValidationError)
    def wrong(_: Request, error: RequestValidationError) -> Response:
        return _refusal(422, "feedback is an id, a value from -1 to 1 and perhaps a comment")

    @app.exception_handler(StorageError)
    def unavailable(_: Request, error: StorageError) -> Response:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return _refusal(503, "cannot be counted at present")

    return app


class ModelServer:
    """One of the two, and the name of its model there."""

    def __init__(self, url: str) -> None:
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
        limits = httpx2.Limits(max_connections=None)
        # trust_env: a proxy meant for the internet is none for the model next door.
        self.client = httpx2.AsyncClient(
            base_url=url.rstrip("/") + "/", timeout=timeout, limits=limits, trust_env=False
        )
        self._model: str | None = None

    async def model(self, headers: Mapping[str, str]) -> str:
        """The first model that it lists; asked once."""
        if self._model is None:
            response = await self.client.get("models", headers=headers)
            response.raise_for_status()
            self._model = str(response.json()["data"][0]["id"])
        return self._model


class Passage:
    """The way of one request through an endpoint and back; its end is kept, however it ends."""

    def __init__(self, traffic: Traffic, sent: Sent, model: str) -> None:
        self._traffic, self._sent, self._model = traffic, sent, model

    async def through(
        self, endpoint: ModelServer, body: dict[str, Any], authorization: str | None
    ) -> Response:
        """The endpoint's answer under our names; 502 in OpenAI's form if there is none."""
        headers = {"Authorization": authorization} if authorization else {}
        try:
            asked = {**body, "model": await endpoint.model(headers)}
            request = endpoint.client.build_request(
                "POST",
                "chat/completions",
                content=json.dumps(asked),
                headers={**headers, "Content-Type": "application/json"},
            )
            response = await endpoint.client.send(request, stream=True)
            self._sent.first_s = self._sent.elapsed_s()
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                # Not awaited: the pieces go out as they come, and the end is kept after the last.
                media = "text/event-stream"
                pieces = self._pieces(response)
                return StreamingResponse(pieces, response.status_code, media_type=media)
            try:
                answer = json.loads(await response.aread())
            finally:
                await response.aclose()
        except (httpx2.HTTPError, ValueError, LookupError, TypeError, RecursionError) as error:
            print(f"endpoint {self._sent.side}: {error!r}", file=sys.stderr, flush=True)
            await self._end(502)
            return _refusal(502, "the model gave no answer")
        await self._end(response.status_code)
        if response.is_success:
            answer = self._renamed(answer)
        # Not JSONResponse, which fails on NaN and on half of a surrogate pair; models send both.
        content = json.dumps(answer)
        return Response(content, response.status_code, media_type="application/json")

    async def _pieces(self, response: httpx2.Response) -> AsyncIterator[str]:
        status = CLIENT_GONE
        try:
            self._sent.first_s = None
            async for line in response.aiter_lines():
                if self._sent.first_s is None:
                    self._sent.first_s = self._sent.elapsed_s()
                yield self._line(line) + "\n"
            status = response.status_code
        except httpx2.HTTPError as error:
            print(f"endpoint {self._sent.side}: {error!r}", file=sys.stderr, flush=True)
            status = 502
            # The status line is long out: a broken stream is told in the stream.
            yield f"data: {json.dumps(_error('the model stopped in the middle'))}\n\n"
        finally:
            # Even while the client's going away cancels this task.
            try:
                await asyncio.shield(self._end(status))
            finally:
                with contextlib.suppress(httpx2.HTTPError):
                    await response.aclose()

    def _line(self, line: str) -> str:
        name, _, value = line.partition(":")
        if name != "data" or value.strip() in ("", "[DONE]"):
            return line
        try:
            return f"data: {json.dumps(self._renamed(json.loads(value)))}"
        except (ValueError, RecursionError):
            return line

    def _renamed(self, answer: Any) -> Any:
        if not isinstance(answer, dict) or "choices" not in answer:
            return answer
        kept = {key: value for key, value in answer.items() if key not in TELLING}
        return {**kept, "id": self._sent.id, "model": self._model}

    async def _end(self, status: int) -> None:
        await run_in_threadpool(self._keep, status)

    def _keep(self, status: int) -> None:
        self._traffic.end(self._sent.id, status, self._sent.first_s, self._sent.elapsed_s())


def _error(found: str) -> dict[str, Any]:
    return {"error": {"message": found, "type": "router_error", "param": None, "code": None}}


def _refusal(status: int, found: str) -> Response:
    return JSONResponse(_error(found), status)
