"""/v1/fine_tuning/checkpoints/{model}/permissions: projects that may use another's model; for admin
keys alone."""

# Annotations are not postponed here: FastAPI reads them.
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import select

from launcher.serve.chat import models
from launcher.serve.db.database import Database, comparable, new_id
from launcher.serve.db.tables import Permission, Project
from launcher.serve.http import paging, wire
from launcher.serve.http.access import Administering, Served
from launcher.serve.http.failure import ApiError
from launcher.serve.routes.jobs import After, Limit

router = APIRouter(prefix="/v1/fine_tuning/checkpoints/{model}/permissions", tags=["permissions"])


class NewPermissions(wire.RequestBody):
    """Body of POST."""

    project_ids: Annotated[
        list[Annotated[str, Field(max_length=100)]], Field(min_length=1, max_length=1000)
    ]


class PermissionView(BaseModel):
    """That a project may use a model."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


@router.post("", response_model=wire.Bounded[PermissionView])
def create(
    model: str, asked: NewPermissions, admin: Administering, service: Served
) -> dict[str, Any]:
    """Let projects use the model; those that may already keep what they have."""
    with service.database.begin() as session:
        models.of_any_project(session, model)
        Database.lock(session, f"permissions {model}")
        known = {one.project_id: one for one in session.scalars(_of(model))}
        for project in dict.fromkeys(asked.project_ids):
            if session.get(Project, comparable(project)) is None:
                raise ApiError(400, f"No such project: {project}", param="project_ids")
            if project not in known:
                known[project] = Permission(id=new_id("cp_"), model=model, project_id=project)
                session.add(known[project])
        session.flush()
        made = [_view(known[project]) for project in dict.fromkeys(asked.project_ids)]
    return paging.as_list(made, has_more=False)


@router.get("", response_model=wire.Bounded[PermissionView])
def list_permissions(
    model: str,
    admin: Administering,
    service: Served,
    after: After = None,
    limit: Limit = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: str | None = None,
) -> dict[str, Any]:
    """Projects that may use the model, those of last first."""
    with service.database.read() as session:
        models.of_any_project(session, model)
        wanted = _of(model)
        if project_id is not None:
            wanted = wanted.where(Permission.project_id == comparable(project_id))
        ascends = order == "ascending"
        if after is not None:
            last = session.scalar(_of(model).where(Permission.id == comparable(after)))
            if last is None:
                raise paging.unknown_cursor(after)
            number = Permission.number
            wanted = wanted.where(number > last.number if ascends else number < last.number)
        limit = min(limit, paging.MOST)
        ordered = wanted.order_by(Permission.number if ascends else Permission.number.desc())
        found = list(session.scalars(ordered.limit(limit + 1)))
    return paging.as_list(map(_view, found[:limit]), has_more=len(found) > limit)


@router.delete("/{permission_id}")
def delete(model: str, permission_id: str, admin: Administering, service: Served) -> wire.Deleted:
    """The project may use the model no longer; its jobs that start from it go on."""
    with service.database.begin() as session:
        found = session.scalar(_of(model).where(Permission.id == comparable(permission_id)))
        if found is None:
            raise ApiError(404, f"No such permission: {permission_id}", param="permission_id")
        session.delete(found)
    return wire.Deleted(id=permission_id, object="checkpoint.permission")


def _of(model: str) -> Any:
    return select(Permission).where(Permission.model == comparable(model))


def _view(row: Permission) -> dict[str, Any]:
    view = PermissionView(id=row.id, created_at=row.created_at, project_id=row.project_id)
    return view.model_dump()
