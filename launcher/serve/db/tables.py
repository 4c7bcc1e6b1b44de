"""What the service remembers. The run folders stay the truth about runs; rows point at them.

Times are integer Unix seconds, as on the wire. A row's `number` rises with its birth: lists are
ordered by it, newest first.
"""

from __future__ import annotations

import enum
import time
from typing import Any

from sqlalchemy import JSON, BigInteger, Enum, ForeignKey, Index, Integer, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: SQLite counts up by itself only for a plain INTEGER.
Number = BigInteger().with_variant(Integer(), "sqlite")


def now() -> int:
    """Unix seconds."""
    return int(time.time())


class JobState(enum.Enum):
    """State of a job, by the names that clients see."""

    validating_files = "validating_files"
    queued = "queued"
    running = "running"
    paused = "paused"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_final(self) -> bool:
        """Nothing leaves it."""
        return self in (JobState.succeeded, JobState.failed, JobState.cancelled)


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {
        int: BigInteger(),  # seconds too: 32 bits end in 2038
        JobState: Enum(JobState, native_enum=False, length=32),
    }


class Project(Base):
    """What keys, files, jobs and models belong to; one sees nothing of another."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int] = mapped_column(default=now)
    began_at: Mapped[float] = mapped_column(default=0.0)
    """Unix seconds at which a job of it was given a place last: then it is others' turn."""


class Key(Base):
    """An API key. The key itself is shown once and kept nowhere; `digest` is its SHA-256."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    hint: Mapped[str]
    """First characters and last four, so that people can tell keys apart."""
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[int] = mapped_column(default=now)
    revoked_at: Mapped[int | None]


class File(Base):
    """A file of a project. Its bytes lie in the store under `sha256`, perhaps for others too."""

    __tablename__ = "files"
    __table_args__ = (Index("files_by_project", "project_id", "number"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    sha256: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    filename: Mapped[str]
    purpose: Mapped[str]
    status: Mapped[str] = mapped_column(default="processed")
    status_details: Mapped[str | None]
    created_at: Mapped[int] = mapped_column(default=now)
    expires_at: Mapped[int | None]


class Upload(Base):
    """A file that comes in parts."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    filename: Mapped[str]
    mime_type: Mapped[str]
    purpose: Mapped[str]
    status: Mapped[str] = mapped_column(default="pending")
    created_at: Mapped[int] = mapped_column(default=now)
    expires_at: Mapped[int]
    file_expires_after: Mapped[int | None]
    """Seconds after completion at which the file is to go."""
    file_id: Mapped[str | None]


class UploadPart(Base):
    """A part of an upload; its bytes lie in the store under `sha256`."""

    __tablename__ = "parts"

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    sha256: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(default=now)


class Job(Base):
    """A fine-tuning job; its run folder is `<home>/runs/<id>`."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_project", "project_id", "number"),
        Index("jobs_by_state", "state"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[int] = mapped_column(default=now)
    finished_at: Mapped[int | None]
    estimated_finish: Mapped[int | None]
    """Of a running job, once its pace is known."""
    state: Mapped[JobState] = mapped_column(default=JobState.validating_files)
    wanted: Mapped[JobState | None]
    """cancelled or paused: asked for by the client, not yet done by the controller."""
    model: Mapped[str]
    """The base model as the site names it, aliases resolved; or a fine-tuned model."""
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    method: Mapped[str] = mapped_column(default="supervised")
    asked: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """Hyperparameters as asked for: n_epochs, batch_size, learning_rate_multiplier, and those of
    the method alone; or "auto". Also `model`, by the client's name for it, and the `offer` of the
    site that it comes from."""
    hyperparameters: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """The same as numbers, as far as they are known."""
    suffix: Mapped[str | None]
    seed: Mapped[int]
    labels: Mapped[dict[str, str] | None] = mapped_column(JSON)
    """The client's metadata (SQLAlchemy keeps that name to itself)."""
    integrations: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    fine_tuned_model: Mapped[str | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    result_file: Mapped[str | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """code, message, param of a failed job."""
    cursor: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """How far the controller has read the run folder."""
    owner: Mapped[str | None]
    """The controller in charge, while `lease_until` lies ahead."""
    lease_until: Mapped[float] = mapped_column(default=0.0)


class Event(Base):
    """Something that happened to a job. `key` is the same whoever notes it, so it is noted once."""

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("job_id", "key"),
        Index("events_by_job", "job_id", "number"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    key: Mapped[str]
    created_at: Mapped[int] = mapped_column(default=now)
    level: Mapped[str] = mapped_column(default="info")
    type: Mapped[str] = mapped_column(default="message")
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class Model(Base):
    """A model that a job has made: of its end, or of a checkpoint."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("job_id", "step"), Index("models_by_project", "project_id"))

    name: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    """Step of the checkpoint."""
    checkpoint_id: Mapped[str] = mapped_column(unique=True)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    is_final: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[int] = mapped_column(default=now)
    deleted_at: Mapped[int | None]


class Answered(Base):
    """A request with an `Idempotency-Key`, and what it has made; key and request are hashes."""

    __tablename__ = "answered"
    __table_args__ = (Index("answered_by_time", "created_at"),)

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    asked: Mapped[str]
    object: Mapped[str]
    """The id that was made."""
    created_at: Mapped[int]


class Audit(Base):
    """Who changed what."""

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    time: Mapped[int] = mapped_column(default=now)
    key_id: Mapped[str | None]
    project_id: Mapped[str | None]
    address: Mapped[str]
    action: Mapped[str]
    """Method and route, e.g. POST /v1/files; or "keys create", "keys revoke" by the site."""
    object: Mapped[str]
    """The id that was made or changed, or empty."""
    status: Mapped[int]
    """HTTP status of the answer."""
