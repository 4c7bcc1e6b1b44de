"""Conversations: {"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Chat, kind


class ChatFormat:
    """OpenAI's chat layout: tools, tool calls and a per-message "weight" of 0 or 1 included."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is a list of messages."""
        return isinstance(record.get("messages"), list)

    def read(self, record: Mapping[str, Any]) -> Chat:
        """The conversation; `BadRecord` without an assistant turn to learn."""
        raw = record.get("messages")
        if not isinstance(raw, list) or not raw:
            found = "an empty list" if raw == [] else kind(raw)
            raise BadRecord(
                f"field 'messages' is {found}, not a list of messages",
                hint='write {"messages": [{"role": "user", "content": "..."}, ...]}',
            )
        messages = [_message(message, number) for number, message in enumerate(raw, 1)]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        silent = frozenset(i for i in answers if raw[i].get("weight") == 0)
        if len(silent) == len(answers):
            roles = ", ".join(message["role"] for message in messages[:8])
            raise BadRecord(
                "every assistant turn has weight 0"
                if silent
                else f"no assistant turn (roles: {roles})",
                hint="there is nothing to learn from this record: remove it, or set "
                "data.bad_records=skip",
            )
        return Chat(messages, _tools(record.get("tools")), silent)


def _message(raw: Any, number: int) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise BadRecord(f"message {number} is {kind(raw)}, not an object")
    role, content, calls = raw.get("role"), raw.get("content"), raw.get("tool_calls")
    if not isinstance(role, str):
        hint = "ShareGPT's from/value must be renamed to role/content" if "from" in raw else ""
        raise BadRecord(
            f"message {number} has no role", hint=hint or "add a role: user or assistant"
        )
    if not (isinstance(content, (str, list)) or (content is None and calls)):
        raise BadRecord(
            f"the content of message {number} ({role}) is {kind(content)}, not text",
            hint="only an assistant message with tool_calls may go without content",
        )
    if raw.get("weight", 1) not in (0, 1):
        raise BadRecord(f"message {number} has weight {raw['weight']!r}", hint="use 0 or 1")
    if calls is not None and not isinstance(calls, list):
        raise BadRecord(f"the tool_calls of message {number} are {kind(calls)}, not a list")
    # Absent and null mean the same to people, not to templates.
    message = {key: value for key, value in raw.items() if value is not None and key != "weight"}
    if calls:
        message["tool_calls"] = [_tool_call(call, number) for call in calls]
    return message


def _tool_call(raw: Any, number: int) -> dict[str, Any]:
    function = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord(f"message {number} has a tool call without a function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # OpenAI writes arguments as a JSON string; chat templates expect the object.
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise BadRecord(
                f"message {number}: the arguments of {function['name']!r} are no JSON ({error})"
            ) from error
    function = {**function, "arguments": arguments}
    return {**raw, "function": function} if "function" in raw else {"function": function}


def _tools(raw: Any) -> list[dict[str, Any]] | None:
    if raw is None or raw == []:
        return None
    if not isinstance(raw, list) or not all(isinstance(tool, dict) for tool in raw):
        raise BadRecord(f"field 'tools' is {kind(raw)}, not a list of objects")
    return raw
