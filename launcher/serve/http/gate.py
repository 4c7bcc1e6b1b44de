"""What every request passes before its route: who asks, how often, and with what body."""

from __future__ import annotations

import logging
import re

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launcher.core import asgi
from launcher.serve.db.database import AWAY
from launcher.serve.http import azure
from launcher.serve.http.access import DEMO, Caller, Keys, key_of, not_here, wrong_key
from launcher.serve.http.bodies import guarded
from launcher.serve.http.failure import ApiError, answer, not_now
from launcher.serve.http.ratelimit import RateLimits, remaining
from launcher.serve.site import Site

_LOG = logging.getLogger(__name__)
_PREFIX = "/v1/"
_NUL = re.compile(rb"%00|\0")


class Gate:
    """ASGI middleware. A route below /v1 finds `Caller` in its request's state."""

    def __init__(self, app: ASGIApp, keys: Keys, site: Site) -> None:
        self._app, self._keys, self._site, self._limits = app, keys, site, site.limits
        self._rates = RateLimits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left: dict[str, str] = {}

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in left.items()),
                ]
            await send(message)

        try:
            # A request of a batch is the service's own, and comes with its caller.
            if scope["path"].startswith(_PREFIX) and "caller" not in scope["state"]:
                caller = await self._caller(scope)
                scope["state"]["caller"] = caller
                left = self._left(caller)
            _check_url(scope)
            body = receive
            if "caller" in scope["state"]:  # of a stranger nothing is read but the head
                body = await guarded(scope, receive, self._limits.body_bytes, self._limits.idle_s)
        except ApiError as error:
            await answer(error)(scope, receive, tell)
            return
        await self._app(scope, body, tell)

    def _left(self, caller: Caller) -> dict[str, str]:
        """Headers that say what the caller may ask further; `ApiError` 429 if it is nothing."""
        per_minute = caller.requests_per_minute or self._limits.requests_per_minute
        of_key = self._rates.take(caller.key_id, per_minute)
        of_project = self._site.quota_of(caller.project).requests_per_minute
        if of_project is None:
            return of_key
        shared = self._rates.take(f"project {caller.project_id}", of_project)
        return min(of_key, shared, key=remaining)

    async def _caller(self, scope: Scope) -> Caller:
        headers = Headers(scope=scope)
        wanted = key_of(headers.get("authorization", ""), headers.get(azure.KEY, ""))
        is_known, found = self._keys.remembered(wanted)
        if not is_known:
            try:
                found = await to_thread.run_sync(self._keys.look_up, wanted)
            except AWAY as error:
                _LOG.error("%s", error, extra={"request_id": scope["state"]["request_id"]})
                raise not_now() from error
        if found is None:
            raise wrong_key()
        # Everybody knows the demo key, and a web page may have this server's address for its own.
        if found.key_id == DEMO and not asgi.names_loopback(headers.get("host", "")):
            raise not_here()
        return found


def _check_url(scope: Scope) -> None:
    if _NUL.search(scope["raw_path"]):
        raise ApiError(404, "Invalid URL: it holds the character U+0000")
    if _NUL.search(scope["query_string"]):
        raise ApiError(400, "Invalid query: it holds the character U+0000")
