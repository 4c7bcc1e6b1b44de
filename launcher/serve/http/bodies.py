"""Bodies of requests: how large and how slow they may be, and what is no JSON."""

from __future__ import annotations

import json
import re
import time

import anyio
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from launcher.core.jsontext import STRICT, Repeated, short, unkept
from launcher.serve.http.failure import ApiError

#: These read their body piece by piece, and have limits of their own.
_STREAMED = re.compile(r"/v1/files|/v1/uploads/[^/]+/parts")
#: Bytes a second, once a body has had its time to begin: a trickle holds no connection for long.
SLOWEST = 1024.0
#: More JSON is looked at in a thread, beside the requests of others.
_LARGE = 64 << 10
#: Values of one body: each costs far more than a byte, and far more again where it is wrong.
_MOST_VALUES = 12_000
_QUOTE = ord('"')
#: A text, or what stands before a value. Only texts may be long, and those are passed over at once.
_PIECES = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[,\[{]', re.DOTALL)


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
    scope.setdefault("state", {})["body_bytes"] = len(body)
    if body and _is_json(headers.get("content-type", "application/json")):
        if len(body) > _LARGE:
            await to_thread.run_sync(check_json, body)
        else:
            check_json(body)
    return _replayed(body, receive)


def check_json(body: bytes) -> None:
    """Raise `ApiError` 400 unless it is JSON of bounded size whose strings can be kept and sent.

    Nothing is built of a body before its values are counted.
    """
    if body.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in body[:4]:
        raise _wrong("it is text in UTF-16 or UTF-32; send it in UTF-8")
    if body.startswith(b"\xef\xbb\xbf"):
        raise _wrong("it begins with a byte order mark; send it without")
    if _has_more_values(body, _MOST_VALUES):
        raise _wrong(f"it has more than {_MOST_VALUES:,} values")
    try:
        value = STRICT.decode(body.decode("utf-8"))
    except RecursionError as error:
        raise _wrong("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _wrong(f"byte {error.start + 1} is not UTF-8; send it in UTF-8") from error
    except Repeated as error:
        raise _wrong(f"the key '{short(str(error))}' is there twice in one object") from error
    except json.JSONDecodeError as error:
        raise _wrong(str(error)) from error
    except ValueError as error:  # also of more digits than Python reads
        raise _wrong(short(str(error).partition(";")[0])) from error
    if (found := unkept(value, body)) is not None:
        raise _wrong(found)


def _has_more_values(body: bytes, most: int) -> bool:
    if body.count(b",") + body.count(b"[") + body.count(b"{") < most:
        return False
    count = texts = 0
    for piece in _PIECES.finditer(body):  # not all at once: others have their turn in between
        is_text = body[piece.start()] == _QUOTE
        texts += is_text
        count += not is_text
        if count >= most or texts > 3 * most:  # a key and a value each, and more than that is none
            return True
    return False


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


def _wrong(found: str) -> ApiError:
    message = f"We could not parse the JSON body of your request: {found}"
    return ApiError(400, message)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request is too large: at most {limit:,} bytes are accepted.")
