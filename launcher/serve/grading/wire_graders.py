"""Graders as clients try them: requests and answers."""

# Annotations are not postponed here: FastAPI reads them.
from typing import Annotated, Any

from pydantic import BaseModel, Field

from launcher.graders.errors import ERRORS
from launcher.serve.http.wire import RequestBody

#: The wire form of a grader; `launcher.serve.judges` says what is wrong with it.
GraderForm = Annotated[
    dict[str, Any],
    Field(
        json_schema_extra={
            "required": ["type", "name"],
            "properties": {"type": {"type": "string"}, "name": {"type": "string"}},
        }
    ),
]


class ValidateRequest(RequestBody):
    """Body of POST /v1/fine_tuning/alpha/graders/validate."""

    grader: GraderForm


class RunRequest(RequestBody):
    """Body of POST /v1/fine_tuning/alpha/graders/run."""

    grader: GraderForm
    model_sample: str
    """The answer that is graded: `sample.output_text`, and `output_json` if it is JSON."""
    item: dict[str, Any] | None = None
    """The line of a file that is answered: `item`."""


class ValidateView(BaseModel):
    """A grader that can be used, as it was sent."""

    grader: dict[str, Any]


class ErrorsView(BaseModel):
    """What went wrong."""

    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class MetadataView(BaseModel):
    """How a grader came to its score."""

    name: str
    type: str
    errors: ErrorsView
    execution_time: float
    """Seconds."""
    scores: dict[str, float | None]
    token_usage: int | None
    sampled_model_name: str | None


class RunView(BaseModel):
    """What a grader says of an answer."""

    reward: float
    metadata: MetadataView
    sub_rewards: dict[str, float | None]
    model_grader_token_usage_per_model: dict[str, dict[str, int]]


def run_view(grader: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What a worker has found, as a `RunView`. Where there is no score the reward is 0, and an
    error says why."""
    errors: dict[str, str] = {}
    for kind, message in found["errors"]:
        errors.setdefault(kind, message)
    flags = {kind: kind in errors for kind in ERRORS}
    usage, sub_scores = found["usage"], found["sub_scores"]
    score = found["score"]
    return {
        "reward": 0.0 if score is None else score,
        "metadata": {
            "name": str(grader.get("name")),
            "type": str(grader.get("type")),
            "errors": {
                **flags,
                # An answer that is graded is never cut.
                "truncated_observation_error": False,
                "unresponsive_reward_error": found["is_late"],
                "python_grader_server_error_type": errors.get("python_grader_server_error"),
                "python_grader_runtime_error_details": errors.get("python_grader_runtime_error"),
                "model_grader_server_error_details": errors.get("model_grader_server_error"),
            },
            "execution_time": found["seconds"],
            "scores": sub_scores,
            "token_usage": sum(own["total_tokens"] for own in usage.values()) if usage else None,
            "sampled_model_name": found["model"],
        },
        "sub_rewards": sub_scores,
        "model_grader_token_usage_per_model": usage,
    }
