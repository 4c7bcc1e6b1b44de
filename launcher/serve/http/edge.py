"""Around every request: its id, its line in the log, its numbers, and an answer in any case."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launcher.serve.http import azure
from launcher.serve.http.audit import GONE, route_of
from launcher.serve.http.failure import ApiError, answer
from launcher.serve.http.metrics import Metrics

_LOG = logging.getLogger(__name__)


class Edge:
    """ASGI middleware, the outermost. No error leaves it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, and say how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, sent = time.perf_counter(), 0, 0
        request_id = f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        azure.translate(scope)

        async def tell(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except ClientDisconnect:
            status = GONE
        except asyncio.CancelledError:  # a request of a batch that is answered no more
            status = status or GONE
            raise
        except Exception:
            _LOG.exception("unexpected error", extra={"request_id": request_id})
            if not status:
                error = ApiError(500, f"The server had an error. Its request id is {request_id}.")
                await answer(error)(scope, receive, tell)
        finally:
            took_s = time.perf_counter() - started
            self._metrics.served(scope["method"], route_of(scope), status, took_s)
            caller = scope["state"].get("caller")
            _LOG.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": route_of(scope),
                    "status": status,
                    "ms": round(took_s * 1000, 1),
                    "bytes": sent,
                    "key": caller.key_id if caller else None,
                },
            )
