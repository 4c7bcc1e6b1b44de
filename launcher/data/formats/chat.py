"""Conversations: {"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Chat
from launcher.data.formats.messages import conversation, read_turns
from launcher.record_fields import is_given


class ChatFormat:
    """OpenAI's chat layout: tools, tool calls and a per-message "weight" of 0 or 1 included.

    Its older layout of calls (`functions`, `function_call`, role `function`) is read as the same,
    and so are turns with from and value.
    """

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is a list of messages."""
        return isinstance(record.get("messages"), list)

    def read(self, record: Mapping[str, Any]) -> Chat:
        """The conversation; `BadRecord` without an assistant turn to learn."""
        if "messages" not in record:
            keys = ", ".join(map(repr, record)) or "none"
            raise BadRecord(
                f"no field 'messages'; the record has: {keys}",
                hint="put records of another format into a file of their own, or map the column "
                "with data.columns.messages=COLUMN",
            )
        turns = read_turns(record["messages"], "messages")
        other = record.get("conversations")
        if is_given(other) and read_turns(other, "conversations").messages != turns.messages:
            raise BadRecord(
                "'messages' and 'conversations' say different things",
                hint="to leave one aside: data.columns.conversations=",
            )
        return conversation(record, turns)
