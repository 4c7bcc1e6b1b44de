"""Pages about a job for people: what its run says of itself, and what is in its data.

A page is opened by a link of its own that is good for minutes, since a frame sends no key.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from sqlalchemy import select

from launcher import entry
from launcher.config.schema.variants import GRADER
from launcher.core.files import read_json
from launcher.core.processes import end_with_parent
from launcher.core.rundir import RunDir
from launcher.core.runtime import environment_without_ranks
from launcher.runs.start import working_folder
from launcher.serve.db.tables import Job
from launcher.serve.http import links
from launcher.serve.service import Service

#: Kind of a page -> its title.
TITLES = {"run": "Run: curves, comparison, answers", "data": "Training data: what is in it"}
LINK_S = 300
_PURPOSE = "report"


def read(link: str, secret: bytes) -> tuple[str, str] | None:
    """Job and kind of the page that a link opens; None if it is not good."""
    words = links.read(link, secret, 3)
    return (words[1], words[2]) if words and words[0] == _PURPOSE else None


def offered(service: Service, job: str) -> list[dict[str, str]]:
    """The pages that there are of a job, or can be made: kind, title, url."""
    run = RunDir(service.runs / job)
    there = {"run": run.report.is_file(), "data": run.exists()}
    secret, until = links.secret_of(service.home), int(time.time()) + LINK_S
    return [
        {
            "kind": kind,
            "title": title,
            "url": f"reports/{links.signed((_PURPOSE, job, kind), until, secret)}",
        }
        for kind, title in TITLES.items()
        if there[kind]
    ]


def comparison(service: Service, job: str) -> list[dict[str, Any]]:
    """Tuned model against base on held-out data, a row a metric; empty before the job's end."""
    run = RunDir(service.runs / job)
    metrics = read_json(run.eval / "comparison.json", {}).get("metrics", {})
    return [
        {"metric": _name(name), **{key: found[key] for key in ("base", "tuned", "verdict")}}
        for name, found in metrics.items()
        if found.get("base") is not None and found.get("tuned") is not None
    ]


def _name(metric: str) -> str:
    """A metric as clients are to see it: a grader's is called by the path of its file."""
    return "reward" if metric.startswith(GRADER) else metric


class DataReports:
    """Reports on the data of jobs: made when first looked at, one of a project at a time, and
    kept."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turns: dict[str, asyncio.Lock] = {}

    async def page(self, job: str) -> Path | None:
        """The report's file; None if it cannot be made, why is on stderr."""
        wanted = select(Job.project_id).where(Job.id == job)
        project = await self._service.database.ask(lambda session: session.scalar(wanted)) or ""
        folder = self._service.home / "reports" / job
        page = folder / "report.html"
        if page.is_file():
            return page
        async with self._turns.setdefault(project, asyncio.Lock()):
            if not page.is_file():
                await self._make(RunDir(self._service.runs / job), folder)
        return page if page.is_file() else None

    async def _make(self, run: RunDir, folder: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            *entry.command("launcher.curate.report", str(run)),
            *("--out", str(folder), "--profile", "openai"),
            cwd=working_folder(run),
            env=environment_without_ranks(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            preexec_fn=end_with_parent(),
        )
        try:
            await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
