"""Who may ask: API keys, the project that each stands for, and nobody else."""

# Annotations are not postponed here: FastAPI reads them.
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from launcher.serve.db.database import Database, new_id
from launcher.serve.db.tables import Audit, Key, Project, now
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service

#: Id of the demo key, which has no row.
DEMO = "key_demo"
#: A revoked key is refused after this at the latest.
_REMEMBERED_S = 1.0
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is."""

    project_id: str
    key_id: str
    requests_per_minute: int | None
    project: str = ""
    """The project's name."""
    is_admin: bool = False


class Keys:
    """The keys that are good at present. Safe to use from several threads."""

    def __init__(self, database: Database, demo_key: str | None = None) -> None:
        """`demo_key`, of the project demo, is good while the server runs and kept nowhere."""
        self._database = database
        self._known: dict[str, tuple[float, Caller | None]] = {}
        self._demo = ""
        if demo_key is not None:
            self._demo = digest(demo_key)
            with database.begin() as session:
                project = find_project(session, "demo")
                self._demo_caller = Caller(project.id, DEMO, None, project.name)

    def remembered(self, wanted: str) -> tuple[bool, Caller | None]:
        """Whether it is known whose key has this digest, and whose; asks no database."""
        if self._demo and hmac.compare_digest(self._demo, wanted):
            return True, self._demo_caller
        at, found = self._known.get(wanted, (0.0, None))
        return time.monotonic() - at < _REMEMBERED_S, found

    def look_up(self, wanted: str) -> Caller | None:
        """Whose key has this digest; None if nobody's."""
        with self._database.read() as session:
            key = session.scalar(select(Key).where(Key.digest == wanted))
            project = session.get(Project, key.project_id) if key is not None else None
        found = None
        if key is not None and not key.revoked_at and hmac.compare_digest(key.digest, wanted):
            name = project.name if project is not None else ""
            found = Caller(key.project_id, key.id, key.requests_per_minute, name, key.is_admin)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[wanted] = (time.monotonic(), found)
        return found


def find_project(session: Session, name: str) -> Project:
    """The project of this name, which is made if there is none."""
    Database.lock(session, "projects")
    found = session.scalar(select(Project).where(Project.name == name))
    if found is None:
        found = Project(id=new_id("proj_"), name=name)
        session.add(found)
        session.flush()
    return found


def create_key(
    database: Database,
    name: str,
    project: str,
    requests_per_minute: int | None = None,
    *,
    is_admin: bool = False,
) -> str:
    """A new key for `project`, which is made if there is none; the key is returned only here."""
    key = f"{'sk-admin' if is_admin else 'sk'}-{secrets.token_urlsafe(32)}"
    with database.begin() as session:
        made = Key(
            id=new_id("key_"),
            project_id=find_project(session, project).id,
            name=name,
            digest=digest(key),
            hint=f"{key[:5]}...{key[-4:]}",
            requests_per_minute=requests_per_minute,
            is_admin=is_admin,
        )
        session.add_all([made, _noted("keys create --admin" if is_admin else "keys create", made)])
    return key


def list_keys(database: Database) -> list[tuple[Key, str]]:
    """All keys, oldest first, each with the name of its project."""
    wanted = select(Key, Project.name).join(Project, Key.project_id == Project.id)
    with database.read() as session:
        rows = session.execute(wanted.order_by(Key.created_at, Key.id))
        return [(key, project) for key, project in rows]


def revoke_key(database: Database, key_id: str) -> bool:
    """Whether there was such a key; it is of no use from now on."""
    with database.begin() as session:
        key = session.get(Key, key_id)
        if key is not None and key.revoked_at is None:
            key.revoked_at = now()
            session.add(_noted("keys revoke", key))
    return key is not None


def _noted(action: str, key: Key) -> Audit:
    """A row of the audit for what was done on this host, not over HTTP."""
    project = key.project_id
    return Audit(project_id=project, address="", action=action, object=key.id, status=200)


def digest(key: str) -> str:
    """What is kept of a key. Keys are random and long, so a plain hash cannot be searched."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def key_of(authorization: str, plain: str = "") -> str:
    """Digest of the key in this header, or else of the `plain` one; `ApiError` 401 if there is
    none."""
    scheme, _, key = authorization.partition(" ")
    if plain.strip() and not authorization:
        key = plain
    elif scheme.lower() != "bearer" or not key.strip():
        raise ApiError(
            401,
            "You didn't provide an API key: send it as `Authorization: Bearer KEY`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return digest(key.strip())


def wrong_key() -> ApiError:
    """For a key that is nobody's."""
    return ApiError(
        401,
        "Incorrect API key provided.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def not_here() -> ApiError:
    """For the demo key under a name of the server that others could have."""
    return ApiError(
        401,
        "The demo key is for this host only: ask for http://127.0.0.1 or http://localhost.",
        code="invalid_api_key",
    )


async def service_of(request: Request) -> Service:
    """The service that an app was made for."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def caller(request: Request) -> Caller:
    """Whoever's key the request carries: the gate has looked. `ApiError` 403 for an admin key."""
    found = request.state.caller
    assert isinstance(found, Caller)
    if found.is_admin:
        raise ApiError(403, "An admin key administers alone: ask with a key of a project.")
    return found


async def administrator(request: Request) -> Caller:
    """The same for what takes an admin key; `ApiError` 403 for another one."""
    found = request.state.caller
    assert isinstance(found, Caller)
    if not found.is_admin:
        raise ApiError(403, "This takes an admin key: `launcher serve keys create NAME --admin`.")
    return found


Asking = Annotated[Caller, Depends(caller)]
Administering = Annotated[Caller, Depends(administrator)]
Served = Annotated[Service, Depends(service_of)]
