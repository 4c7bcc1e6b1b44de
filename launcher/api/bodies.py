"""Bodies of requests: how large and how slow they may be, and what is no JSON."""

from __future__ import annotations

import json
import re
import time
from typing import NoReturn

import anyio
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from launcher.api.failure import ApiError

#: These read their body piece by piece, and have limits of their own.
_STREAMED = re.compile(r"/v1/files|/v1/uploads/[^/]+/parts")
#: Bytes a second, once a body has had its time to begin: a trickle holds no connection for long.
SLOWEST = 1024.0
#: More JSON is looked at in a thread, beside the requests of others.
_LARGE = 64 << 10
#: Objects and lists of one body, brackets in its texts included: each costs far more than a byte.
_MOST_BRACKETS = 100_000
#: How JSON writes what cannot be kept: the character U+0000, or half a character.
_ESCAPED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


async def guarded(scope: Scope, receive: Receive, limit: int, idle_s: float) -> Receive:
    """The same body, which comes within its time; JSON is whole and has been looked at.

    Raises `ApiError` 400 for what is no JSON, 408 for a body that stalls, 413 for one of more than
    `limit` bytes, 415 for one that is compressed: it could become as large as it likes.
    """
    headers = Headers(scope=scope)
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(415, "Compressed bodies are not accepted: leave Content-Encoding out.")
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return receive
    patient = _patient(receive, idle_s)
    if scope["method"] == "POST" and _STREAMED.fullmatch(scope["path"]):
        return patient
    stated = headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise _too_large(limit)
    body = await _whole(patient, limit)
    if body and _is_json(headers.get("content-type", "application/json")):
        if len(body) > _LARGE:
            await to_thread.run_sync(check_json, body)
        else:
            check_json(body)
    return _replayed(body, receive)


def check_json(body: bytes) -> None:
    """Raise `ApiError` 400 unless it is JSON whose strings can be kept and sent."""
    if body.count(b"{") + body.count(b"[") > _MOST_BRACKETS:
        raise _wrong(f"it has more than {_MOST_BRACKETS:,} objects and lists")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_json)
    except RecursionError as error:
        raise _wrong("it is nested too deeply") from error
    except ValueError as error:  # also bad UTF-8, and numbers with more digits than Python reads
        raise _wrong(str(error)) from error
    left = [value] if _ESCAPED.search(body) else []
    while left:
        item = left.pop()
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _wrong("a string holds the character U+0000")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _wrong("a string holds half a character (a lone surrogate)") from error


def _patient(receive: Receive, idle_s: float) -> Receive:
    started, received, done = time.monotonic(), 0, False

    async def patient() -> Message:
        nonlocal received, done
        if done:
            return await receive()
        due_s = idle_s + received / SLOWEST - (time.monotonic() - started)
        try:
            with anyio.fail_after(min(idle_s, due_s)):
                message = await receive()
        except TimeoutError as error:
            done = True
            found = "The body of the request did not come in time."
            raise ApiError(408, found, headers={"Connection": "close"}) from error
        received += len(message.get("body", b""))
        done = not message.get("more_body", False)
        return message

    return patient


async def _whole(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _wrong(found: str) -> ApiError:
    message = f"We could not parse the JSON body of your request: {found}"
    return ApiError(400, message)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is too large: at most {limit:,} bytes are accepted.")
