"""A service whose app is asked in this process, with controllers in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import select
from starlette.testclient import TestClient

from launcher.core import processes
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.launch.local import supervisor_file
from launcher.serve.app import create_app
from launcher.serve.db.tables import Event, Job
from launcher.serve.http import access
from launcher.serve.service import Service
from support.ranks import environment

WORDS = ["model=tiny", "optim.lr=5e-3", "data.max_length=128", "data.workers=1"]
ENDED = ("succeeded", "failed", "cancelled")
JOBS = "/v1/fine_tuning/jobs"


def examples(count: int) -> bytes:
    """A training file."""
    words = ("red", "green", "blue", "black", "white")
    turns = (("What colour is {}?", "It is {}."), ("And {}?", "{}, of course."))
    lines = []
    for number in range(count):
        question, answer = turns[number % 2]
        messages = [
            {"role": "user", "content": question.format(number % 5)},
            {"role": "assistant", "content": answer.format(words[number % 5])},
        ]
        lines.append(json.dumps({"messages": messages}) + "\n")
    return "".join(lines).encode()


@dataclass
class Workshop:
    """A service with a client of one project."""

    home: Path
    service: Service
    client: TestClient
    environ: dict[str, str] = field(default_factory=dict)
    controllers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start a controller."""
        with open(self.home / "controller.log", "ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "launcher.serve.jobs.controller",
                    str(self.home),
                    "--every",
                    "0.1",
                ],
                env=environment(**self.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.controllers.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL, as a crash."""
        process.kill()
        process.wait()

    def upload(self, content: bytes, purpose: str = "fine-tune") -> str:
        """A file of the project; returns its id."""
        sent = {"file": ("data.jsonl", content)}
        answer = self.client.post("/v1/files", files=sent, data={"purpose": purpose})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def create(self, file: str | None = None, **asked: Any) -> str:
        """A job of 12 examples unless a file is given; returns its id."""
        file = file or self.upload(examples(12))
        answer = self.client.post(JOBS, json={"training_file": file, "model": "tiny", **asked})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as clients see it."""
        answer = self.client.get(f"{JOBS}/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ask(self, job_id: str, action: str) -> dict[str, Any]:
        """Cancel, pause or resume the job."""
        answer = self.client.post(f"{JOBS}/{job_id}/{action}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def row(self, job_id: str) -> Job:
        """The job as it is kept."""
        with self.service.database.read() as session:
            return session.scalars(select(Job).where(Job.id == job_id)).one()

    def events(self, job_id: str) -> list[Event]:
        """All events, oldest first."""
        chosen = select(Event).where(Event.job_id == job_id).order_by(Event.number)
        with self.service.database.read() as session:
            return list(session.scalars(chosen))

    def steps(self, job_id: str) -> list[int]:
        """The steps that events tell of."""
        return [e.data["step"] for e in self.events(job_id) if e.type == "metrics" and e.data]

    def run(self, job_id: str) -> RunDir:
        """The job's run folder."""
        return RunDir(self.service.runs / job_id)

    def wait(self, condition: Callable[[], Any], what: str, within_s: float = 90) -> Any:
        """The first true value of `condition`."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.05)
        log = (self.home / "controller.log").read_text()[-4000:]
        raise AssertionError(f"waited in vain for {what}:\n{log}")

    def await_status(self, job_id: str, *wanted: str) -> dict[str, Any]:
        """The job once it has one of these states; fails at once in another end state."""

        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            assert job["status"] in wanted or job["status"] not in ENDED, job
            return job if job["status"] in wanted else None

        return dict(self.wait(reached, f"{job_id} {wanted}"))

    def await_idle(self, job_id: str) -> None:
        """Until the controller has nothing more to do for the job."""
        self.wait(lambda: self.row(job_id).owner is None, f"the end of the work on {job_id}")

    def supervisors(self, job_id: str) -> list[int]:
        """Supervisors of the job's run that live, of any attempt."""
        run = self.run(job_id)
        beats = [read_json(supervisor_file(run, attempt)) for attempt in run.attempts()]
        return [b["pid"] for b in beats if b and processes.alive(b["pid"], b["time"])]

    def close(self) -> None:
        """End controllers and runs."""
        for process in self.controllers:
            if process.poll() is None:
                self.kill(process)
        for path in self.service.runs.glob("ftjob-*"):
            for pid in self.supervisors(path.name):
                for child in processes.descendants(pid):
                    processes.send(child, processes.signal.SIGKILL)
                processes.send(pid, processes.signal.SIGKILL)


@contextmanager
def workshop(
    home: Path,
    *words: str,
    database: str | None = None,
    account: str | None = None,
    **environ: str,
) -> Iterator[Any]:
    """A service that offers `tiny`, one job at a time; `words` are added to its overrides.

    `account` is Slurm's for the client's project.
    """
    home.mkdir(parents=True)
    offer = {"overrides": [*WORDS, *words]}
    settings: dict[str, Any] = {"models": {"tiny": offer, "gpt-3.5-turbo": {"alias": "tiny"}}}
    if account is not None:
        settings["projects"] = {"ours": {"account": account}}
    if database is not None:
        settings["database"] = database
    (home / "serve.yaml").write_text(yaml.safe_dump(settings))
    service = Service.open(home)
    key = access.create_key(service.database, "test", "ours")
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(service), headers=headers) as client:
        made = Workshop(home, service, client, environ)
        try:
            yield made
        finally:
            made.close()
            service.database.engine.dispose()
