"""A model's answer as graders see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from launcher.core.errors import DataError
from launcher.graders.errors import Ungraded

#: What a template may read of a sample.
FIELDS = ("output_text", "output_json", "output_tools", "messages")


@dataclass(frozen=True)
class Sample:
    """The text of an answer, and the calls of tools that are in it."""

    output_text: str
    output_tools: tuple[Any, ...] = ()
    messages: tuple[Any, ...] = ()
    """The conversation with an environment that the answer ends; empty without one."""

    @classmethod
    def of(cls, value: Sample | Mapping[str, Any] | str) -> Sample:
        """A sample of its text, or of a mapping with `output_text` and perhaps `output_tools`.

        Raises `DataError` for anything else.
        """
        if isinstance(value, Sample):
            return value
        if isinstance(value, str):
            return cls(value)
        text, tools = value.get("output_text"), value.get("output_tools") or []
        if not isinstance(text, str) or not isinstance(tools, list):
            raise DataError(
                "no answer: output_text is to be a text, and output_tools a list",
                where="sample",
                hint='write {"output_text": "the answer"}',
            )
        return cls(text, tuple(tools))

    @cached_property
    def output_json(self) -> Any:
        """The answer's JSON value; raises `Ungraded` if it is none."""
        try:
            return parse_json(self.output_text)
        except (ValueError, RecursionError) as error:
            raise Ungraded("sample_parse_error", f"the answer is no JSON: {error}") from error

    def plain(self) -> dict[str, Any]:
        """As JSON, for code: `output_json` is None where the answer is none."""
        try:
            value = self.output_json
        except Ungraded:
            value = None
        tools = list(self.output_tools)
        return {
            "output_text": self.output_text,
            "output_json": value,
            "output_tools": tools,
            "messages": list(self.messages),
        }


def parse_json(text: str) -> Any:
    """The JSON value of a text; `ValueError` also for NaN and infinities, which JSON has not."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)
