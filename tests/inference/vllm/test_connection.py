"""What is made of a server's answers: whole, piece by piece, cut, refused and failed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launcher.vllm.connection import FailedError, GoneError, RefusedError, ServerConnection

PIECES = [b'data: {"a": 1}\n\n', b": a remark\n\n", b'data: {"a": 2}\n\n']
END = b"data: [DONE]\n\n"


class Handler(BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        path, _, status = self.path.partition("/status/")
        self.send_response(int(status or 200))
        self.end_headers()
        if path == "/events":
            self.wfile.write(b"".join([*PIECES, END, b'data: {"a": 3}\n\n']))
        elif path == "/cut":
            self.wfile.write(b"".join(PIECES))
        elif path == "/word":
            self.wfile.write(b"done")
        else:
            told = {"token": self.headers["authorization"], "body": json.loads(body)}
            self.wfile.write(json.dumps(told).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_who_asks_shows_the_token_and_no_proxy_is_asked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    found = ServerConnection(url, "secret", 5).post("/", {"b": 1})
    assert found == {"token": "Bearer secret", "body": {"b": 1}}
    assert ServerConnection(url, "secret", 5).post("/word") == {}


def test_a_stream_ends_at_its_last_word_and_not_before(url: str) -> None:
    connection = ServerConnection(url, "secret", 5)
    assert [*connection.stream("/events", {})] == [{"a": 1}, {"a": 2}]
    pieces = connection.stream("/cut", {})
    assert [next(pieces), next(pieces)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(GoneError, match="no end"):
        next(pieces)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, RefusedError), (404, RefusedError), (500, FailedError)]
)
def test_what_is_refused_is_told_from_what_has_failed(
    url: str, status: int, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=f"HTTP {status}"):
        ServerConnection(url, "secret", 5).post(f"/status/{status}")


def test_nobody_there_is_gone(url: str) -> None:
    with pytest.raises(GoneError) as raised:
        ServerConnection("http://127.0.0.1:1", "secret", 5).post("/")
    assert not isinstance(raised.value, FailedError)
