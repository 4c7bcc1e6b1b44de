"""The models that a project may name: those that the site offers, and those that its jobs made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from launcher.serve import naming
from launcher.serve.chat.pool import ModelSource
from launcher.serve.db.database import comparable
from launcher.serve.db.tables import Job, JobState, Model, Permission, Project
from launcher.serve.http.failure import ApiError, missing_model
from launcher.serve.site import Site

_OTHERS = "a job of another project"


def listed(session: Session, site: Site, project_id: str) -> list[dict[str, Any]]:
    """All of them as clients see them, the site's first, then the newest."""
    made = session.scalars(
        select(Model)
        .where(_usable(project_id), Model.deleted_at.is_(None))
        .order_by(Model.created_at.desc(), Model.step.desc(), Model.name)
    )
    since = _known_since(session, project_id)
    offered = [_wire(name, since, "system") for name in site.models]
    return offered + [_wire(model.name, model.created_at, site.organization) for model in made]


def retrieved(session: Session, site: Site, project_id: str, name: str) -> dict[str, Any]:
    """One as clients see it; 404 in the envelope if there is none of this name."""
    if name in site.models:
        return _wire(name, _known_since(session, project_id), "system")
    model = made_by_job(session, project_id, name)
    return _wire(model.name, model.created_at, site.organization)


def made_by_job(session: Session, project_id: str, name: str) -> Model:
    """A fine-tuned model or checkpoint of the project, or one that it may use; 404 in the envelope
    without one."""
    wanted = select(Model).where(Model.name == name, _usable(project_id))
    model = session.scalar(wanted.where(Model.deleted_at.is_(None)))
    if model is None:
        raise missing_model(name)
    return model


def of_any_project(session: Session, name: str) -> Model:
    """A fine-tuned model or checkpoint, whoever has made it; 404 in the envelope without one."""
    model = session.get(Model, comparable(name))
    if model is None or model.deleted_at:
        raise missing_model(name)
    return model


def _usable(project_id: str) -> ColumnElement[bool]:
    """Whether a model is the project's, or one that it has a permission for."""
    permitted = select(Permission.model).where(Permission.project_id == project_id)
    return or_(Model.project_id == project_id, Model.name.in_(permitted))


def startable(session: Session, site: Site, project_id: str, name: str) -> tuple[str, str]:
    """The model that a job starts from: one that the site offers, aliases resolved, or a fine-tuned
    one that the project may use; and the offer whose settings it has. 400 in the envelope for
    another name."""
    offered = site.resolve(name)
    if offered is not None:
        return offered, offered
    try:
        found = made_by_job(session, project_id, name)
        job = session.scalar(select(Job).where(Job.id == found.job_id))
        return found.name, naming.offer_of(job) if job else naming.base_of(found.name)
    except ApiError as error:
        names = ", ".join(site.models) or "none"
        raise ApiError(
            400,
            f"Model {name} is not available for fine-tuning or does not exist."
            f" Models offered here: {names}.",
            param="model",
            code="model_not_available",
        ) from error


def in_use(session: Session, names: Sequence[str]) -> dict[str, list[str]]:
    """Model -> ids of the jobs that start from it and have not ended; of those of other projects
    no more than that there are some."""
    ended = [state for state in JobState if state.is_final]
    wanted = (
        select(Job.model, Job.id, Job.project_id == Model.project_id)
        .join(Model, Model.name == Job.model)
        .where(Job.model.in_(names), Job.state.not_in(ended))
    )
    found: dict[str, list[str]] = {}
    for model, job, is_own in session.execute(wanted.order_by(Job.number)):
        users = found.setdefault(model, [])
        if is_own or _OTHERS not in users:
            users.append(job if is_own else _OTHERS)
    return found


def source(session: Session, site: Site, project_id: str, name: str) -> ModelSource:
    """Where the model of this name is opened from; 404 in the envelope without one."""
    offered = site.resolve(name)
    if offered is not None:
        return ModelSource(overrides=(*site.overrides, *site.models[offered].overrides))
    return source_of(made_by_job(session, project_id, name))


def source_of(model: Model) -> ModelSource:
    """Where a job's model is opened from: the last one from the run's export."""
    return ModelSource(model.job_id, None if model.is_final else model.step)


def _known_since(session: Session, project_id: str) -> int:
    """What the site offers is as old as the project: nothing newer happens to it."""
    project = session.get(Project, project_id)
    return project.created_at if project else 0


def _wire(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
