"""Questions to a model behind an OpenAI-compatible endpoint, with time limits and new tries."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import fields
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError

from launcher.config.schema import JudgeConfig
from launcher.core import runtime
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json
from launcher.graders.usage import Usage

#: A text for a user's turn, or the messages of a conversation.
Question = str | Sequence[dict[str, str]]
T = TypeVar("T")

#: Answers of a server that may be another one soon: too many requests, or trouble of its own.
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
#: Longest wait before a new try that the server may ask for, in seconds.
_LONGEST_WAIT_S = 60.0
_LARGEST_REPLY = 4 << 20
#: After so many questions in a row without any reply the endpoint is left alone for so long.
_SILENT, _LEFT_ALONE_S = 3, 30.0


class Unanswered(Exception):
    """No reply to this question after all tries."""

    def __init__(self, problem: str, told: str) -> None:
        super().__init__(problem)
        self.told = told
        """The same without what the endpoint says, and without where it is."""


class Declined(Unanswered):
    """The endpoint is there, and will not answer this question."""


class EndpointRefusal(ConfigError):
    """The endpoint will not answer any question."""

    told: str = ""
    """As of `Unanswered`."""


class Endpoint:
    """The model of `config` behind its URL; `ask` may be called from several threads.

    Raises `ConfigError` for a key that no header can hold.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._key = runtime.secret(config.key_variable)
        if self._key and not (self._key.isascii() and self._key.isprintable()):
            # Said here, since http.client's error would show the key.
            raise ConfigError(
                "the key holds characters that are not printable ASCII",
                where=config.key_variable,
                hint="set it again, without line breaks, from where the key was issued",
            )
        self._closed = threading.Event()
        self._refusal: EndpointRefusal | None = None
        self._silent, self._silent_until = 0, 0.0
        self._last_problem = "", ""
        self._counting = threading.Lock()
        self.usage = Usage()
        """Tokens of all replies so far; replies from the cache have cost none."""

    def request(self, question: Question) -> dict[str, Any]:
        """The body of the request: all that the reply depends on besides the URL."""
        is_text = isinstance(question, str)
        messages = [{"role": "user", "content": question}] if is_text else question
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": messages,
            "temperature": 0,
            **self._config.extra,
        }
        return {name: value for name, value in body.items() if value is not None}

    def reading(self, question: Question, read: Callable[[str], T | None]) -> tuple[T | None, str]:
        """What `read` makes of the reply, None if it makes nothing of it; and the reply.

        Replies that were read are kept in the launcher's cache. Raises what `ask` does.
        """
        parts = [self._config.url, self.request(question)]
        key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        cached = runtime.cache_dir() / "judge" / key[:2] / f"{key}.json"
        reply = (read_json(cached) or {}).get("reply", "")
        found = read(reply)
        if found is None:
            reply = self.ask(question)
            found = read(reply)
            if found is not None:
                write_json(cached, {"reply": reply})
        return found, reply

    def ask(self, question: Question) -> str:
        """The reply's text.

        Raises `Unanswered` (`Declined` if a new try is of no use), and `EndpointRefusal` for
        what no other question would change: from then on every question gets it, unasked. An
        endpoint that is silent is not asked for a while.
        """
        if self._silent >= _SILENT and time.monotonic() < self._silent_until:
            problem, told = self._last_problem
            raise Unanswered(f"{problem}, {self._silent} times in a row", told)
        try:
            reply = self._tried(question)
        except Declined:
            self._silent = 0
            raise
        except Unanswered as error:
            self._silent, self._last_problem = self._silent + 1, (str(error), error.told)
            self._silent_until = time.monotonic() + _LEFT_ALONE_S
            raise
        self._silent = 0
        return reply

    def _tried(self, question: Question) -> str:
        body = json.dumps(self.request(question)).encode()
        for attempt in range(self._config.retries + 1):
            wait_s = min(2.0**attempt, 30.0) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            if self._refusal:
                raise self._refusal
            try:
                text, used = _read(self._post(body))
                with self._counting:
                    self.usage += used
                return text
            except HTTPError as error:
                with contextlib.suppress(OSError, HTTPException):
                    said = error.read(500).decode(errors="replace")
                problem, told = f"HTTP {error.code} {said or error.reason}", f"HTTP {error.code}"
                if error.code in (401, 403, 404):
                    self._refusal = self._refused(problem, told)
                    raise self._refusal from error
                if error.code not in _PASSING:
                    raise Declined(problem, told) from error
                wait_s = max(wait_s, _seconds(error.headers.get("Retry-After")))
            except (OSError, HTTPException, ValueError) as error:
                problem, told = f"{type(error).__name__}: {error}", _kind(error)
            if attempt == self._config.retries or self._closed.wait(wait_s):
                raise Unanswered(problem, told)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Make all threads give up before their next try."""
        self._closed.set()

    def _post(self, body: bytes) -> bytes:
        timeout_s = self._config.timeout_s
        request = urllib.request.Request(  # noqa: S310 - http or https, see eval_checks
            f"{str(self._config.url).rstrip('/')}/chat/completions",
            data=body,
            headers={"Content-Type": "application/json"},
        )
        if self._key:
            # Not to another host that the server may name.
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        end, reply = time.monotonic() + timeout_s, b""
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            while part := response.read1(1 << 16):
                reply += part
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete after {timeout_s:g} s")
                if len(reply) > _LARGEST_REPLY:
                    raise ValueError(f"a reply of more than {_LARGEST_REPLY:,} bytes")
        return reply

    def _refused(self, problem: str, told: str) -> EndpointRefusal:
        name = self._config.key_variable
        key = f"the key in {name}" if self._key else f"no key: {name} is not set"
        error = EndpointRefusal(
            f"{self._config.url} refuses: {problem}",
            where="eval.judge",
            hint=f"check eval.judge.url (it ends in /v1 for most), eval.judge.model and {key}",
        )
        error.told = told
        return error


def _kind(error: Exception) -> str:
    """What went wrong, without the names that texts of it may hold."""
    reason = getattr(error, "reason", error)
    found = reason if isinstance(reason, Exception) else error
    if isinstance(found, TimeoutError):
        return "no answer in time"
    if isinstance(found, OSError | HTTPException):
        return type(found).__name__
    return "no chat completion"


def _read(reply: bytes) -> tuple[str, Usage]:
    """The text of a chat completion, and its tokens; `ValueError` for anything else."""
    try:
        said = json.loads(reply)
        content = said["choices"][0]["message"]["content"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"no chat completion: {reply[:200]!r}") from error
    # JSON may hold half a character, which no file can.
    text = content.encode(errors="replace").decode() if isinstance(content, str) else ""
    return text, _usage(said.get("usage"))


def _usage(said: Any) -> Usage:
    counts = said if isinstance(said, dict) else {}
    details = counts.get("prompt_tokens_details")
    counts = {**counts, **(details if isinstance(details, dict) else {})}
    found = {field.name: counts.get(field.name) for field in fields(Usage)}
    return Usage(**{name: count for name, count in found.items() if type(count) is int})


def _seconds(header: str | None) -> float:
    """A Retry-After in seconds; 0 if there is none, or a date."""
    try:
        return min(max(float(header or 0), 0.0), _LONGEST_WAIT_S)
    except ValueError:
        return 0.0
