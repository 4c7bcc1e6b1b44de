"""An account behind OpenAI's API on this machine, whose server answers as it should or otherwise.

Nothing that it holds changes by being asked, so a test knows what has to come out.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sqlalchemy.orm import Session

from launcher.serve.db.tables import Event, Job, JobState, Model
from launcher.serve.files import project_files
from launcher.serve.http import access
from launcher.serve.service import Service
from support.workshop import examples

_RESULTS = project_files.RESULTS
KEY = "sk-a-key-that-nobody-may-see"


@dataclass
class Said:
    """An answer other than the right one; `cut`: the connection ends after so many bytes."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    cut: int | None = None


#: From (path, query, how often this path was asked before) to another answer than the right one.
Behaviour = Callable[[str, dict[str, str], int], Said | None]


def _as_it_should(path: str, query: dict[str, str], before: int) -> Said | None:
    return None


@dataclass
class Account:
    """What there is, and what was asked of it."""

    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Path of a list -> its objects, newest first."""
    content: dict[str, bytes] = field(default_factory=dict)
    """File -> what the server sends for it."""
    behave: Behaviour = _as_it_should
    ranges: bool = True
    """Whether content can be asked for from a byte on."""
    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """Path -> how often."""
    keys: set[str | None] = field(default_factory=set)
    scopes: set[tuple[str | None, str | None]] = field(default_factory=set)
    """Organization and project that requests named."""
    at: list[tuple[float, str]] = field(default_factory=list)
    """When each request came."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_file(
        self, name: str, content: bytes, purpose: str = "fine-tune", sent: bytes | None = None
    ) -> None:
        """A file; `sent` is what comes for it, if that is another thing than its content."""
        record = {"id": name, "object": "file", "bytes": len(content), "purpose": purpose}
        ending = "csv" if purpose == "fine-tune-results" else "jsonl"
        record |= {"filename": f"{name}.{ending}", "created_at": 1_700_000_000}
        self.lists.setdefault("/files", []).insert(0, record)
        self.content[name] = content if sent is None else sent

    def add_job(self, name: str, training: str, events: int = 3, **more: Any) -> dict[str, Any]:
        """A job that has succeeded, its events and a checkpoint."""
        number = len(self.lists.setdefault("/fine_tuning/jobs", []))
        numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}
        job = {
            "id": name,
            "object": "fine_tuning.job",
            "created_at": 1_700_000_000 + number,
            "finished_at": 1_700_001_000 + number,
            "status": "succeeded",
            "model": "gpt-4o-mini-2024-07-18",
            "fine_tuned_model": f"ft:gpt-4o-mini-2024-07-18:acme::{name[-4:]}",
            "organization_id": "org-1",
            "training_file": training,
            "validation_file": None,
            "result_files": [],
            "hyperparameters": numbers,
            "method": {"type": "supervised", "supervised": {"hyperparameters": numbers}},
            "trained_tokens": 1000,
            "error": None,
            "seed": number,
            "metadata": None,
            **more,
        }
        self.lists["/fine_tuning/jobs"].insert(0, job)
        base = f"/fine_tuning/jobs/{name}"
        self.lists[f"{base}/events"] = [
            {"id": f"ftevent-{name}-{i}", "created_at": i, "message": f"Step {i}"}
            for i in reversed(range(events))
        ]
        self.lists[f"{base}/checkpoints"] = [
            {"id": f"ftckpt_{name}", "step_number": 10, "fine_tuning_job_id": name}
        ]
        return job

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        """Status and JSON for a path that is no content."""
        if path == "/models":
            return 200, {"object": "list", "data": self.lists.get("/models", [])}
        if path in self.lists:
            found, limit = self.lists[path], int(query.get("limit", 20))
            names = [one["id"] for one in found]
            start = names.index(query["after"]) + 1 if "after" in query else 0
            more = start + limit < len(found)
            page = found[start : start + limit]
            return 200, {"object": "list", "data": page, "has_more": more}
        parent, _, name = path.rpartition("/")
        for one in self.lists.get(parent, []):
            if one["id"] == unquote(name):
                return 200, one
        return 404, {"error": {"message": f"no {path}", "type": "x", "param": None, "code": None}}


def small(jobs: int = 3, events: int = 3) -> Account:
    """An account with jobs, their files, and results in base64 as OpenAI sends them."""
    account = Account()
    account.lists["/models"] = [{"id": "gpt-4o-mini-2024-07-18", "shutdown_date": None}]
    for number in range(jobs):
        name = f"ftjob-{number:04}"
        lines = (json.dumps({"messages": [number, i]}) + "\n" for i in range(20))
        account.add_file(f"file-t{number:04}", "".join(lines).encode())
        table = b"step,train_loss\n1,0.5\n" * (number + 1)
        sent = base64.b64encode(table)
        account.add_file(f"file-r{number:04}", table, "fine-tune-results", sent)
        account.add_job(name, f"file-t{number:04}", events, result_files=[f"file-r{number:04}"])
    account.lists["/evals"] = [{"id": "eval_1", "name": "colours", "created_at": 1}]
    run = {"id": "evalrun_1", "model": "gpt-4o-mini", "status": "completed", "created_at": 2}
    account.lists["/evals/eval_1/runs"] = [run]
    account.lists["/evals/eval_1/runs/evalrun_1/output_items"] = [
        {
            "id": f"outputitem_{i}",
            "created_at": i,
            "datasource_item": {"question": f"What is {i} + {i}?", "reference": str(2 * i)},
            "sample": {
                "input": [{"role": "user", "content": f"What is {i} + {i}?"}],
                "output": [{"role": "assistant", "content": str(2 * i)}],
            },
        }
        for i in range(5)
    ]
    return account


