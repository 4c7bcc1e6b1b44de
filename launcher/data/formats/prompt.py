"""{"prompt": ..., "completion": ...}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Pair, text_field


class PromptFormat:
    """A prompt and its completion, under these names or mapped by `data.columns`."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether both fields are there."""
        return "prompt" in record and "completion" in record

    def read(self, record: Mapping[str, Any]) -> Pair:
        """The pair; `BadRecord` if either is missing or no text, or the completion is empty."""
        pair = Pair(text_field(record, "prompt"), text_field(record, "completion"))
        if not pair.completion.strip():
            raise BadRecord("the completion is empty", hint="remove the record, or skip bad ones")
        return pair
