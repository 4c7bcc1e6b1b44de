"""ShareGPT: {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Chat, kind
from launcher.data.formats.chat import conversation

#: What speakers are called in data sets of this kind, and what chat templates call them.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class ShareGptFormat:
    """Turns by from/value, an optional "system" text and "tools" beside them."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is a list of turns that say whom they are from."""
        turns = record.get("conversations")
        return isinstance(turns, list) and any(
            isinstance(turn, dict) and ("from" in turn or "role" in turn) for turn in turns[:1]
        )

    def read(self, record: Mapping[str, Any]) -> Chat:
        """The conversation; `BadRecord` for a speaker that is not known."""
        turns = record.get("conversations")
        if not isinstance(turns, list) or not turns:
            found = "missing" if turns is None else "an empty list" if turns == [] else kind(turns)
            raise BadRecord(
                f"field 'conversations' is {found}, not a list of turns",
                hint='write {"conversations": [{"from": "human", "value": "..."}, ...]}',
            )
        system = record.get("system")
        if system is not None and not isinstance(system, str):
            raise BadRecord(f"field 'system' is {kind(system)}, not text")
        messages = [_message(turn, number) for number, turn in enumerate(turns, 1)]
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        return conversation(messages, _tools(record.get("tools")))


def _message(turn: Any, number: int) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise BadRecord(f"turn {number} is {kind(turn)}, not an object")
    speaker, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise BadRecord(
            f"turn {number} is from {speaker!r}, who is not known",
            hint=f"known are {', '.join(ROLES)}; rename the speaker",
        )
    message = {"role": role, "content": value, "weight": turn.get("weight")}
    if str(speaker).lower() == "function_call":
        message |= {"content": None, "tool_calls": _calls(value, number)}
    return message


def _calls(value: Any, number: int) -> list[Any]:
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"turn {number}: the function call is no JSON ({error})") from error
    return calls if isinstance(calls, list) else [calls]


def _tools(raw: Any) -> Any:
    """Tools, which these data sets often hold as JSON within JSON."""
    if not isinstance(raw, str):
        return raw
    try:
        return json.loads(raw) if raw.strip() else None
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"field 'tools' is no JSON ({error})") from error
