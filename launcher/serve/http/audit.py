"""Who changed what: a row for every request that may change something, refused ones too."""

from __future__ import annotations

import json
import logging

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launcher.serve.db.database import Database
from launcher.serve.db.tables import Audit

_LOG = logging.getLogger(__name__)
_PREFIX = "/v1/"
#: POSTs that change nothing.
_ANSWERING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_LENGTH = 200
#: Status, in the log too, of what a client has not waited for.
GONE = 499


class Auditor:
    """ASGI middleware. The row is there before the client has its answer."""

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self._app, self._database = app, database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through and note it, if it came with a key."""
        if not _is_change(scope):
            await self._app(scope, receive, send)
            return
        said: list[Message] = []

        async def wait(message: Message) -> None:
            said.append(message)

        try:
            await self._app(scope, receive, wait)
        except ClientDisconnect:
            await self._note(scope, GONE, "")
            raise
        except Exception:
            await self._note(scope, 500, "")
            raise
        if said:
            body = b"".join(message.get("body", b"") for message in said[1:])
            await self._note(scope, said[0]["status"], _object(scope, said[0]["status"], body))
        for message in said:
            await send(message)

    async def _note(self, scope: Scope, status: int, made: str) -> None:
        caller = scope["state"].get("caller")
        if caller is None:
            return
        row = Audit(
            key_id=caller.key_id,
            project_id=caller.project_id,
            address=(scope.get("client") or ("", 0))[0],
            action=_action(scope),
            object=made,
            status=status,
        )
        try:
            await to_thread.run_sync(self._add, row)
        except SQLAlchemyError:
            # What was done is done: the client has to know.
            _LOG.exception("no row of the audit could be written")

    def _add(self, row: Audit) -> None:
        with self._database.begin() as session:
            session.add(row)


def route_of(scope: Scope) -> str:
    """The route's pattern, e.g. /v1/files/{file_id}; "none" for a URL that has no route."""
    route = scope.get("route")
    return route.path if route is not None else "none"


def _action(scope: Scope) -> str:
    if scope.get("route") is not None:
        return f"{scope['method']} {route_of(scope)}"
    # It has come to no route: what was asked for, as far as it can be kept.
    return f"{scope['method']} {scope['path']}".replace("\0", "")[:_LENGTH]


def _is_change(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["method"] not in ("GET", "HEAD", "OPTIONS")
        and scope["path"].startswith(_PREFIX)
        and scope["path"] not in _ANSWERING
    )


def _object(scope: Scope, status: int, body: bytes) -> str:
    """The ids that the path names, or those that were made; of permissions the projects too."""
    names = [str(value) for value in (scope.get("path_params") or {}).values()]
    # What has a path of its own and is created is one more, such as a run of an eval.
    if status == 201 or (
        status == 200 and (not names or (scope["method"] == "POST" and b'"list"' in body[:20]))
    ):
        made = json.loads(body)
        listed = made.get("data", ())
        # A grader that is tried makes nothing.
        names += [one["project_id"] for one in listed] or [str(made.get("id", ""))]
    return " ".join(names)[:_LENGTH]
