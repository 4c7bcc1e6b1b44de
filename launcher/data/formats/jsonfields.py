"""Lists and objects that a column holds as JSON text, as CSV must and other tables often do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.core.jsontext import DECODER, why_not
from launcher.data.formats.base import BadRecord
from launcher.record_fields import EVERY, reads

#: What these hold is never text.
_LISTS = (
    *("messages", "conversations", "conversation", "rejected_messages"),
    *("tools", "functions", "history", "chat_template_kwargs"),
    *("completions", "responses", "answers", "scores", "ratings", "ranks", "ranking"),
)
_LISTS_OF = {name: [field for field in _LISTS if field in reads(name)] for name in EVERY}
#: These may be texts, and a text may be JSON: they are messages only if they look so throughout.
_ANSWERS = (
    *("completion", "response", "output"),
    *("chosen", "rejected", "preferred_output", "non_preferred_output"),
)
#: What an answer follows; the last, which Alpaca has too, holds messages only if an answer does.
_ASKED = ("prompt", "query", "question", "input")


def decoded(record: Mapping[str, Any], format_name: str | None = None) -> Mapping[str, Any]:
    """The record with what is JSON text read.

    `BadRecord` where a list that the format reads is a text that is no JSON. Without a format, all
    is read that can be.
    """
    found: dict[str, Any] = {}
    lists = _LISTS if format_name is None else _LISTS_OF.get(format_name, ())
    has_messages = False
    for name, value in record.items():
        if name in _ANSWERS:
            messages = _messages(value)
            if messages is not None:
                found[name] = messages
            has_messages = has_messages or messages is not None or isinstance(value, list)
        elif not isinstance(value, str):
            continue
        elif name in lists:
            try:
                found[name] = structure(value, f"field {name!r} is") if value.strip() else None
            except BadRecord:
                if format_name is not None:
                    raise
        elif name == "label" and isinstance(labels := _json(value), list):
            found[name] = labels
    for name in _ASKED if has_messages else _ASKED[:-1]:
        messages = _messages(record.get(name))
        if messages is not None and (has_messages or _awaits_answer(messages)):
            found[name] = messages
    return {**record, **found} if found else record


def structure(text: str, where: str) -> Any:
    """The value that a text is in JSON; `BadRecord` if it is none: "`where` no JSON"."""
    try:
        value = DECODER.decode(text.strip())
    except (ValueError, RecursionError) as error:
        found, _ = why_not(error)
        hint = "write the list or object itself, or as JSON text (json.dumps)"
        if text.lstrip()[:1] in ("[", "{") and "'" in text:
            hint = "this looks like Python's notation (str of a list): write it with json.dumps"
        raise BadRecord(f"{where} no JSON ({found})", hint=hint) from error
    return value


def _json(text: str) -> Any:
    """The list or object that a text is in JSON, None if it is anything else."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None


def _messages(text: Any) -> Any:
    """Messages, or an object around them, that a text is in JSON; None if it is anything else."""
    value = _json(text) if isinstance(text, str) else None
    if value is None:
        return None
    inner = value.get("messages") if isinstance(value, dict) else value
    whole = isinstance(value, dict) and inner is None
    return value if are_messages([value] if whole else inner) else None


def _awaits_answer(messages: Any) -> bool:
    """Whether messages are what a text answers; a text may also be about a whole conversation."""
    inner = messages.get("messages", [messages]) if isinstance(messages, dict) else messages
    last = inner[-1].get("role") or inner[-1].get("from")
    return str(last).lower() not in ("assistant", "gpt")


def are_messages(value: Any) -> bool:
    """Whether a value is a list, not empty, of objects that say who says what."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict)
            and bool({"role", "from"} & turn.keys())
            and bool({"content", "value", "tool_calls"} & turn.keys())
            for turn in value
        )
    )
