"""ShareGPT: {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Chat
from launcher.data.formats.messages import conversation, read_turns


class ShareGptFormat:
    """Turns by from/value or role/content, an optional "system" text and "tools" beside them."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is a list of turns."""
        turns = record.get(_name(record))
        return isinstance(turns, list) and isinstance(next(iter(turns), None), dict)

    def read(self, record: Mapping[str, Any]) -> Chat:
        """The conversation; `BadRecord` for a speaker that is not known."""
        name = _name(record)
        if record.get(name) is None:
            raise BadRecord(
                f"field {name!r} is missing",
                hint='write {"conversations": [{"from": "human", "value": "..."}, ...]}, or map '
                "the column with data.columns.conversations=COLUMN",
            )
        return conversation(record, read_turns(record[name], name))


def _name(record: Mapping[str, Any]) -> str:
    names = ("conversations", "conversation")
    return next((name for name in names if record.get(name) is not None), names[0])
