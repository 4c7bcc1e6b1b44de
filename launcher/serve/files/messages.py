"""The check of messages and tools, as OpenAI writes them, wherever an example has them.

A fault is said as a sentence; an empty one is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launcher import record_fields
from launcher.core.jsontext import DECODER

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
REMOVE = "Remove it, or the example."
MOST_DEPTH = 64
#: By these a file of preferences is told.
_OF_PREFERENCES = ("preferred_output", "non_preferred_output")


def depth_exceeds(value: Any, most: int) -> bool:
    """Whether objects and lists stand in each other deeper than `most`."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return most == 0 or any(depth_exceeds(item, most - 1) for item in value)


def fault_of_conversation(record: Mapping[str, Any]) -> str:
    """What is wrong with the list `messages` of a line."""
    turns = record.get("messages")
    if isinstance(turns, list) and turns:
        return fault_of_messages(turns)
    if any(name in record for name in _OF_PREFERENCES):
        return (
            'has two answers to one input, which the method "dpo" learns from, and no list'
            ' "messages". Create the job with "method": {"type": "dpo"}.'
        )
    return 'has no list "messages".'


def fault_of_messages(messages: Sequence[Any], where: str = "") -> str:
    """What is wrong with the first bad one of some messages; `where` goes before its number."""
    for number, message in enumerate(messages, 1):
        fault = _fault_of_message(message)
        if fault:
            return f"is wrong at {where}message {number}: {fault}"
    return ""


def fault_of_tools(record: Mapping[str, Any]) -> str:
    """What is wrong with the tools beside messages, and how they are called."""
    for name in ("tools", "functions"):
        tools = record.get(name)
        if tools is not None and not (isinstance(tools, list) and all(map(_is_tool, tools))):
            return f'has "{name}" that are no list of functions with a name each.'
    if record_fields.is_given(record.get("tools")) and record_fields.is_given(
        record.get("functions")
    ):
        return 'has "tools" and "functions".'
    if not isinstance(record.get("parallel_tool_calls"), bool | None):
        return 'has "parallel_tool_calls" that is neither true nor false.'
    return ""


def fault_of_options(record: Mapping[str, Any]) -> str:
    """What is wrong with the weight of an example, and with its variables of the template."""
    options = record.get("chat_template_kwargs")
    if options is not None and not is_object(options):
        return 'has "chat_template_kwargs" that is no object.'
    if own := sorted(record_fields.OF_THE_CALLER.intersection(options or {})):
        return f'has "{own[0]}" in "chat_template_kwargs", which is no variable of a template.'
    weight = record.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (is_number and 0 <= weight <= record_fields.MAX_WEIGHT):
        return 'has a "weight" beside the messages that is no number from 0 to 1e6.'
    return ""


def fault_of_system(record: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """What is wrong with a system message beside the messages, of which `first` is the first."""
    given = [record[name] for name in ("system", "system_prompt") if record.get(name)]
    if not all(isinstance(text, str) for text in given):
        return 'has a "system" beside the messages that is not text.'
    said = {text for text in given if text.strip()}
    if said and first["role"] in ("system", "developer"):
        own = first.get("content")
        said.add(text_of(own if record_fields.is_given(own) else first.get("value", own)))
    return "has two system messages that say different things." if len(said) > 1 else ""


def text_of(content: Any) -> str:
    """A text, or its parts as one."""
    return content if isinstance(content, str) else "".join(part[part["type"]] for part in content)


def is_silent(message: Mapping[str, Any]) -> bool:
    """Whether a checked message says of itself that it is not learned."""
    return any(message.get(name) == 0 for name in record_fields.FLAGS)


def is_object(value: Any) -> bool:
    """Whether a value is a JSON object."""
    return isinstance(value, dict)


def _fault_of_message(message: Any) -> str:
    if not is_object(message):
        return "it is not an object."
    if known := record_fields.refused_in_turn(message):
        return f'its "{known[0]}" is not read: {known[1].what}. {REMOVE}'
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if record_fields.is_given(call := message.get("function_call")):
        if record_fields.is_given(calls):
            return 'it has "tool_calls" and a "function_call".'
        calls = [{"function": call}]
    value = message.get("value")
    content = content if record_fields.is_given(content) or value is None else value
    if role not in ROLES:
        return f'its "role" is not one of {", ".join(ROLES)}.'
    for name in ("name", "tool_call_id", *record_fields.THOUGHT_FIELDS):
        if not isinstance(message.get(name), str | None):
            return f'its "{name}" is not text.'
    if fault := _fault_of_flags(message, role):
        return fault
    is_calls = isinstance(calls, list) and all(map(_is_call, calls))
    if record_fields.is_given(calls) and not (role == "assistant" and is_calls):
        return 'its "tool_calls" are no list of calls of functions by the assistant.'
    refusal = message.get("refusal")
    if refusal is not None and not (role == "assistant" and _is_text(refusal)):
        return 'a "refusal" is text, and only for the assistant.'
    refuses = record_fields.is_given(refusal)
    if refuses and content:
        return 'it has a "content" and a "refusal".'
    if record_fields.is_given(value) and value != content:
        return 'its "content" and "value" say different things.'
    if content is None and role == "assistant" and (calls or refuses):
        return ""
    return "" if _is_text(content) else 'its "content" is not text.'


def _fault_of_flags(message: Mapping[str, Any], role: str) -> str:
    """What is wrong with what says whether a turn is learned.

    In files that were made from tables, null stands for what is not there.
    """
    for name in record_fields.FLAGS:
        flag = message.get(name)
        if flag is None:
            continue
        if name == "weight" and (role != "assistant" or isinstance(flag, bool)):
            return 'a "weight" is 0 or 1, and only for the assistant.'
        if not isinstance(flag, int | float) or flag not in (0, 1):
            return f'a "{name}" is 0 or 1.'
        if flag and role != "assistant" and name in ("train", "training"):
            return f'its "{name}" is true, and only what the assistant says is learned.'
    return ""


def _is_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(map(_is_text_part, content))
    return isinstance(content, str)


def _is_text_part(part: Any) -> bool:
    kind = part.get("type") if is_object(part) else None
    return kind in ("text", "refusal") and isinstance(part.get(kind), str)


def _is_tool(tool: Any) -> bool:
    if not is_object(tool):
        return False
    function = tool.get("function")
    if not isinstance(function, dict | None):
        return False
    described = function or tool
    return isinstance(described.get("name"), str) and all(
        isinstance(one.get("parameters"), dict | None) for one in (tool, described)
    )


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return isinstance(arguments, dict | None)
    try:
        held = DECODER.decode(arguments.strip() or "{}")
        json.dumps(held, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(held, dict | None) and not depth_exceeds(held, MOST_DEPTH)
