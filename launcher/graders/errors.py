"""Why an answer has no score, by the names that OpenAI's API gives to errors of graders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Kind -> what it means.
ERRORS = {
    "sample_parse_error": "the answer lacks what a template reads of it, or is no JSON",
    "invalid_variable_error": "the item lacks a field that a template reads",
    "formula_parse_error": "the formula has no value, as of a division by zero",
    "python_grader_runtime_error": "the code raised, ended or gave no number",
    "python_grader_server_error": "the sandbox stopped the code, or did not start",
    "model_grader_parse_error": "the model's reply holds no score or label",
    "model_grader_refusal_error": "the endpoint declines the question",
    "model_grader_server_error": "the endpoint does not answer",
    "other_error": "a score that is no number, or out of range",
}


@dataclass(frozen=True, slots=True)
class GradingError:
    """One thing that went wrong: its kind, of `ERRORS`, and what was found."""

    kind: str
    message: str
    is_passing: bool = False
    """Whether the same may have a score later: who grades is away, and nobody has refused."""

    def __post_init__(self) -> None:
        # Answers and items are quoted, and may hold half a character, which no file can.
        object.__setattr__(self, "message", self.message.encode(errors="replace").decode())

    @property
    def is_of_answer(self) -> bool:
        """Whether the answer is to blame, which then has the lowest score."""
        return self.kind == "sample_parse_error"


class Ungraded(Exception):
    """This answer has no score."""

    def __init__(
        self, kind: str, message: str, *, is_passing: bool = False, **metadata: Any
    ) -> None:
        assert kind in ERRORS
        super().__init__(message)
        self.error = GradingError(kind, message, is_passing)
        self.metadata: Mapping[str, Any] = metadata
