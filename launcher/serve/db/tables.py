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


class BatchState(enum.Enum):
    """State of a batch, by the names that clients see."""

    validating = "validating"
    failed = "failed"
    in_progress = "in_progress"
    finalizing = "finalizing"
    completed = "completed"
    expired = "expired"
    cancelling = "cancelling"
    cancelled = "cancelled"

    @property
    def is_final(self) -> bool:
        """Nothing leaves it."""
        return self in (
            *(BatchState.failed, BatchState.completed),
            *(BatchState.expired, BatchState.cancelled),
        )


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {
        int: BigInteger(),  # seconds too: 32 bits end in 2038
        JobState: Enum(JobState, native_enum=False, length=32),
        BatchState: Enum(BatchState, native_enum=False, length=32),
    }


class Project(Base):
    """What keys, files, jobs and models belong to; one sees nothing of another but the models that
    it has a `Permission` for."""

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
    is_admin: Mapped[bool] = mapped_column(default=False)
    """Whether it administers, and is good for nothing else."""
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


class Permission(Base):
    """That a project may use a model of another's."""

    __tablename__ = "permissions"
    __table_args__ = (
        UniqueConstraint("model", "project_id"),
        Index("permissions_by_project", "project_id"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[int] = mapped_column(default=now)


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


class WebhookEndpoint(Base):
    """An address that is told what happens in a project."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("webhook_endpoints_by_project", "project_id"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(JSON)
    """What it is told of."""
    secret: Mapped[str]
    """Signs what is sent to it: whsec_ and base64."""
    old_secrets: Mapped[list[list[Any]]] = mapped_column(JSON, default=list)
    """Earlier ones that sign too, each with the Unix seconds until when."""
    created_at: Mapped[int] = mapped_column(default=now)
    updated_at: Mapped[int] = mapped_column(default=now)


class Delivery(Base):
    """An event for an endpoint, sent again until it is taken."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("deliveries_by_state", "state", "project_id", "due_at"),
        Index("deliveries_by_lease", "leased_until"),
        Index("deliveries_by_endpoint", "endpoint_id"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    event: Mapped[str]
    """Id of the event, the same for all endpoints."""
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    type: Mapped[str]
    body: Mapped[str]
    state: Mapped[str] = mapped_column(default="pending")
    """pending, sent or given_up."""
    attempts: Mapped[int] = mapped_column(default=0)
    answer: Mapped[str | None]
    """How the last try ended."""
    due_at: Mapped[float] = mapped_column(default=0.0)
    """Unix seconds from which on it may be tried."""
    leased_until: Mapped[float] = mapped_column(default=0.0)
    """Until then somebody is at it."""
    created_at: Mapped[int] = mapped_column(default=now)
    ended_at: Mapped[int | None]


class Batch(Base):
    """Requests in a file, which are answered one by one. What is done lies in `<home>/batches/<id>`
    until the batch has ended."""

    __tablename__ = "batches"
    __table_args__ = (
        Index("batches_by_project", "project_id", "number"),
        Index("batches_by_state", "state"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    endpoint: Mapped[str]
    input_file: Mapped[str]
    input_bytes: Mapped[int] = mapped_column(default=0)
    """Of the file: so much of what the project may store is kept free until the batch has ended."""
    labels: Mapped[dict[str, str] | None] = mapped_column(JSON)
    """The client's metadata."""
    output_expires_after: Mapped[int | None]
    """Seconds after which the files that it makes are to go."""
    state: Mapped[BatchState] = mapped_column(default=BatchState.validating)
    created_at: Mapped[int] = mapped_column(default=now)
    expires_at: Mapped[int]
    times: Mapped[dict[str, int]] = mapped_column(JSON, default=dict)
    """State -> when the batch has come to it."""
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    """What is wrong with the file of a batch that failed: code, line, message, param."""
    model: Mapped[str | None]
    """The model of all requests, if they name one."""
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    input_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)
    output_file: Mapped[str | None]
    error_file: Mapped[str | None]
    claims: Mapped[int] = mapped_column(default=0)
    """How often a server has taken it."""
    owner: Mapped[str | None]
    """The server that is at it, while `lease_until` lies ahead."""
    lease_until: Mapped[float] = mapped_column(default=0.0)


class Eval(Base):
    """What runs of it are measured by: the form of its items, and the criteria of answers."""

    __tablename__ = "evals"
    __table_args__ = (Index("evals_by_project", "project_id", "number"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    created_at: Mapped[int] = mapped_column(default=now)
    updated_at: Mapped[int] = mapped_column(default=now)
    source: Mapped[dict[str, Any]] = mapped_column(JSON)
    """`data_source_config` as it was sent."""
    criteria: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """`testing_criteria` as they were sent."""
    labels: Mapped[dict[str, str] | None] = mapped_column(JSON)
    """The client's metadata."""


#: Of runs of evals.
RUN_STATES = ("queued", "in_progress", "completed", "failed", "canceled")


class EvalRun(Base):
    """A run of an eval: its items are asked and graded one by one by one server at a time."""

    __tablename__ = "eval_runs"
    __table_args__ = (
        Index("eval_runs_by_eval", "eval_id", "number"),
        Index("eval_runs_by_state", "state", "project_id"),
        Index("eval_runs_by_project", "project_id"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    eval_id: Mapped[str] = mapped_column(ForeignKey("evals.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    created_at: Mapped[int] = mapped_column(default=now)
    finished_at: Mapped[int | None]
    state: Mapped[str] = mapped_column(default="queued")
    """One of `RUN_STATES`."""
    model: Mapped[str]
    """The model that is asked, as the client names it; empty where none is."""
    source_bytes: Mapped[int] = mapped_column(BigInteger)
    item_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Of all its items, with what was answered and found."""
    source: Mapped[dict[str, Any]] = mapped_column(JSON, deferred=True)
    """`data_source` as it was sent: perhaps megabytes, read only where they are wanted."""
    labels: Mapped[dict[str, str] | None] = mapped_column(JSON)
    counts: Mapped[dict[str, int]] = mapped_column(JSON, default=dict)
    """Items: total, pass, fail, error."""
    verdicts: Mapped[dict[str, dict[str, int]]] = mapped_column(JSON, default=dict)
    """Name of a criterion -> how many items it passes, fails, and could not grade."""
    usage: Mapped[dict[str, dict[str, int]]] = mapped_column(JSON, default=dict)
    """Name of a model -> questions and tokens."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """code and message of a failed run."""
    owner: Mapped[str | None]
    """The server in charge, while `lease_until` lies ahead."""
    lease_until: Mapped[float] = mapped_column(default=0.0)


class EvalItem(Base):
    """An item of a run, and what has become of it."""

    __tablename__ = "eval_items"
    __table_args__ = (
        UniqueConstraint("run_id", "place"),
        Index("eval_items_by_state", "run_id", "state", "place"),
    )

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("eval_runs.id"))
    place: Mapped[int]
    """Which of the run's items it is, from 0."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    """About what it takes, here and in an answer to a client."""
    created_at: Mapped[int] = mapped_column(default=now)
    state: Mapped[str] = mapped_column(default="pending")
    """pending, pass, fail or error."""
    item: Mapped[dict[str, Any]] = mapped_column(JSON)
    given: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The answer that stands beside the item in its line."""
    sample: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """What was asked and answered, as clients see it."""
    results: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    """What each criterion says."""
