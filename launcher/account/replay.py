"""Jobs of an account as jobs of a service's folder: planned, or run to their ends.

They keep their ids, and their models the names that they had, so that code which names a model
goes on working with `launcher serve --home` on that folder. A command that was killed goes on:
what has been begun stands in the service's database.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from launcher import entry
from launcher.account.layout import RESULT, Folder, KeptContent
from launcher.account.mapping import Settings
from launcher.account.prospect import speeds
from launcher.account.succession import JobLeftOut, Successor
from launcher.core.console import duration
from launcher.core.errors import ConfigError, DataError, LauncherError
from launcher.core.files import read_json, storage_errors, write_atomic, write_json
from launcher.core.processes import end_with_parent
from launcher.report.renderer import visible
from launcher.serve import permissions
from launcher.serve import site as sites
from launcher.serve.db.tables import Event, File, Job, JobState, Model, now
from launcher.serve.files import project_files
from launcher.serve.http import access
from launcher.serve.jobs import journal
from launcher.serve.jobs.journal import Note
from launcher.serve.service import Service

LOG = "replay.log"
_PIECE = 1 << 20
_LOOK_S, _SAY_EVERY_S = 0.5, 30.0
#: Ends of the controller without a step of any job, after which it is given up.
_MOST_ENDS = 5


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """One command at a time works on the jobs in `out`, which is made; `ConfigError` while another
    one does."""
    with permissions.umask(), storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with Folder(out).lock():
        yield


class Replay:
    """The jobs of one command in a service's folder."""

    def __init__(
        self,
        found: Settings,
        jobs: Sequence[Successor],
        left: Sequence[JobLeftOut],
        out: Path,
        project: str,
        say: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called whenever what is told in `replay.json` is new."""
        self._jobs, self._left, self._out, self._say = jobs, left, out, say
        self._project, self._changed = project, changed
        if not (out / sites.FILE).is_file():
            with permissions.umask(), storage_errors(out):
                write_atomic(out / sites.FILE, found.text)
        self._service = Service.open(out)
        with self._service.database.begin() as session:
            self._project_id = access.find_project(session, project).id
        self._states: dict[str, JobState] = {}
        self._skipped: dict[str, str] = {}
        self._said = 0.0

    def forget(self) -> None:
        """Let jobs that have ended without a model here begin anew: rows and run folders go."""
        names = [job.id for job in self._jobs]
        ended = (JobState.failed, JobState.cancelled)
        with self._service.database.begin() as session:
            wanted = select(Job.id).where(
                Job.id.in_(names), Job.state.in_(ended), Job.project_id == self._project_id
            )
            # What a controller still has to end has an owner.
            found = list(session.scalars(wanted.where(Job.owner.is_(None))))
            for name in found:
                for kind in ("runs", "data"):
                    shutil.rmtree(self._out / kind / name, ignore_errors=True)
            for table in (Event, Model):
                session.execute(delete(table).where(table.job_id.in_(found)))
            session.execute(delete(Job).where(Job.id.in_(found)))

    def run(self) -> dict[str, Any]:
        """Begin what is not begun, and follow all to their ends; returns what became of them.

        Jobs that run when this is interrupted go on. Raises `DataError` for a file that has
        changed since it was pulled.
        """
        controller: subprocess.Popen[bytes] | None = None
        ends = 0
        try:
            while True:
                is_news = self._advance()
                if self._is_done():
                    return self._result()
                if controller is None or controller.poll() is not None:
                    ends = 0 if is_news else ends + 1
                    if controller is not None and ends > _MOST_ENDS:
                        found = "what works on jobs ends again and again"
                        raise LauncherError(found, hint=f"see the end of {self._out / LOG}")
                    controller = self._control()
                if is_news:
                    self._result()
                time.sleep(_LOOK_S)
        finally:
            if controller is not None:
                controller.terminate()
                controller.wait()
            self._service.database.engine.dispose()

    def _control(self) -> subprocess.Popen[bytes]:
        with open(self._out / LOG, "ab") as log:
            return subprocess.Popen(  # noqa: S603
                [*entry.command("launcher.serve.jobs.controller"), str(self._out.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent(),
                start_new_session=True,  # Ctrl-C is for this process, which ends it
            )

    def _advance(self) -> bool:
        """Look at all jobs and begin those whose turn it is; whether anything has changed."""
        before = dict(self._states), len(self._skipped)
        names = [job.id for job in self._jobs]
        with self._service.database.read() as session:
            wanted = select(Job.id, Job.state, Job.project_id).where(Job.id.in_(names))
            rows = session.execute(wanted).all()
        for name, state, project in rows:
            if project != self._project_id:
                hint = "name another --to, or the --project of the first time"
                raise ConfigError(f"{name} belongs to another project", where="--to", hint=hint)
            if self._states.get(name) is not state:
                self._say(f"{name}: {state.value}")
            self._states[name] = state
        for job in self._jobs:
            if job.id not in self._states and job.id not in self._skipped:
                self._begin(job)
        self._tell()
        return before != (self._states, len(self._skipped))

    def _begin(self, job: Successor) -> None:
        if job.parent is not None:
            state = self._states.get(job.parent)
            if job.parent in self._skipped or (
                state is not None and state.is_final and state is not JobState.succeeded
            ):
                self._skipped[job.id] = f"it starts from the model of {job.parent}, which has none"
                return
            if state is not JobState.succeeded:
                return
        base = self._origin(job)
        if job.id in self._skipped:
            return
        for name, content in (
            (job.asked.training_file, job.training),
            (job.asked.validation_file, job.validation),
        ):
            if name is not None and content is not None:
                self._keep(name, content)
        with self._service.database.begin() as session:
            if session.scalar(select(Job.id).where(Job.id == job.id)) is None:
                session.add(job.row(self._project_id, base))
                session.flush()
                journal.write(
                    session, job.id, [Note("created", f"Created fine-tuning job: {job.id}")]
                )

    def _origin(self, job: Successor) -> str | None:
        """The checkpoint here that stands for the one that the job starts from: as many before the
        last one. None if it starts from no job's model."""
        if job.parent is None:
            return None
        with self._service.database.read() as session:
            wanted = select(Model.name).where(Model.job_id == job.parent)
            names = list(session.scalars(wanted.order_by(Model.step.desc())))
        if len(names) <= job.before_last:
            self._skipped[job.id] = (
                f"it starts from checkpoint {job.before_last} before the last of {job.parent},"
                f" which has {len(names)} here"
            )
            return None
        return names[job.before_last]

    def _keep(self, name: str, content: KeptContent) -> None:
        """Have the file in the service under its id; once."""
        service = self._service
        with service.database.read() as session:
            wanted = select(File.sha256, File.project_id).where(File.id == name)
            known = session.execute(wanted).one_or_none()
        if known is not None:
            if tuple(known) != (content.sha256, self._project_id):
                found = f"{name} has another content there, or is of another project"
                hint = "name another --to, or the --project of the first time"
                raise ConfigError(found, where="--to", hint=hint)
            return
        with service.store.incoming() as incoming:
            with storage_errors(content.path), open(content.path, "rb") as file:
                while piece := file.read(_PIECE):
                    incoming.write(piece)
            if incoming.sha256 != content.sha256:
                raise DataError(
                    "the file has changed since it was pulled",
                    where=str(content.path),
                    hint="pull again: what differs from its SHA-256 is read anew",
                )
            service.store.prepare(incoming)
            with service.database.begin() as session:
                project_files.keep(session, service.store, incoming)
                session.add(self._row(name, content))

    def _row(self, name: str, content: KeptContent) -> File:
        record = read_json(content.path.parent / "record.json", {})
        born = record.get("created_at")
        return File(
            id=name,
            project_id=self._project_id,
            sha256=content.sha256,
            bytes=content.bytes,
            filename=str(record.get("filename") or content.path.name),
            purpose=project_files.TRAINING,
            created_at=born if isinstance(born, int) else now(),
        )

    def _is_done(self) -> bool:
        ended = sum(state.is_final for state in self._states.values())
        return ended + len(self._skipped) == len(self._jobs)

    def _tell(self) -> None:
        if time.monotonic() - self._said < _SAY_EVERY_S:
            return
        self._said = time.monotonic()
        done = sum(state.is_final for state in self._states.values())
        known, left_s = speeds(self._out), 0.0
        for job in self._jobs:
            state = self._states.get(job.id)
            if (state is None or not state.is_final) and job.id not in self._skipped:
                # As if each had its whole way before it.
                epochs = _number(job.record, "n_epochs")
                left_s += known.get(job.offer, 0.0) * job.examples * epochs
        about = f", about {duration(left_s)} of training left" if left_s else ""
        self._say(f"{done:,} of {len(self._jobs):,} jobs have ended{about}")

    def _result(self) -> dict[str, Any]:
        """What became of the jobs; also in `replay.json`, beside those of other commands."""
        rows = []
        with self._service.database.read() as session:
            for job in self._jobs:
                row = session.scalar(select(Job).where(Job.id == job.id))
                rows.append(self._told(session, job, row))
        left = [{"id": one.id, "why": one.why} for one in self._left]
        before = read_json(self._out / RESULT, {})
        known = {row["id"]: row for row in [*before.get("jobs", ()), *rows]}
        others = {one["id"]: one for one in [*before.get("left_out", ()), *left]}
        all_left = [one for name, one in others.items() if name not in known]
        about = {"project": self._project, "jobs": list(known.values()), "left_out": all_left}
        write_json(self._out / RESULT, about)
        self._changed()
        return {"project": self._project, "jobs": rows, "left_out": left}

    def _told(self, session: Session, job: Successor, row: Job | None) -> dict[str, Any]:
        about = {"id": job.id, "offer": job.offer, "after": job.parent}
        if row is None:
            why = self._skipped.get(job.id)
            state = "waiting" if why is None else "not begun"
            return {**about, "state": state, "model": None, "error": why, "run": None}
        begun = select(Event.created_at).where(
            Event.job_id == job.id, Event.key == journal.STARTED.key
        )
        start = session.scalar(begun)
        seconds = None
        if row.state is JobState.succeeded and start is not None and row.finished_at is not None:
            seconds = max(1, row.finished_at - start)
        epochs = _number({"hyperparameters": row.hyperparameters}, "n_epochs")
        return {
            **about,
            "state": row.state.value,
            "model": row.fine_tuned_model,
            "error": row.error["message"] if row.error else None,
            "run": str(self._service.runs / job.id),
            "seconds": seconds,
            "work": job.examples * epochs,
        }


def _number(record: Mapping[str, Any], name: str) -> float:
    found = (record.get("hyperparameters") or {}).get(name)
    return float(found) if isinstance(found, int | float) else 1.0


def told_result(made: Mapping[str, Any]) -> str:
    """What became of the jobs, for a terminal."""
    lines = []
    for row in made["jobs"]:
        what = row["model"] or row["error"] or ""
        lines.append(f"{row['id']}  {row['state']}  {what}".rstrip())
    lines += [f"{one['id']}  left out: {one['why']}" for one in made["left_out"]]
    return visible("\n".join(lines))
