"""Files of projects: rows that name content in the store, which goes with the last of them."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, delete, or_, select, union
from sqlalchemy.orm import Session

from launcher.serve.db.database import Database, new_id
from launcher.serve.db.tables import File, Upload, UploadPart, now
from launcher.serve.files.inspection import Lookers
from launcher.serve.http import retries, wire
from launcher.serve.http.failure import ApiError, missing_file
from launcher.serve.service import Service
from launcher.serve.store import Incoming, Store

RESULTS = "fine-tune-results"
TRAINING = "fine-tune"

_GRACE_S = 3600.0


def insert(
    session: Session,
    store: Store,
    content: Incoming,
    project_id: str,
    filename: str,
    purpose: str,
    expires_after_s: int | None = None,
) -> File:
    """A new file of what has come in; it is there once `session` has committed it.

    `store.prepare` comes before: a transaction that may write waits for no bucket.
    """
    keep(session, store, content)
    born = now()
    file = File(
        id=new_id("file-"),
        project_id=project_id,
        sha256=content.sha256,
        bytes=content.bytes,
        filename=filename,
        purpose=purpose,
        created_at=born,
        expires_at=None if expires_after_s is None else born + expires_after_s,
    )
    session.add(file)
    session.flush()
    return file


def keep(session: Session, store: Store, content: Incoming) -> None:
    """Keep content that a row of this transaction is going to name."""
    content.finish()
    # Against `collect`, which would take it for content that nobody names any more.
    Database.lock(session, content.sha256)
    store.keep(content)


def find(session: Session, project_id: str, file_id: str) -> File:
    """A file of the project, unless its time is over; `ApiError` 404."""
    found = session.scalar(
        select(File).where(File.id == file_id, File.project_id == project_id, _lives())
    )
    if found is None:
        raise missing_file(file_id)
    return found


def page(
    session: Session,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    newest_first: bool,
    purpose: str | None,
) -> tuple[list[File], bool]:
    """Files behind `after`, and whether there are more. `ApiError` 404 if `after` is no file."""
    wanted = select(File).where(File.project_id == project_id, _lives())
    if purpose is not None:
        wanted = wanted.where(File.purpose == purpose)
    if after is not None:
        number = find(session, project_id, after).number
        wanted = wanted.where(File.number < number if newest_first else File.number > number)
    order = File.number.desc() if newest_first else File.number.asc()
    found = list(session.scalars(wanted.order_by(order).limit(limit + 1)))
    return found[:limit], len(found) > limit


def remove(database: Database, store: Store, project_id: str, file_id: str) -> None:
    """The file is gone, and its content unless another row names it; `ApiError` 404."""
    with database.begin() as session:
        number = find(session, project_id, file_id).number
        gone = delete(File).where(File.number == number).returning(File.sha256)
        hashes = list(session.scalars(gone))
    if not hashes:  # another request was faster
        raise missing_file(file_id)
    collect(database, store, hashes)


def collect(database: Database, store: Store, hashes: Iterable[str]) -> None:
    """Let content go that no file and no part names.

    After its row: whoever dies in between leaves content without a row, never the reverse.
    """
    for sha256 in set(hashes):
        with database.begin() as session:
            Database.lock(session, sha256)
            named = select(File.sha256).where(File.sha256 == sha256)
            named_by_part = select(UploadPart.sha256).where(UploadPart.sha256 == sha256)
            if session.execute(union(named, named_by_part)).first() is None:
                store.delete(sha256)


def expire(database: Database, store: Store) -> None:
    """Remove files and uploads whose time is over."""
    with database.begin() as session:
        hashes = list(session.scalars(delete(File).where(~_lives()).returning(File.sha256)))
        late = select(Upload).where(Upload.status == "pending", Upload.expires_at <= now())
        for upload in session.scalars(late.with_for_update(skip_locked=True)):
            upload.status = "expired"
            hashes += drop_parts(session, upload)
        retries.forget(session)
    collect(database, store, hashes)


def sweep(database: Database, store: Store) -> None:
    """Remove what processes that died have left behind."""
    store.sweep(_GRACE_S)
    with database.read() as session:
        named = set(session.scalars(select(File.sha256))) | set(
            session.scalars(select(UploadPart.sha256))
        )
    collect(database, store, set(store.hashes(_GRACE_S)) - named)


def drop_parts(session: Session, upload: Upload) -> list[str]:
    """Delete the rows of an upload's parts; returns hashes for `collect`."""
    hashes = list(
        session.scalars(select(UploadPart.sha256).where(UploadPart.upload_id == upload.id))
    )
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload.id))
    return hashes


def _lives() -> ColumnElement[bool]:
    return or_(File.expires_at.is_(None), File.expires_at > now())


def require_lines(service: Service, lookers: Lookers, content: Incoming) -> None:
    """`ApiError` 400, naming the line, unless what has come in is JSONL."""
    with service.store.read(content) as opened:
        found = lookers.wrong(opened, content.bytes, service.site.limits.line_bytes)
    if found is not None:
        raise ApiError(400, found, param="file")


def require_purpose(purpose: str | None) -> str:
    """A purpose for which clients may upload; `ApiError` 400 in OpenAI's words."""
    if purpose is None:
        raise ApiError(400, "'purpose' is a required property")
    if purpose not in wire.PURPOSES:
        known = list(wire.PURPOSES)
        raise ApiError(400, f"'{purpose}' is not one of {known} - 'purpose'", param="purpose")
    return purpose


def shown(file: File) -> wire.FileView:
    """The file as clients see it."""
    return wire.FileView.model_validate(file, from_attributes=True)
