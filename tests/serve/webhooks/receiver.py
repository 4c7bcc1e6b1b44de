"""A server that is told what happens, and answers as a test wants."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Received:
    """A request."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Receiver:
    """What has come so far, at which address."""

    url: str = ""
    requests: list[Received] = field(default_factory=list)
    status: Callable[[int], int] = lambda number: 200
    """Answer to the request of a number, from 0; a negative one is no answer for so many
    seconds."""


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of this host."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            number = len(receiver.requests)
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.requests.append(Received(self.path, headers, body))
            status = receiver.status(number)
            if status < 0:
                time.sleep(-status)
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
