"""Conversations: {"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Chat, kind


class ChatFormat:
    """OpenAI's chat layout: tools, tool calls and a per-message "weight" of 0 or 1 included.

    Its older layout of calls (`functions`, `function_call`, role `function`) is read as the same.
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
        tools, functions = record.get("tools"), record.get("functions")
        if tools is None and isinstance(functions, list):
            tools = [{"type": "function", "function": function} for function in functions]
        return conversation(record["messages"], tools)


def conversation(raw: Any, tools: Any) -> Chat:
    """A chat of raw messages and tools; `BadRecord` without an assistant turn to learn."""
    messages = read_messages(raw, "messages")
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
    return Chat(messages, read_tools(tools), silent)


def read_messages(raw: Any, field: str) -> list[dict[str, Any]]:
    """Checked messages, as chat templates take them; `BadRecord` for what is none."""
    if not isinstance(raw, list) or not raw:
        found = "an empty list" if raw == [] else kind(raw)
        raise BadRecord(
            f"field {field!r} is {found}, not a list of messages",
            hint=f'write {{"{field}": [{{"role": "user", "content": "..."}}, ...]}}',
        )
    return [_message(message, number) for number, message in enumerate(raw, 1)]


def _message(raw: Any, number: int) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise BadRecord(f"message {number} is {kind(raw)}, not an object")
    if (call := raw.get("function_call")) is not None and raw.get("tool_calls") is None:
        raw = {key: value for key, value in raw.items() if key != "function_call"}
        raw["tool_calls"] = [{"type": "function", "function": call}]
    role, content, calls = raw.get("role"), raw.get("content"), raw.get("tool_calls")
    if not isinstance(role, str):
        hint = "from/value is ShareGPT's: data=sharegpt" if "from" in raw else ""
        raise BadRecord(
            f"message {number} has no role", hint=hint or "add a role: user or assistant"
        )
    if not (isinstance(content, (str, list)) or (content is None and calls)):
        raise BadRecord(
            f"the content of message {number} ({role}) is {kind(content)}, not text",
            hint="only an assistant message with tool_calls may go without content"
            if content is None
            else "write it as a JSON string",
        )
    if raw.get("weight") not in (None, 0, 1):
        raise BadRecord(
            f"message {number} has weight {raw['weight']!r}",
            hint="use 0 or 1; a weight beside the messages, which scales the record, may be any",
        )
    if calls is not None and not isinstance(calls, list):
        raise BadRecord(f"the tool_calls of message {number} are {kind(calls)}, not a list")
    # Absent and null mean the same to people, not to templates.
    message = {key: value for key, value in raw.items() if value is not None and key != "weight"}
    if role == "function":
        message["role"] = "tool"
    if isinstance(content, list):
        message["content"] = "".join(_text_part(part, number) for part in content)
    if calls:
        message["tool_calls"] = [_tool_call(call, number) for call in calls]
    return message


def _text_part(part: Any, number: int) -> str:
    """Text of one part of a message's content; what is no text cannot be trained on."""
    name = part.get("type") if isinstance(part, dict) else None
    if not isinstance(name, str):
        raise BadRecord(
            f"a part of message {number} is {kind(part)} without a type",
            hint='write {"type": "text", "text": "..."}',
        )
    if name != "text":
        raise BadRecord(
            f"message {number} has a part of type {name!r}",
            hint="only parts of type 'text' can be trained on: remove the record, or set "
            "data.bad_records=skip",
        )
    if not isinstance(part.get("text"), str):
        raise BadRecord(f"the text of a part of message {number} is {kind(part.get('text'))}")
    return str(part["text"])


def _tool_call(raw: Any, number: int) -> dict[str, Any]:
    function = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord(f"message {number} has a tool call without a function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # OpenAI writes arguments as a JSON string; chat templates expect the object.
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise BadRecord(
                f"message {number}: the arguments of {function['name']!r} are no JSON ({error})"
            ) from error
    function = {**function, "arguments": arguments}
    return {**raw, "function": function} if "function" in raw else {"function": function}


def read_tools(raw: Any) -> list[dict[str, Any]] | None:
    """Descriptions of tools for the chat template; `BadRecord` unless they are objects."""
    if raw is None or raw == []:
        return None
    if not isinstance(raw, list) or not all(isinstance(tool, dict) for tool in raw):
        raise BadRecord(f"field 'tools' is {kind(raw)}, not a list of objects")
    return raw
