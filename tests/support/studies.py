"""Studies of two models, their real server, and judges who vote over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from launcher.ab.study import AnswerPair, Study
from support.project import LAUNCHER
from support.ranks import environment

#: One for all: a client loads the certificates of the world, and none is needed here.
CLIENT = httpx2.Client(
    verify=False, trust_env=False, timeout=60, limits=httpx2.Limits(max_keepalive_connections=0)
)
JSON = {b"Content-Type": b"application/json"}
QUESTION = "Which answer is better?"


def make_study(folder: Path, count: int = 12) -> Study:
    """A study in which A's answers begin with "first" and B's with "second"."""
    items = [AnswerPair(f"prompt {i}", f"first {i}", f"second {i}") for i in range(count)]
    return Study.create(folder, ("model-one", "model-two"), items, QUESTION)


@dataclass
class Server:
    """A process of ours that serves; `url` ends without a slash."""

    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """As a power cut does."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def serving(*words: object, log: Path) -> Iterator[Server]:
    """`launcher ab ...` as long as the block runs; it must end cleanly unless it was killed."""
    with open(log, "ab") as stderr:
        process = subprocess.Popen(
            [*LAUNCHER, "ab", *map(str, words)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), log.read_text()
        yield Server(url, process)
    finally:
        process.terminate()
        code = process.wait(20)
        process.stdout.close()
    assert code in (0, -signal.SIGKILL, -signal.SIGTERM), log.read_text()


@dataclass
class Voter:
    """A judge's browser, without the browser."""

    url: str
    token: str

    def ask(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """One request; any answer will do."""
        # In bytes, so that a forged one may be anything.
        headers = {b"Authorization": f"Bearer {self.token}".strip().encode(), **JSON}
        content = None if body is None else json.dumps(body)
        return CLIENT.request(method, f"{self.url}/api/{path}", content=content, headers=headers)

    def study(self) -> dict[str, Any]:
        """What the page starts with."""
        answer = self.ask("GET", "study")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def vote(self, item: int, choice: str, comment: str = "") -> None:
        """A vote that must be acknowledged."""
        body = {"choice": choice, "comment": comment, "seconds": 1.5}
        answer = self.ask("PUT", f"votes/{item}", body)
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"saved": True}


def write_lines(path: Path, *records: object) -> Path:
    """JSON Lines; a text stands as it is."""
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("\n".join(lines) + "\n")
    return path
