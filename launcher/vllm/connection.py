"""A server over HTTP: what it is asked as JSON, and answers whole or piece by piece, past every
proxy. Standard library only."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlencode, urlsplit

_SHOWN = 2000
#: How the address of a server begins that listens at a path of this host.
_UNIX = "unix:"


class GoneError(Exception):
    """The server does not answer: it is gone, or stuck."""


class FailedError(GoneError):
    """It has failed at what it was asked, and may be well or not."""


class RefusedError(Exception):
    """The server does not do what it is asked; `status` is that of HTTP."""

    def __init__(self, path: str, status: int, said: str) -> None:
        super().__init__(f"vLLM refuses {path}: HTTP {status} {said}")
        self.status = status


class Withdrawal:
    """Takes a request back that another thread waits for the answer of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._is_made = False

    def make(self) -> None:
        """Have whoever waits raise `GoneError`, now or when it begins to."""
        with self._lock:
            self._is_made = True
            for own in self._sockets:
                _shut(own)

    @contextlib.contextmanager
    def _holds(self, own: socket.socket) -> Iterator[None]:
        with self._lock:
            self._sockets.append(own)
            if self._is_made:
                _shut(own)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.remove(own)


class ServerConnection:
    """A server at `url`, http://HOST:PORT or unix:PATH, that knows `token`; its methods may be
    called from several threads."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        self._url, self._token, self._timeout_s = url, token, timeout_s

    def get(self, path: str) -> dict[str, Any]:
        """What it says there. Raises `GoneError` and `RefusedError`."""
        with self._opened(path, None) as reply:
            return _object(reply.read())

    def post(
        self, path: str, body: Any = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Its answer; empty where it says nothing, or a word. Raises `GoneError` and
        `RefusedError`."""
        asked = f"{path}{'?' + urlencode(query) if query else ''}"
        with self._opened(asked, {} if body is None else body) as reply:
            return _object(reply.read())

    def stream(
        self, path: str, body: Any, withdrawal: Withdrawal | None = None
    ) -> Iterator[dict[str, Any]]:
        """Its answer event by event, up to the word that says that it is whole; to stop reading is
        to withdraw the request, which `withdrawal` does while nothing comes. Raises `GoneError`,
        also where the end is missing, and `RefusedError`."""
        with self._opened(path, body, withdrawal) as reply:
            for line in reply:
                name, _, data = line.decode().partition(":")
                if name != "data":
                    continue
                if data.strip() == "[DONE]":
                    return
                yield json.loads(data)
            raise GoneError("the answer has no end")

    def answer_to(self, path: str) -> bytes:
        """What it says there to who does not show the token. Raises as `get` does."""
        with self._opened(path, None, shows_token=False) as reply:
            return bytes(reply.read())

    @contextlib.contextmanager
    def _opened(
        self,
        path: str,
        body: Any,
        withdrawal: Withdrawal | None = None,
        *,
        shows_token: bool = True,
    ) -> Iterator[Any]:
        headers = {"Content-Type": "application/json"}
        if shows_token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        connection = _connection(self._url, self._timeout_s)
        try:
            connection.connect()
            with (withdrawal or Withdrawal())._holds(connection.sock):
                connection.request("GET" if data is None else "POST", path, data, headers)
                with connection.getresponse() as reply:
                    if reply.status >= 300:
                        said = reply.read(_SHOWN).decode(errors="replace")
                        if reply.status >= 500:
                            raise FailedError(f"HTTP {reply.status} {said}")
                        raise RefusedError(path, reply.status, said)
                    yield reply
        except (OSError, HTTPException) as error:
            raise GoneError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()


class _UnixConnection(HTTPConnection):
    """HTTP over a socket at a path."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """See `HTTPConnection`."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(url: str, timeout_s: float) -> HTTPConnection:
    if url.startswith(_UNIX):
        return _UnixConnection(url.removeprefix(_UNIX), timeout_s)
    return HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)


def _shut(own: socket.socket) -> None:
    with contextlib.suppress(OSError):
        own.shutdown(socket.SHUT_RDWR)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
