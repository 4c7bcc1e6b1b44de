"""Who may ask: API keys, the project that each stands for, and nobody else."""

# Annotations are not postponed here: FastAPI reads them.
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import select

from launcher.api.database import Database, new_id
from launcher.api.failure import ApiError
from launcher.api.service import Service
from launcher.api.tables import Key, Project, now


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is."""

    project_id: str
    key_id: str
    requests_per_minute: int | None


def create_key(database: Database, name: str, project: str, key: str | None = None) -> str:
    """A new key for `project`, which is made if there is none; the key is returned only here."""
    key = key or f"sk-{secrets.token_urlsafe(32)}"
    with database.begin() as session:
        found = session.scalar(select(Project).where(Project.name == project))
        if found is None:
            found = Project(id=new_id("proj_"), name=project)
            session.add(found)
            session.flush()
        hint = f"{key[:5]}...{key[-4:]}"
        session.add(
            Key(id=new_id("key_"), project_id=found.id, name=name, digest=digest(key), hint=hint)
        )
    return key


def revoke_key(database: Database, key_id: str) -> bool:
    """Whether there was such a key; it is of no use from now on."""
    with database.begin() as session:
        key = session.get(Key, key_id)
        if key is not None:
            key.revoked_at = key.revoked_at or now()
    return key is not None


def digest(key: str) -> str:
    """What is kept of a key. Keys are random and long, so a plain hash cannot be searched."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def service_of(request: Request) -> Service:
    """The service that an app was made for."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def caller(request: Request) -> Caller:
    """Whoever's key the request carries; 401 in the envelope without a valid one."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(
            401,
            "You didn't provide an API key: send it as `Authorization: Bearer KEY`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    wanted = digest(key.strip())
    with service_of(request).database.read() as session:
        found = session.scalar(select(Key).where(Key.digest == wanted))
    if found is None or found.revoked_at or not hmac.compare_digest(found.digest, wanted):
        raise ApiError(
            401,
            "Incorrect API key provided.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return Caller(found.project_id, found.id, found.requests_per_minute)


Asking = Annotated[Caller, Depends(caller)]
Served = Annotated[Service, Depends(service_of)]
