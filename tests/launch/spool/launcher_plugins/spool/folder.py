"""The spool: a folder with a folder for each job, in which every file has one writer.

`job.json` is written by who submits, INDEX.task.json (a job has one task, an array several) by the
worker, INDEX.wish by who wants a task to stop, end or start again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.core import processes
from launcher.core.files import read_json, write_json
from launcher.launch.queue import Ending, QueueJob
from launcher.launch.retry import BusyError
from launcher.launch.spec import AttemptState

VARIABLE = "SPOOL"


class Spool:
    """A spool folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jobs = path / "jobs"

    @classmethod
    def here(cls) -> Spool:
        """The spool of this user; `BusyError` while it is not there."""
        found = cls(Path(os.environ.get(VARIABLE, "/nowhere")))
        if not found.jobs.is_dir():
            raise BusyError(f"no spool: {found.path}", where="Spool", hint=f"set {VARIABLE}")
        return found

    def submit(self, key: Path, runs: list[tuple[Path, int]], **asked: Any) -> str:
        """A job of one run, or an array; `key` is a folder that no other submission has."""
        number = 1 + max((int(name) for name in os.listdir(self.jobs)), default=0)
        while True:
            try:
                (self.jobs / str(number)).mkdir()
                break
            except FileExistsError:
                number += 1
        tasks = [[str(run), attempt] for run, attempt in runs]
        # The job sees what who submits it sees, as elsewhere.
        job = {"key": str(key), "runs": tasks, "environment": dict(os.environ), **asked}
        write_json(self.jobs / str(number) / "job.json", job)
        return str(number)

    def submitted(self, key: Path) -> str | None:
        """Id of the job with this key."""
        found = (number for number, job in self.all() if job["key"] == str(key))
        return next(found, None)

    def all(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id and content of each job, oldest first."""
        for number in sorted(map(int, os.listdir(self.jobs))):
            job = read_json(self.jobs / str(number) / "job.json")
            if job is not None:
                yield str(number), job

    def file(self, task: str, kind: str) -> Path:
        """A file of a task, ID or ID_INDEX."""
        number, _, index = task.partition("_")
        return self.jobs / number / f"{index or 0}.{kind}"

    def wish(self, task: str, what: str) -> None:
        """`stop` with a checkpoint, `end` without, or `again`."""
        write_json(self.file(task, "wish"), {"wish": what})

    def task(self, task: str) -> QueueJob | None:
        """What is known of a task; None if there is no such job."""
        job = read_json(self.file(task, "").parent / "job.json")
        if job is None:
            return None
        raw = read_json(self.file(task, "task.json"), {"state": "queued"})
        ending = Ending(raw.get("ending", "other"))
        return QueueJob(task, AttemptState(raw["state"]), raw["state"], "its turn", ending=ending)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is to be started now."""
        return (self.path / "closed").exists()

    def close(self, value: bool) -> None:
        """Start nothing from now on, or go on."""
        if value:
            (self.path / "closed").touch()
        else:
            (self.path / "closed").unlink(missing_ok=True)

    def has_worker(self) -> bool:
        """Whether a worker does the jobs."""
        raw = read_json(self.path / "worker.json")
        return raw is not None and processes.alive(raw["pid"], raw["time"])

    def sign(self) -> None:
        """This process is the worker."""
        write_json(self.path / "worker.json", {"pid": os.getpid(), "time": time.time()})
