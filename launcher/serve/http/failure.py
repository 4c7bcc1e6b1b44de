"""Errors as clients of OpenAI know them."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse


class ApiError(Exception):
    """An answer that is an error: `{"error": {message, type, param, code}}` and an HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The envelope; all four members are always there."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        kind = self.code if self.code == "insufficient_quota" else kind
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def answer(error: ApiError) -> JSONResponse:
    """The error as an answer."""
    return JSONResponse(error.body(), error.status, error.headers)


def not_now() -> ApiError:
    """For what a full disk or a database that is away keeps from being done; the log says why."""
    return ApiError(503, "The service cannot do this at present.", headers={"Retry-After": "2"})


def unknown_member(name: str, near: str) -> ApiError:
    """For a member of a body, or a parameter of a query, that nobody knows; `near` says which are
    known."""
    message = f"Unknown parameter: '{name}'. {near[:1].upper()}{near[1:]}"
    return ApiError(400, message, param=name, code="unknown_parameter")


def missing_job(job: str) -> ApiError:
    """For an id that is no job of the client's project."""
    message = f"Could not find fine tune: {job}"
    return ApiError(404, message, param="fine_tune_id", code="fine_tune_not_found")


def missing_file(file: str) -> ApiError:
    """For an id that is no file of the client's project."""
    return ApiError(404, f"No such File object: {file}", param="id")


def missing_model(model: str) -> ApiError:
    """For a name that is no model of the client's project."""
    message = f"The model '{model}' does not exist"
    return ApiError(404, message, param="model", code="model_not_found")
