"""Rules of other people's services: what their upload would be refused for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, kind

Breach = tuple[str, str]
"""Rule and what breaks it."""

#: What OpenAI asks of a whole file.
MIN_EXAMPLES, MAX_FILE_BYTES = 10, 512 << 20
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MESSAGE_KEYS = {"role", "content", "name", "weight", "tool_calls", "tool_call_id"}
_MESSAGE_KEYS |= {"function_call", "refusal", "audio"}
_CHAT_KEYS = {"messages", "tools", "parallel_tool_calls", "functions"}
_PAIR_KEYS = {"input", "preferred_output", "non_preferred_output"}
_PARTS = ("text", "image_url", "refusal", "input_audio")


def openai(raw: Any) -> Iterator[Breach]:
    """What OpenAI's fine-tuning would refuse or ignore in one line of a file."""
    if isinstance(raw, BadRecord):
        yield "openai_json", raw.found
    elif "input" in raw or "preferred_output" in raw:
        yield from _preference(raw)
    else:
        yield from _unknown_keys(raw, _CHAT_KEYS, "the record")
        yield from _chat(raw)


def _chat(raw: Mapping[str, Any]) -> Iterator[Breach]:
    yield from _tools(raw)
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else kind(messages)
        yield "openai_messages", f"'messages' is {found}, not a list of messages"
        return
    yield from _messages(messages, "message")
    answers = [m for m in messages if isinstance(m, dict) and m.get("role") == "assistant"]
    if not answers:
        yield "openai_assistant", "no message is the assistant's"
    elif all(answer.get("weight") == 0 for answer in answers):
        yield "openai_assistant", "every message of the assistant has weight 0"
    elif not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
        yield "openai_last", "the last message is not the assistant's"


def _preference(raw: Mapping[str, Any]) -> Iterator[Breach]:
    yield from _unknown_keys(raw, _PAIR_KEYS, "the record")
    given = raw.get("input")
    if not isinstance(given, dict):
        yield "openai_messages", f"'input' is {kind(given)}, not an object with messages"
    else:
        yield from _tools(given)
        messages = given.get("messages")
        if isinstance(messages, list) and messages:
            yield from _messages(messages, "message")
        else:
            yield "openai_messages", "'input' has no messages"
    for name in ("preferred_output", "non_preferred_output"):
        answer = raw.get(name)
        if not isinstance(answer, list) or len(answer) != 1 or not isinstance(answer[0], dict):
            yield "openai_assistant", f"{name!r} is not a list of one message"
            continue
        yield from _messages(answer, f"{name}, message")
        if answer[0].get("role") != "assistant":
            yield "openai_assistant", f"{name!r} is not the assistant's"


def _messages(messages: list[Any], what: str) -> Iterator[Breach]:
    calls: set[str] = set()
    for number, message in enumerate(messages, 1):
        here = f"{what} {number}"
        if not isinstance(message, dict):
            yield "openai_messages", f"{here} is {kind(message)}, not an object"
            continue
        yield from _unknown_keys(message, _MESSAGE_KEYS, here)
        role = message.get("role")
        if role not in ROLES:
            yield "openai_roles", f"{here} has role {role!r}"
        yield from _content(message, here)
        if "weight" in message:
            yield from _weight(message, here)
        if message.get("tool_calls") is not None:
            yield from _calls(message, here, calls)
        if role == "tool" and not _answers(message, calls):
            yield "openai_tools", f"{here} answers no tool call before it"
        name = message.get("name")
        if name is not None and (not isinstance(name, str) or len(name) > 64):
            yield "openai_keys", f"{here} has a name that is no text of at most 64 characters"


def _answers(message: Mapping[str, Any], calls: set[str]) -> bool:
    given = message.get("tool_call_id")
    return isinstance(given, str) and given in calls


def _content(message: Mapping[str, Any], here: str) -> Iterator[Breach]:
    content = message.get("content")
    calls = message.get("tool_calls") or message.get("function_call")
    if isinstance(content, str):
        if not content and not calls:
            yield "openai_content", f"{here} is empty"
    elif isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in _PARTS:
                yield "openai_content", f"{here} has a part that is none of {', '.join(_PARTS)}"
    elif content is not None or not (calls and message.get("role") == "assistant"):
        yield "openai_content", f"the content of {here} is {kind(content)}, not text"


def _weight(message: Mapping[str, Any], here: str) -> Iterator[Breach]:
    if message["weight"] not in (0, 1) or isinstance(message["weight"], bool):
        yield "openai_weight", f"{here} has weight {message['weight']!r}, not 0 or 1"
    if message.get("role") != "assistant":
        yield "openai_weight", f"{here} has a weight, which only the assistant's may have"


def _calls(message: Mapping[str, Any], here: str, calls: set[str]) -> Iterator[Breach]:
    if message.get("role") != "assistant":
        yield "openai_tools", f"{here} has tool calls, which only the assistant's may have"
    given = message["tool_calls"]
    for call in given if isinstance(given, list) else [given]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            yield "openai_tools", f"{here} has a tool call without a function name"
            continue
        if not isinstance(call.get("id"), str) or call.get("type") != "function":
            yield "openai_tools", f'{here} has a tool call without an id and "type": "function"'
        else:
            calls.add(call["id"])
        if not _is_json(function.get("arguments")):
            yield "openai_tools", f"{here}: the arguments of {function['name']!r} are no JSON text"


def _tools(raw: Mapping[str, Any]) -> Iterator[Breach]:
    parallel, tools = raw.get("parallel_tool_calls"), raw.get("tools")
    if parallel is not None and not isinstance(parallel, bool):
        yield "openai_tools", f"'parallel_tool_calls' is {kind(parallel)}, not true or false"
    if tools is None:
        return
    if not isinstance(tools, list):
        yield "openai_tools", f"'tools' is {kind(tools)}, not a list"
        return
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            yield "openai_tools", "a tool has no function with a name"


def _unknown_keys(raw: Mapping[str, Any], known: set[str], here: str) -> Iterator[Breach]:
    unknown = sorted(map(repr, set(raw) - known))
    if unknown:
        yield "openai_keys", f"{here} has {', '.join(unknown)}, which the service does not know"


def _is_json(text: Any) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


PROFILES: dict[str, Callable[[Any], Iterator[Breach]]] = {"openai": openai}
#: rule -> what to do; each fails on its first record, but openai_last, which only warns.
FIXES: dict[str, dict[str, str]] = {
    "openai": {
        "openai_file": f"give at least {MIN_EXAMPLES} examples, in .jsonl files of at most "
        f"{MAX_FILE_BYTES >> 20} MiB",
        "openai_json": "every line must be one JSON object, in UTF-8",
        "openai_messages": 'write {"messages": [{"role": "user", "content": "..."}, ...]}',
        "openai_roles": f"use one of {', '.join(ROLES)}",
        "openai_keys": "remove or rename the keys",
        "openai_content": "give text; only an assistant message with tool calls goes without",
        "openai_assistant": "end each example with what the model is to answer",
        "openai_last": "let the assistant have the last word",
        "openai_weight": "use 0 or 1, in the assistant's messages only",
        "openai_tools": "name every function, give calls an id, answer them by tool_call_id",
    }
}
