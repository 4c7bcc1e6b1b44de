"""The OpenAPI document: what any route below /v1 may answer besides what it says itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from launcher.serve.http import wire

#: 403 for an admin key where a project's is needed, and the reverse. 404 too: what a path, a query
#: or a body names may be another project's, or gone.
_COMMON = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_WITH_A_BODY = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
)
#: FastAPI's answer to what is invalid; ours is 400, in the envelope.
_INVALID = "422"


def document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with the errors that we answer; made once."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    made = FastAPI.openapi(app)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["ErrorView"] = wire.ErrorView.model_json_schema()
    schemas["Envelope"] = wire.Envelope.model_json_schema(
        ref_template="#/components/schemas/{model}"
    )
    del schemas["Envelope"]["$defs"]
    made["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of `launcher serve keys create`.",
        }
    }
    for operations in made["paths"].values():
        for operation in operations.values():
            _declare(operation)
    return made


def _declare(operation: dict[str, Any]) -> None:
    statuses = [*_COMMON]
    if "requestBody" in operation:
        statuses += _WITH_A_BODY
    operation["security"] = [{"key": []}]
    answers = operation["responses"]
    answers.pop(_INVALID, None)
    for status in sorted(statuses):
        said = {"schema": {"$ref": "#/components/schemas/Envelope"}}
        answers.setdefault(
            str(status.value),
            {"description": status.phrase, "content": {"application/json": said}},
        )
