"""An OpenAI-compatible endpoint on this machine that judges as it is told, or misbehaves."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: A judge's reply, the body of one as it is, or (HTTP status, headers).
Said = str | bytes | tuple[int, dict[str, str]]
#: What a judge says to (prompt, first answer, second answer).
Judge = Callable[[str, str, str], Said]


@dataclass
class Served:
    """A running endpoint, and what it was asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0


def longer(prompt: str, first: str, second: str) -> str:
    """Prefers the longer answer."""
    if len(first) == len(second):
        return "They are alike.\nVerdict: tie"
    return f"Length.\n**Verdict: {1 if len(first) > len(second) else 2}**"


def _between(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    return found[1] if found else ""


@contextlib.contextmanager
def serve(judge: Judge = longer, delay_s: float = 0.0) -> Iterator[Served]:
    """An endpoint whose replies `judge` gives, each after `delay_s`."""
    served, lock, busy = Served(""), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                busy[0] += 1
                served.requests.append(body | {"path": self.path})
                served.keys.append(self.headers.get("Authorization"))
                served.most_at_once = max(served.most_at_once, busy[0])
            time.sleep(delay_s)
            text = body["messages"][0]["content"]
            said = judge(*(_between(text, tag) for tag in ("prompt", "answer_1", "answer_2")))
            with lock:
                busy[0] -= 1
            with contextlib.suppress(ConnectionError):
                self._reply(said)

        def _reply(self, said: Said) -> None:
            status, headers = said if isinstance(said, tuple) else (200, {})
            content = json.dumps({"choices": [{"message": {"content": str(said)}}]}).encode()
            content = said if isinstance(said, bytes) else content
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
