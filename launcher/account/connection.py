"""Reading from a server with OpenAI's API: new tries, rate limits, content of any size.

The key goes into one header of requests to the server that was named, and nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import email.utils
import hashlib
import json
import os
import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, cast
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit

from launcher.account.layout import no_link
from launcher.core.errors import ConfigError
from launcher.core.files import storage_errors
from launcher.report.renderer import visible

#: Tries of a request that brings nothing, and of one that is told to wait.
TRIES, PATIENT_TRIES = 6, 30
#: Before the second try, and at most before a later one, in seconds.
FIRST_WAIT_S, _LONGEST_S = 0.5, 30.0
#: Longer waits that a server asks for are left to a later command, in seconds.
LONGEST_LIMIT_S = 600.0
_TIMEOUT_S = 60.0
_LARGEST_JSON = 256 << 20
#: Lists and objects in each other.
_DEEPEST = 200
_PIECE = 1 << 20
_PASSING = {408, 409, 425}
#: What a 401 says of a key that is good, and may not read this.
_NO_PERMISSION = ("insufficient permissions", "missing scopes")
#: Shorter keys are in too many words to be looked for.
_SHORTEST_KEY = 8
_SURROGATE = re.compile("[\ud800-\udfff]")
#: Codes of 429 that no wait mends.
_USED_UP = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
_PART_OF_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Unreadable(Exception):
    """What could not be read, and why; `is_refused`: another try would be no other; `is_silent`:
    nobody has answered."""

    def __init__(
        self,
        why: str,
        *,
        is_refused: bool = False,
        is_silent: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(why)
        self.is_refused, self.is_silent, self.status = is_refused, is_silent, status


@dataclass(frozen=True, slots=True)
class Content:
    """What came: its size in bytes, and its SHA-256."""

    bytes: int
    sha256: str


class _Again(Exception):
    """A failure that may pass; `wait_s` is what the server asks for."""

    def __init__(
        self, why: str, wait_s: float = 0.0, *, is_limit: bool = False, is_silent: bool = False
    ) -> None:
        super().__init__(why)
        self.wait_s, self.is_limit, self.is_silent = wait_s, is_limit, is_silent


class Connection:
    """A server at `base_url`, read with a key; may be used by several threads.

    Raises `ConfigError` for an address or a key that will not do, and from any method once the
    server has refused the key.
    """

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        first_wait_s: float = FIRST_WAIT_S,
        timeout_s: float = _TIMEOUT_S,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        hint = "such as https://api.openai.com/v1; it ends in /v1"
        try:
            parts = urlsplit(base_url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
            is_address = is_address and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            found = f"{base_url.rpartition('@')[2]!r} is no address"
            raise ConfigError(found, where="--base-url", hint=hint)
        if parts.username or parts.password:
            hint = "leave name and password out: the key is in OPENAI_API_KEY"
            raise ConfigError("the address has a password in it", where="--base-url", hint=hint)
        if not (key.isascii() and key.isprintable()) or " " in key:
            # Said here, since http.client's error would show the key.
            raise ConfigError(
                "the key holds characters that are no part of a key",
                where="OPENAI_API_KEY",
                hint="set it again, without line breaks, from where it was issued",
            )
        self.base_url = base_url.rstrip("/")
        self._key, self._first_wait_s, self._timeout_s = key, first_wait_s, timeout_s
        self._headers = {"Accept": "*/*", **(headers or {})}
        self._say = say
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._closed = threading.Event()
        self._refusal: ConfigError | None = None
        self._has_read = False

    def json(self, path: str, **query: str | int | None) -> Any:
        """The answer of GET `path`; `Unreadable` if there is none."""
        given = {name: value for name, value in query.items() if value is not None}
        url = f"{path}{'?' + urlencode(given) if given else ''}"

        def read() -> Any:
            with self._opened(url) as (response, _):
                text = self._whole(response)
            try:
                return self._cleaned(json.loads(text))
            except RecursionError as error:
                raise Unreadable("an answer that is nested too deep") from error
            except ValueError as error:
                found = self.without_key(text.decode(errors="replace"))
                raise _Again(f"no JSON: {found[:80]!r}") from error

        return self._tried(read, lambda: False)

    def content(self, path: str, into: Path) -> Content:
        """The bytes of GET `path`, in the file `into`.

        What is there already is no part of them: who knows where it is from. A try goes on behind
        what the one before it has brought, where the server can. Raises `Unreadable`.
        """
        with storage_errors(into):
            into.unlink(missing_ok=True)
        before = [0]

        def read() -> Content:
            return self._received(path, into)

        def has_grown() -> bool:
            size = _size(into)
            grown, before[0] = size > before[0], size
            return grown

        return cast(Content, self._tried(read, has_grown))

    def close(self) -> None:
        """Make all threads give up before their next try."""
        self._closed.set()

    def without_key(self, text: str) -> str:
        """The text with the key left out, if it is there."""
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text

    def _cleaned(self, value: Any, depth: int = 0) -> Any:
        """JSON without the key, which a server may say, and without what is in no file of text.

        Raises `RecursionError` for what is nested so deep that nobody could write it.
        """
        if depth > _DEEPEST:
            raise RecursionError
        if isinstance(value, str):
            return _SURROGATE.sub("\ufffd", self.without_key(value))
        if isinstance(value, list):
            return [self._cleaned(one, depth + 1) for one in value]
        if isinstance(value, dict):
            return {
                self._cleaned(name): self._cleaned(one, depth + 1) for name, one in value.items()
            }
        return value

    def _received(self, path: str, into: Path) -> Content:
        start = _size(into)
        asked = {"Range": f"bytes={start}-"} if start else {}
        try:
            opened = self._opened(path, asked)
            with opened as (response, status):
                return self._stored(response, status, start, into)
        except Unreadable as error:
            if error.status != 416:  # the beginning is longer than the whole
                raise
            with storage_errors(into):
                into.unlink(missing_ok=True)
            raise _Again("the server has less than is here") from error

    def _stored(self, response: Any, status: int, start: int, into: Path) -> Content:
        headers: Message = response.headers
        goes_on = status == 206 and _begins_at(headers.get("Content-Range"), start)
        if status == 206 and not goes_on:
            with storage_errors(into):
                into.unlink(missing_ok=True)
            raise _Again(f"another part came than was asked for: {headers.get('Content-Range')}")
        digest, come = hashlib.sha256(), 0
        stated = _count(headers.get("Content-Length"))
        mode = "r+b" if goes_on else "wb"
        with storage_errors(into), open(into, mode, opener=no_link) as file:
            if goes_on:
                _feed(digest, file)
            while piece := response.read(_PIECE):
                file.write(piece)
                digest.update(piece)
                come += len(piece)
            file.flush()
            os.fsync(file.fileno())
        if stated is not None and come < stated:
            raise _Again(f"the connection ended after {come:,} of {stated:,} bytes")
        size = come + (start if goes_on else 0)
        expected = _digest(headers, is_whole=not goes_on)
        if expected is not None and expected != digest.digest():
            with storage_errors(into):
                into.unlink(missing_ok=True)
            raise _Again("the content has another SHA-256 than the server says")
        return Content(size, digest.hexdigest())

    def _tried(self, read: Callable[[], Any], has_progress: Callable[[], bool]) -> Any:
        """What `read` makes, tried again as long as that may help."""
        failed, limited = 0, 0
        while True:
            self._wait()
            try:
                return read()
            except _Again as error:
                problem = error
            except (OSError, HTTPException) as error:
                if isinstance(error, HTTPError):
                    raise
                found = self.without_key(f"{type(error).__name__}: {error}")
                problem = _Again(found, is_silent=True)
            if problem.is_limit:
                limited += 1
            else:
                failed = 1 if has_progress() else failed + 1
            if failed >= TRIES or limited >= PATIENT_TRIES:
                found = f"{problem}, after {failed + limited} tries"
                raise Unreadable(found, is_silent=problem.is_silent)
            if problem.wait_s > LONGEST_LIMIT_S:
                raise Unreadable(f"{problem}: the server asks to wait {problem.wait_s:,.0f} s")
            if problem.is_limit:
                self._hold(problem.wait_s or self._backoff(limited))
            elif self._closed.wait(max(problem.wait_s, self._backoff(failed))):
                raise Unreadable(str(problem))

    def _backoff(self, tries: int) -> float:
        longest = min(self._first_wait_s * 2.0 ** (tries - 1), _LONGEST_S)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def _hold(self, seconds: float) -> None:
        """Nobody asks for so long."""
        with self._lock:
            until = time.monotonic() + seconds
            is_news = until > self._not_before + 1.0
            self._not_before = max(self._not_before, until)
        if is_news and seconds >= 1:
            self._say(f"the server asks to wait {seconds:,.0f} s")

    def _wait(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            if self._closed.wait(left):
                break
        if self._refusal is not None:
            raise self._refusal
        if self._closed.is_set():
            raise Unreadable("stopped")

    @contextlib.contextmanager
    def _opened(
        self, path: str, headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[Any, int]]:
        request = urllib.request.Request(  # noqa: S310 - http or https, see above
            f"{self.base_url}{path}", headers={**self._headers, **(headers or {})}
        )
        # Not to another host that the server may name.
        request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:  # noqa: S310
                self._has_read = True
                self._obey(response.headers)
                yield response, response.status
        except HTTPError as error:
            with error:
                raise self._meaning(error) from None

    def _whole(self, response: Any) -> bytes:
        stated, text = _count(response.headers.get("Content-Length")), b""
        while piece := response.read(_PIECE):
            text += piece
            if len(text) > _LARGEST_JSON:
                raise Unreadable(f"an answer of more than {_LARGEST_JSON:,} bytes")
        if stated is not None and len(text) < stated:
            raise _Again(f"the connection ended after {len(text):,} of {stated:,} bytes")
        return text

    def _obey(self, headers: Message) -> None:
        """Wait where no request is left until the limit is set back."""
        if headers.get("x-ratelimit-remaining-requests", "").strip() == "0":
            wait_s = duration_s(headers.get("x-ratelimit-reset-requests", ""))
            self._hold(min(wait_s, LONGEST_LIMIT_S))

    def _meaning(self, error: HTTPError) -> Exception:
        """What an answer that is none asks for."""
        text = ""
        with contextlib.suppress(OSError, HTTPException):
            text = error.read(4000).decode(errors="replace")
        message, code = _message(text)
        why = visible(self._cleaned(f"HTTP {error.code}: {message or error.reason}")[:500])
        is_bad_key = not (self._has_read or any(word in why.lower() for word in _NO_PERMISSION))
        if error.code == 401 and is_bad_key:
            self._refusal = ConfigError(
                f"{self.base_url} refuses the key: {why}",
                where="OPENAI_API_KEY",
                hint="set a key of the account, one that may read files and fine-tuning jobs; see"
                " --base-url too",
            )
            self.close()
            return self._refusal
        if error.code == 429 and code not in _USED_UP:
            return _Again(why, retry_after_s(error.headers), is_limit=True)
        if error.code >= 500 or error.code in _PASSING:
            return _Again(why, retry_after_s(error.headers))
        is_refused = 400 <= error.code < 500 and error.code != 429
        return Unreadable(why, is_refused=is_refused, status=error.code)


def retry_after_s(headers: Message) -> float:
    """Seconds that an answer asks to wait: `retry-after-ms`, `Retry-After` (seconds or a date), or
    until the request limit is set back; 0 if it says nothing."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers.get("retry-after-ms") or "") / 1000)
    said = headers.get("Retry-After") or ""
    with contextlib.suppress(ValueError):
        return max(0.0, float(said))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return duration_s(headers.get("x-ratelimit-reset-requests") or "")


def duration_s(text: str) -> float:
    """Seconds of a duration such as 6m0s, 1.5s or 20ms; 0 for anything else."""
    parts = _PART_OF_DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        return 0.0
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _message(text: str) -> tuple[str, str]:
    try:
        error = json.loads(text)["error"]
        return str(error["message"]), str(error.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return " ".join(text.split())[:200], ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _count(header: str | None) -> int | None:
    return int(header) if header is not None and header.strip().isdecimal() else None


def _begins_at(content_range: str | None, start: int) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", content_range or "")
    return found is not None and int(found[1]) == start


def _feed(digest: Any, file: IO[bytes]) -> None:
    while piece := file.read(_PIECE):
        digest.update(piece)


def _digest(headers: Message, *, is_whole: bool) -> bytes | None:
    """The SHA-256 that the server states (RFC 9530); None if it states none."""
    names = ("Repr-Digest", "Content-Digest") if is_whole else ("Repr-Digest",)
    for name in names:
        found = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", headers.get(name) or "")
        if found:
            with contextlib.suppress(binascii.Error):
                return base64.b64decode(found[1], validate=True)
    return None
