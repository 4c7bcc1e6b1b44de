"""What a project may have at a time: jobs that wait, and bytes; `serve.yaml` says how much."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from launcher.serve.db.database import Database
from launcher.serve.db.tables import File, Job, JobState, Project, Upload, UploadPart
from launcher.serve.http.failure import ApiError
from launcher.serve.site import Quota, Site

#: Seconds after which a client may ask again for a job: one may have begun by then.
_RETRY_S = 30


def of(session: Session, site: Site, project_id: str) -> Quota:
    """The project's quota."""
    return site.quota_of(name_of(session, project_id))


def name_of(session: Session, project_id: str) -> str:
    """The project's name, by which `serve.yaml` knows it."""
    return session.scalar(select(Project.name).where(Project.id == project_id)) or ""


def require_place(session: Session, site: Site, project_id: str) -> None:
    """`ApiError` 429 unless one more job of the project may wait."""
    most = of(session, site, project_id).queued_jobs
    if most is None:
        return
    Database.lock(session, f"quota {project_id}")
    waiting = (JobState.validating_files, JobState.queued)
    own = Job.project_id == project_id, Job.state.in_(waiting)
    count = session.scalar(select(func.count()).select_from(Job).where(*own)) or 0
    if count >= most:
        raise ApiError(
            429,
            f"Rate limit reached: {count} jobs of the project are waiting, of at most {most}."
            " Try again when one has begun, or cancel one.",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(_RETRY_S)},
        )


def require_room(
    session: Session, site: Site, project_id: str, more: int, *, beside: str = ""
) -> None:
    """`ApiError` 429 unless the project may store so many bytes more.

    Parts of pending uploads count, but not those of `beside`, which are to become the file.
    """
    most = of(session, site, project_id).stored_bytes
    if most is None:
        return
    Database.lock(session, f"quota {project_id}")
    own = select(func.coalesce(func.sum(File.bytes), 0)).where(File.project_id == project_id)
    parts = select(func.coalesce(func.sum(UploadPart.bytes), 0)).where(
        UploadPart.upload_id == Upload.id, Upload.project_id == project_id, Upload.id != beside
    )
    stored = int(session.scalar(own) or 0) + int(session.scalar(parts) or 0)
    if stored + more > most:
        raise ApiError(
            429,
            f"You exceeded your current quota: {stored:,} of at most {most:,} bytes are stored, and"
            f" {more:,} more do not fit. Delete files first.",
            code="insufficient_quota",
            # Another try does not help: the official clients make none then.
            headers={"x-should-retry": "false"},
        )
