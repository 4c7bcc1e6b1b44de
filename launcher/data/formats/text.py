"""{"text": ...}, or plain text files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Text, text_field


class TextFormat:
    """A document; every token of it is learned."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is a text."""
        return "text" in record

    def read(self, record: Mapping[str, Any]) -> Text:
        """The document; `BadRecord` if it is no text or empty."""
        text = text_field(record, "text")
        if not text.strip():
            raise BadRecord("the text is empty", hint="remove the record, or skip bad ones")
        return Text(text)
