"""A request that the service sends to itself: it is answered as if a client had sent it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message

from launcher.serve.chat.pool import ModelPool
from launcher.serve.http.access import Caller


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


#: Caller, endpoint and body -> the answer.
Ask = Callable[[Caller, str, bytes], Awaitable[Reply]]


def asker(app: ASGIApp, pool: ModelPool) -> Ask:
    """Asks `app`, whose models are in `pool`, for callers that need no key."""

    async def ask(caller: Caller, path: str, body: bytes) -> Reply:
        sent: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        status, headers, said = 0, dict[str, str](), bytearray()

        async def receive() -> Message:
            if sent:
                return sent.pop()
            await asyncio.Event().wait()  # nobody hangs up
            raise AssertionError

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode(): value.decode() for name, value in message["headers"]}
            said.extend(message.get("body", b""))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ],
            "client": None,
            "server": None,
            "state": {"caller": caller, "pool": pool, "turn": f"batches of {caller.project_id}"},
        }
        await app(scope, receive, send)
        return Reply(status, headers, bytes(said))

    return ask