@contextlib.contextmanager
def served(account: Account) -> Iterator[Account]:
    """The account behind `account.url`, which ends in /v1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path.removeprefix("/v1"))
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            with account.lock:
                before = account.asked[path]
                account.asked[path] += 1
                account.keys.add(self.headers.get("Authorization"))
                scope = (self.headers.get(f"OpenAI-{x}") for x in ("Organization", "Project"))
                account.scopes.add(tuple(scope))
                account.at.append((time.monotonic(), path))
            said = account.behave(path, query, before)
            if said is not None and said.body is not None:
                self._send(said.status, said.body, said)
                return
            said = said or Said()
            name = path.removeprefix("/files/").removesuffix("/content")
            if path.endswith("/content") and name in account.content:
                self._content(account.content[name], said)
                return
            status, body = account.answer(path, query)
            self._send(status, body, said)

        def _content(self, content: bytes, said: Said) -> None:
            asked = self.headers.get("Range", "")
            if account.ranges and asked:
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                if start >= len(content):
                    self._send(416, {"error": {"message": "no such range"}}, Said())
                    return
                span = f"bytes {start}-{len(content) - 1}/{len(content)}"
                said.headers["Content-Range"] = span
                self._send(206, content[start:], said)
                return
            self._send(200, content, said)

        def _send(self, status: int, body: Any, said: Said) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(said.status if said.status != 200 else status)
                for name, value in {"Content-Length": str(len(content)), **said.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content if said.cut is None else content[: said.cut])
                if said.cut is not None:
                    self.close_connection = True

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    account.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield account
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fill(home: Path, jobs: int, events: int = 40) -> None:
    """Put finished jobs into the folder of a service, as if the project `demo` had made them.

    Each has a training file, a result, events, and three models; every tenth goes on from the one
    before, every seventh has failed.
    """
    service = Service.open(home)
    with service.database.begin() as session:
        project = access.find_project(session, "demo").id
        for number in range(jobs):
            lines = examples(12).replace(b"colour", f"colour {number}".encode())
            training = _kept(service, session, project, lines, "train.jsonl", "fine-tune")
            table = f"step,train_loss\n1,{number}\n".encode()
            result = _kept(service, session, project, table, "step_metrics.csv", _RESULTS)
            has_failed = number % 7 == 6
            job = _job(number, project, training)
            if has_failed:
                job.state = JobState.failed
                job.error = {"code": "invalid_file_format", "message": "no", "param": None}
            else:
                job.fine_tuned_model = f"ft:tiny:acme::{number:04}"
                job.trained_tokens, job.result_file = 500 + number, result
            session.add(job)
            session.flush()
            for i in range(events):
                about = {"id": f"ftevent-{number}-{i}", "job_id": job.id, "key": f"step-{i}"}
                session.add(Event(**about, type="metrics", message=f"Step {i}", data={"step": i}))
            session.add_all([] if has_failed else _models(job))
    service.database.engine.dispose()


def _job(number: int, project: str, training: str) -> Job:
    base = f"ft:tiny:acme::{number - 1:04}" if number % 10 == 9 else "tiny"
    numbers = {"n_epochs": 1, "batch_size": 6, "learning_rate_multiplier": 1.0}
    return Job(
        id=f"ftjob-{number:04}",
        project_id=project,
        created_at=1_700_000_000 + number,
        finished_at=1_700_001_000 + number,
        state=JobState.succeeded,
        model=base,
        training_file=training,
        asked={**numbers, "model": base, "offer": "tiny"},
        hyperparameters=numbers,
        seed=number,
    )


def _models(job: Job) -> list[Model]:
    return [
        Model(
            name=job.fine_tuned_model + ("" if step == 3 else f":ckpt-step-{step}"),
            project_id=job.project_id,
            job_id=job.id,
            step=step,
            checkpoint_id=f"ftckpt_{job.id}_{step}",
            is_final=step == 3,
        )
        for step in (1, 2, 3)
    ]


def _kept(
    service: Service, session: Session, project: str, content: bytes, filename: str, purpose: str
) -> str:
    with service.store.incoming() as incoming:
        incoming.write(content)
        service.store.prepare(incoming)
        file = project_files.insert(session, service.store, incoming, project, filename, purpose)
        return file.id
