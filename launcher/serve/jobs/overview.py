"""What the page shows of jobs beyond OpenAI's members: how far, how long, behind whom, of what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from launcher.core.rundir import RunDir
from launcher.runs.status import last_record
from launcher.serve.chat import models
from launcher.serve.db.tables import Event, File, Job, JobState, Model, Project
from launcher.serve.files import project_files
from launcher.serve.jobs import curves, ownership, wire_jobs
from launcher.serve.service import Service

_EVENTS = 100
#: Of jobs that have ended: nothing about them changes.
_REMEMBERED = 2000


class Glances:
    """How far the runs of jobs have come. Safe to use from several threads."""

    def __init__(self) -> None:
        self._ended: dict[str, dict[str, Any]] = {}

    def of(self, service: Service, job: Job) -> dict[str, Any]:
        """`progress`: step and total_steps, null before the first; `spark`: some of the losses."""
        if job.id in self._ended:
            return self._ended[job.id]
        run = RunDir(service.runs / job.id)
        record, steps = last_record(run.metrics), run.status().steps if run.exists() else None
        known = record is not None and steps is not None
        found = {
            "progress": {"step": record["step"], "total_steps": steps}
            if record and known
            else None,
            "spark": curves.spark(run.metrics),
        }
        if job.state.is_final and job.wanted is None:
            if len(self._ended) >= _REMEMBERED:
                self._ended.clear()
            self._ended[job.id] = found
        return found


class Filter:
    """Which jobs of a project somebody wants to see."""

    def __init__(
        self, text: str, states: Sequence[JobState], model: str, labels: Sequence[str]
    ) -> None:
        """`text`: words that all stand somewhere in a job; `model`: the base's or the tuned name;
        `labels`: of metadata, KEY or KEY=VALUE."""
        self._words = text.casefold().split()
        self._states, self._model, self._labels = states, model, labels

    def conditions(self) -> list[ColumnElement[bool]]:
        """What the database can look after."""
        found: list[ColumnElement[bool]] = []
        if self._states:
            found.append(Job.state.in_(self._states))
        if self._model:
            found.append((Job.model == self._model) | (Job.fine_tuned_model == self._model))
        return found

    @property
    def reads_jobs(self) -> bool:
        """Whether `keeps` says more than `conditions`."""
        return bool(self._words or self._labels)

    def keeps(self, job: Job, names: dict[str, str]) -> bool:
        """The rest; `names` are those of files."""
        labels = job.labels or {}
        for label in self._labels:
            # Keys may have "=" in them.
            if label not in labels and label not in map("=".join, labels.items()):
                return False
        if not self._words:
            return True
        texts = (
            *(job.id, job.model, job.fine_tuned_model, job.suffix, job.state.value),
            *(names.get(file or "") for file in (job.training_file, job.validation_file)),
            *(job.error or {}).values(),
            *labels.keys(),
            *labels.values(),
        )
        found = "\n".join(text for text in texts if text).casefold()
        return all(word in found for word in self._words)


def jobs(
    session: Session,
    service: Service,
    glances: Glances,
    project_id: str,
    wanted: Filter,
    limit: int,
) -> dict[str, Any]:
    """The newest jobs that are wanted, how many there are, and what one can choose from."""
    own = Job.project_id == project_id
    chosen = select(Job).where(own, *wanted.conditions()).order_by(Job.number.desc())
    if wanted.reads_jobs:
        names = _names(session, project_id, None)
        kept = [job for job in session.scalars(chosen) if wanted.keeps(job, names)]
        found, total = kept[:limit], len(kept)
    else:
        found = list(session.scalars(chosen.limit(limit)))
        total = session.scalar(select(func.count()).where(own, *wanted.conditions())) or 0
    states = select(Job.state, func.count()).where(own).group_by(Job.state)
    return {
        "object": "list",
        "project": session.scalar(select(Project.name).where(Project.id == project_id)),
        "data": rows(session, service, glances, project_id, found),
        "total": total,
        "states": {state.value: count for state, count in session.execute(states)},
        "models": sorted(session.scalars(select(Job.model).where(own).distinct())),
    }


def rows(
    session: Session, service: Service, glances: Glances, project_id: str, found: Iterable[Job]
) -> list[dict[str, Any]]:
    """Jobs as clients see them, with `files` (id -> name), `queue`, `progress` and `spark`."""
    found = list(found)
    ids = {file for job in found for file in (job.training_file, job.validation_file) if file}
    names = _names(session, project_id, ids)
    line: dict[str, int] = {}
    if any(job.state is JobState.queued for job in found):
        line = ownership.line(session, lambda name: service.site.quota_of(name).running_jobs)
    return [
        {
            **wire_jobs.job_view(job, service.site.organization),
            "status": job.state.value,
            "files": {
                id: names[id] for id in (job.training_file, job.validation_file) if id in names
            },
            "queue": _place(line, job),
            **glances.of(service, job),
        }
        for job in found
    ]


def messages(session: Session, job: Job) -> list[dict[str, Any]]:
    """The newest events of a job that are no steps, newest first."""
    wanted = select(Event).where(Event.job_id == job.id, Event.type == "message")
    found = session.scalars(wanted.order_by(Event.number.desc()).limit(_EVENTS))
    return [wire_jobs.event_view(event) for event in found]


def made_models(session: Session, service: Service, project_id: str) -> list[dict[str, Any]]:
    """Fine-tuned models and checkpoints, newest first: of which job, and which jobs need them."""
    wanted = (
        select(Model, Job)
        .join(Job, Model.job_id == Job.id)
        .where(Model.project_id == project_id, Model.deleted_at.is_(None))
        .order_by(Job.number.desc(), Model.step.desc())
    )
    pairs = [(model, job) for model, job in session.execute(wanted)]
    users = models.in_use(session, [model.name for model, _ in pairs])
    return [
        {
            "id": model.name,
            "created_at": model.created_at,
            "job": job.id,
            "suffix": job.suffix,
            "base": job.model,
            "step": model.step,
            "is_final": model.is_final,
            "metrics": model.metrics,
            "used_by": users.get(model.name, []),
        }
        for model, job in pairs
    ]


def _place(line: dict[str, int], job: Job) -> dict[str, int] | None:
    """Where a job stands in the line of all projects; null if it does not wait here."""
    place = line.get(job.id)
    return None if place is None else {"position": place, "length": len(line)}


def _names(session: Session, project_id: str, ids: Iterable[str] | None) -> dict[str, str]:
    wanted = select(File.id, File.filename).where(File.project_id == project_id)
    if ids is None:
        wanted = wanted.where(File.purpose == project_files.TRAINING)
    else:
        wanted = wanted.where(File.id.in_(list(ids)))
    return {row.id: row.filename for row in session.execute(wanted)}
