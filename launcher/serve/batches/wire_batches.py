"""Batches as clients send and read them."""

# Annotations are not postponed here: FastAPI reads them.
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from launcher.serve.db.tables import Batch, BatchState
from launcher.serve.http.wire import ExpiresAfter, RequestBody
from launcher.serve.jobs.wire_jobs import Label

#: What answers the requests of batches.
ENDPOINTS = ("/v1/chat/completions", "/v1/responses")
#: Seconds of the only completion window.
WINDOW_S = 24 * 3600
Metadata = Annotated[
    dict[Label, Annotated[str, Field(max_length=512, strict=True)]], Field(max_length=16)
]


class NewBatch(RequestBody):
    """What a client asks for."""

    input_file_id: Annotated[str, Field(max_length=256)]
    endpoint: Annotated[str, Field(max_length=256, json_schema_extra={"enum": list(ENDPOINTS)})]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchFault(BaseModel):
    """What is wrong with a file of requests."""

    code: str
    line: int | None
    message: str
    param: str | None


class Faults(BaseModel):
    """All that is told of it."""

    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(BaseModel):
    """How many requests there are, and how many of them have been answered."""

    total: int
    completed: int
    failed: int


class InputTokens(BaseModel):
    """Tokens read, in parts."""

    cached_tokens: int


class OutputTokens(BaseModel):
    """Tokens written, in parts."""

    reasoning_tokens: int


class BatchUsage(BaseModel):
    """Tokens of all answers."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class BatchView(BaseModel):
    """A batch as clients see it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: Faults | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchState
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


def batch_view(batch: Batch) -> dict[str, Any]:
    """The row as a `BatchView`."""
    states = (state for state in BatchState if state is not BatchState.validating)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": batch.state,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        **{f"{state.value}_at": batch.times.get(state.value) for state in states},
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "usage": _usage(batch) if batch.total else None,
        "metadata": batch.labels,
    }


def _usage(batch: Batch) -> dict[str, Any]:
    return {
        "input_tokens": batch.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": batch.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": batch.input_tokens + batch.output_tokens,
    }
