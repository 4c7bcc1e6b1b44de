"""Files that come in parts: what is pending, and putting the parts together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from launcher.core.errors import StorageError
from launcher.serve import quota
from launcher.serve.db.database import new_id
from launcher.serve.db.tables import File, Upload, UploadPart, now
from launcher.serve.files import project_files
from launcher.serve.files.inspection import Lookers
from launcher.serve.http import retries, wire
from launcher.serve.http.failure import ApiError
from launcher.serve.http.multipart import base_name
from launcher.serve.service import Service
from launcher.serve.store import Incoming

_LIVES_S = 3600
_PIECE = 1 << 20


def create(
    service: Service, project_id: str, wanted: wire.NewUpload, key: str | None = None
) -> wire.UploadView:
    """A new upload. `ApiError` 400 for a wrong purpose or too large a file."""
    purpose = project_files.require_purpose(wanted.purpose)
    limit = service.site.limits.upload_bytes
    if wanted.bytes > limit:
        raise ApiError(400, f"'bytes' is more than {limit:,}", param="bytes")
    upload = Upload(
        id=new_id("upload_"),
        project_id=project_id,
        bytes=wanted.bytes,
        filename=base_name(wanted.filename),
        mime_type=wanted.mime_type,
        purpose=purpose,
        status="pending",
        created_at=now(),
        expires_at=now() + _LIVES_S,
        file_expires_after=wanted.expires_after.seconds if wanted.expires_after else None,
    )
    asked = "upload", wanted.model_dump_json()
    with service.database.begin() as session:
        made = retries.known(session, project_id, key, *asked)
        if made is not None:
            return shown(session, find(session, project_id, made))
        quota.require_room(session, service.site, project_id, wanted.bytes)
        session.add(upload)
        session.flush()
        retries.note(session, project_id, key, upload.id, *asked)
        return shown(session, upload)


def find(session: Session, project_id: str, upload_id: str, *, alone: bool = False) -> Upload:
    """An upload of the project, `alone` until the transaction ends; `ApiError` 404."""
    found = session.get(Upload, upload_id, with_for_update=alone)
    if found is None or found.project_id != project_id:
        raise ApiError(404, f"No such Upload object: {upload_id}", param="upload_id")
    return found


def pending(session: Session, project_id: str, upload_id: str, *, alone: bool = False) -> Upload:
    """The same; `ApiError` 400 if nothing can be added to it any more."""
    found = find(session, project_id, upload_id, alone=alone)
    status = found.status
    if status == "pending" and found.expires_at <= now():
        status = "expired"
    if status != "pending":
        raise ApiError(400, f"Upload {upload_id} has status '{status}', it must be 'pending'.")
    return found


def add_part(
    service: Service, project_id: str, upload_id: str, content: Incoming, key: str | None = None
) -> wire.PartView:
    """A new part of what has come in."""
    service.store.prepare(content)
    asked = "part", upload_id, content.sha256
    with service.database.begin() as session:
        made = retries.known(session, project_id, key, *asked)
        known = session.get(UploadPart, made) if made is not None else None
        if known is not None:
            return wire.PartView.model_validate(known, from_attributes=True)
        quota.require_room(session, service.site, project_id, content.bytes)
        upload = pending(session, project_id, upload_id, alone=True)
        had = select(func.coalesce(func.sum(UploadPart.bytes), 0)).where(
            UploadPart.upload_id == upload_id
        )
        # Twice the file: a client that has lost an answer sends the part again.
        room = 2 * upload.bytes + service.site.limits.part_bytes
        if int(session.scalar(had) or 0) + content.bytes > room:
            raise ApiError(400, f"Upload {upload_id} was to have {upload.bytes:,} bytes.")
        project_files.keep(session, service.store, content)
        part = UploadPart(
            id=new_id("part_"),
            upload_id=upload_id,
            sha256=content.sha256,
            bytes=content.bytes,
            created_at=now(),
        )
        session.add(part)
        session.flush()
        retries.note(session, project_id, key, part.id, *asked)
        return wire.PartView.model_validate(part, from_attributes=True)


def complete(
    service: Service, lookers: Lookers, project_id: str, upload_id: str, asked: wire.Completion
) -> wire.UploadView:
    """Make a file of the parts, in the order asked for.

    Asked again, because the answer was lost or is late, it says the same. `ApiError` 400 if the
    parts are not those of the upload, or not all of it.
    """
    try:
        return _complete(service, lookers, project_id, upload_id, asked)
    except (ApiError, StorageError):
        # The same request may have been faster, and has taken the parts meanwhile.
        with service.database.read() as session:
            upload = find(session, project_id, upload_id)
            if upload.status != "completed":
                raise
            return shown(session, upload)


def _complete(
    service: Service, lookers: Lookers, project_id: str, upload_id: str, asked: wire.Completion
) -> wire.UploadView:
    with service.database.read() as session:
        upload = find(session, project_id, upload_id)
        if upload.status == "completed":
            return shown(session, upload)
        upload = pending(session, project_id, upload_id)
        hashes = _hashes(session, upload, asked.part_ids)
    with service.store.incoming() as content:
        md5 = hashlib.md5(usedforsecurity=False)
        for piece in _pieces(service, hashes):
            md5.update(piece)
            content.write(piece)
        if asked.md5 is not None and asked.md5.lower() != md5.hexdigest():
            raise ApiError(400, f"The parts' md5 is {md5.hexdigest()}.", param="md5")
        if upload.purpose == project_files.TRAINING:
            project_files.require_lines(service, lookers, content)
        service.store.prepare(content)
        with service.database.begin() as session:
            upload = pending(session, project_id, upload_id, alone=True)
            quota.require_room(session, service.site, project_id, content.bytes, beside=upload_id)
            file = project_files.insert(
                session,
                service.store,
                content,
                project_id,
                upload.filename,
                upload.purpose,
                upload.file_expires_after,
            )
            upload.status, upload.file_id = "completed", file.id
            left = project_files.drop_parts(session, upload)
            answer = shown(session, upload)
    project_files.collect(service.database, service.store, left)
    return answer


def cancel(service: Service, project_id: str, upload_id: str) -> wire.UploadView:
    """Nothing can be added to it any more, and its parts are gone; asked again, the same."""
    with service.database.begin() as session:
        upload = find(session, project_id, upload_id, alone=True)
        if upload.status != "cancelled":
            upload = pending(session, project_id, upload_id)
        upload.status = "cancelled"
        left = project_files.drop_parts(session, upload)
        answer = shown(session, upload)
    project_files.collect(service.database, service.store, left)
    return answer


def shown(session: Session, upload: Upload) -> wire.UploadView:
    """The upload as clients see it."""
    file = session.scalar(select(File).where(File.id == upload.file_id)) if upload.file_id else None
    return wire.UploadView(
        id=upload.id,
        bytes=upload.bytes,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status,  # type: ignore[arg-type]
        file=project_files.shown(file) if file else None,
    )


def _hashes(session: Session, upload: Upload, part_ids: list[str]) -> list[str]:
    if len(set(part_ids)) < len(part_ids):
        raise ApiError(400, "A part is named twice.", param="part_ids")
    rows = session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id))
    parts = {part.id: part for part in rows}
    for part_id in part_ids:
        if part_id not in parts:
            raise ApiError(400, f"No such Part object: {part_id}", param="part_ids")
    size = sum(parts[part_id].bytes for part_id in part_ids)
    if size != upload.bytes:
        raise ApiError(
            400,
            f"The parts have {size:,} bytes, but the upload was to have {upload.bytes:,}.",
            param="part_ids",
        )
    return [parts[part_id].sha256 for part_id in part_ids]


def _pieces(service: Service, hashes: list[str]) -> Iterator[bytes]:
    for sha256 in hashes:
        with service.store.open(sha256) as opened:
            while piece := opened.read(_PIECE):
                yield piece
