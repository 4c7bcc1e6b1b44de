"""Pages about a job for people: what its run says of itself, and what is in its data.

A page is opened by a link of its own that is good for minutes, since a frame sends no key.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from launcher.api.service import Service
from launcher.api.tables import Job
from launcher.jobs.start import working_folder
from launcher.launch.processes import end_with_parent
from launcher.rundir import RunDir, read_json
from launcher.runtime import environment_without_ranks

#: Kind of a page -> its title.
TITLES = {"run": "Run: curves, comparison, answers", "data": "Training data: what is in it"}
LINK_S = 300
_KEY_FILE = "links.key"


@dataclass(frozen=True, slots=True)
class Link:
    """A link to a page, until a time in Unix seconds."""

    job: str
    kind: str
    until: int

    def signed(self, secret: bytes) -> str:
        """As it stands in an address."""
        text = f"{self.job} {self.kind} {self.until}".encode()
        return f"{_encoded(text)}.{_encoded(hmac.digest(secret, text, 'sha256'))}"

    @classmethod
    def read(cls, signed: str, secret: bytes) -> Link | None:
        """The link; None if it is forged, broken or too old."""
        text, _, proof = signed.partition(".")
        try:
            raw, given = _decoded(text), _decoded(proof)
        except (binascii.Error, ValueError):
            return None
        if not hmac.compare_digest(hmac.digest(secret, raw, "sha256"), given):
            return None
        job, kind, until = raw.decode().split(" ")
        link = cls(job, kind, int(until))
        return link if link.until > time.time() else None


def secret_of(home: Path) -> bytes:
    """What signs the links of a service; made once, and the same for all its servers."""
    path = home / _KEY_FILE
    if not path.exists():
        temporary = home / f".{_KEY_FILE}.{secrets.token_hex(8)}"
        temporary.touch(0o600)
        temporary.write_bytes(secrets.token_bytes(32))
        try:
            os.link(temporary, path)  # whoever is first
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_bytes()


def links(service: Service, job: str) -> list[dict[str, str]]:
    """The pages that there are of a job, or can be made: kind, title, url."""
    run = RunDir(service.runs / job)
    there = {"run": run.report.is_file(), "data": run.exists()}
    secret, until = secret_of(service.home), int(time.time()) + LINK_S
    return [
        {
            "kind": kind,
            "title": title,
            "url": f"reports/{Link(job, kind, until).signed(secret)}",
        }
        for kind, title in TITLES.items()
        if there[kind]
    ]


def comparison(service: Service, job: str) -> list[dict[str, Any]]:
    """Tuned model against base on held-out data, a row a metric; empty before the job's end."""
    run = RunDir(service.runs / job)
    metrics = read_json(run.eval / "comparison.json", {}).get("metrics", {})
    return [
        {"metric": name, **{key: found[key] for key in ("base", "tuned", "verdict")}}
        for name, found in metrics.items()
        if found.get("base") is not None and found.get("tuned") is not None
    ]


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
        async with self._turns.setdefault(project, asyncio.Lock()):
            if not page.is_file():
                await self._make(RunDir(self._service.runs / job), folder)
        return page if page.is_file() else None

    async def _make(self, run: RunDir, folder: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "launcher.curate.report", str(run)),
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


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
