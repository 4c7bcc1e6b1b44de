"""What a project may have at a time: jobs that wait, batches, runs of evals, bytes;
`serve.yaml` says how much."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from launcher.serve.db.database import Database
from launcher.serve.db.tables import (
    Batch,
    BatchState,
    EvalRun,
    File,
    Job,
    JobState,
    Project,
    Upload,
    UploadPart,
)
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
    own = Job.project_id == project_id, Job.state.in_((JobState.validating_files, JobState.queued))
    said = "jobs of the project are waiting", "Try again when one has begun, or cancel one."
    _require_fewer(
        session, project_id, most, select(func.count()).select_from(Job).where(*own), said
    )


def require_eval_run(session: Session, site: Site, project_id: str) -> None:
    """`ApiError` 429 unless one more run of an eval of the project may be there."""
    most = of(session, site, project_id).eval_runs
    own = EvalRun.project_id == project_id, EvalRun.state.in_(("queued", "in_progress"))
    open_runs = select(func.count()).select_from(EvalRun).where(*own)
    said = "runs of evals have not ended", "Try again when one has, or cancel one."
    _require_fewer(session, project_id, most, open_runs, said)


def require_batch(session: Session, site: Site, project_id: str) -> None:
    """`ApiError` 429 unless the project may have one more batch that has not ended."""
    most = of(session, site, project_id).batches
    ended = [state for state in BatchState if state.is_final]
    own = Batch.project_id == project_id, Batch.state.not_in(ended)
    open_batches = select(func.count()).select_from(Batch).where(*own)
    said = "batches of the project have not ended", "Try again when one has, or cancel one."
    _require_fewer(session, project_id, most, open_batches, said)


def _require_fewer(
    session: Session,
    project_id: str,
    most: int | None,
    counted: Select[Any],
    said: tuple[str, str],
) -> None:
    """`ApiError` 429 unless what is `counted` is less than `most`, until the transaction ends;
    `said`: of what there are so many, and what helps."""
    if most is None:
        return
    Database.lock(session, f"quota {project_id}")
    count: int = session.scalar(counted) or 0
    if count >= most:
        what, help_ = said
        raise ApiError(
            429,
            f"Rate limit reached: {count} {what}, of at most {most}. {help_}",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(_RETRY_S)},
        )


def require_room(
    session: Session,
    site: Site,
    project_id: str,
    more: int,
    *,
    beside: str = "",
    is_in: bool = False,
) -> None:
    """`ApiError` 429 unless the project may store so many bytes more, beside what it stores and
    what is kept free for its batches; `is_in`: they are in the rows of this transaction already.

    Runs of evals count with their items. Parts of pending uploads count, but not those of
    `beside`, which are to become the file.
    """
    most = of(session, site, project_id).stored_bytes
    if most is None:
        return
    Database.lock(session, f"quota {project_id}")
    own = select(func.coalesce(func.sum(File.bytes), 0)).where(File.project_id == project_id)
    parts = select(func.coalesce(func.sum(UploadPart.bytes), 0)).where(
        UploadPart.upload_id == Upload.id, Upload.project_id == project_id, Upload.id != beside
    )
    ended = [state for state in BatchState if state.is_final]
    batches = select(func.coalesce(func.sum(Batch.input_bytes), 0)).where(
        Batch.project_id == project_id, Batch.state.not_in(ended)
    )
    runs = select(func.coalesce(func.sum(EvalRun.source_bytes + EvalRun.item_bytes), 0)).where(
        EvalRun.project_id == project_id
    )
    stored = sum(int(session.scalar(one) or 0) for one in (own, parts, runs))
    stored -= more if is_in else 0
    free = int(session.scalar(batches) or 0)
    if stored + free + more > most:
        kept_free = f" and {free:,} kept free for batches that have not ended" if free else ""
        raise ApiError(
            429,
            f"You exceeded your current quota: {stored:,} of at most {most:,} bytes are stored"
            f"{kept_free}, and {more:,} more do not fit. Delete files or runs of evals first.",
            code="insufficient_quota",
            # Another try does not help: the official clients make none then.
            headers={"x-should-retry": "false"},
        )
