"""Records that only ask, for an objective whose model answers: whatever else stands in them is for
the grader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.alpaca import instruction_of
from launcher.data.formats.base import BadRecord, OpenQuestion, text_field
from launcher.data.formats.messages import (
    Turns,
    read_history,
    read_turns,
    template_options_of,
    tools_of,
    with_system,
)
from launcher.data.formats.prompt import ANSWERED, ASKED, name_of, turns_of
from launcher.data.formats.question import asked_of
from launcher.record_fields import is_given

#: Format -> where its conversations stand.
_TALKS = {"chat": ("messages",), "sharegpt": ("conversations", "conversation")}


def format_of(record: Mapping[str, Any]) -> str | None:
    """The format whose question a record has that none knows, for want of an answer."""
    if is_given(record.get("instruction")):
        return "alpaca"
    return "prompt" if any(is_given(record.get(name)) for name in ASKED) else None


def question_in(record: Mapping[str, Any], format_name: str) -> OpenQuestion | None:
    """What a record of a format asks, if it has no answer to it; None for others. `BadRecord` for a
    question that cannot be read."""
    if format_name in _TALKS:
        return _in_talk(record, format_name)
    if format_name == "question":
        return asked_of(record)
    if format_name == "alpaca":
        if not is_given(record.get("instruction")) or _has(record, ("output", "response")):
            return None
        return _asked(record, instruction_of(record))
    if format_name != "prompt" or _has(record, ANSWERED) or not _has(record, ASKED):
        return None
    name = name_of(record, ASKED)
    prompt: Any = record[name]
    if isinstance(prompt, dict):
        record = {**record, "tools": prompt.get("tools", record.get("tools"))}
        prompt = prompt.get("messages")
    if not isinstance(prompt, list):
        prompt = text_field(record, name)
    return _asked(record, prompt)


def _has(record: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return any(is_given(record.get(name)) for name in names)


def _in_talk(record: Mapping[str, Any], format_name: str) -> OpenQuestion | None:
    """A conversation that does not end with the assistant."""
    name = next((name for name in _TALKS[format_name] if is_given(record.get(name))), None)
    raw = record.get(name) if name else None
    if not isinstance(raw, list) or not isinstance(raw[-1], Mapping):
        return None
    turns = read_turns(raw, str(name))
    if turns.messages[-1]["role"] == "assistant":
        return None
    turns = with_system(record, turns)
    return OpenQuestion(turns.messages, tools_of(record), template_options_of(record))


def _asked(record: Mapping[str, Any], prompt: str | list[Any]) -> OpenQuestion:
    history, tools = read_history(record.get("history")), tools_of(record)
    options = template_options_of(record)
    turns = Turns()
    turns.add(history)
    turns.add(turns_of(prompt, "prompt", "user"))
    whole = with_system(record, turns)
    if turns.messages[-1]["role"] == "assistant":
        raise BadRecord(
            "the prompt ends with an assistant's message, and there is no completion",
            hint="leave that message out to have it answered anew",
        )
    is_plain = isinstance(prompt, str) and len(whole.messages) == 1 and not (tools or options)
    return OpenQuestion(prompt if is_plain else whole.messages, tools, options)
