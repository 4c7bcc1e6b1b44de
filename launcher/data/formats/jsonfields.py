"""Lists and objects that a column holds as JSON text, as CSV must and other tables often do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord
from launcher.data.formats.meanings import EVERY, reads
from launcher.data.jsontext import DECODER, why_not

#: What these hold is never text.
_LISTS = (
    *("messages", "conversations", "conversation", "rejected_messages"),
    *("tools", "functions", "history"),
)
_LISTS_OF = {name: [field for field in _LISTS if field in reads(name)] for name in EVERY}
#: These may be texts, and a text may be JSON: they are messages only if they look so throughout.
_ANSWERS = (
    *("completion", "response", "output"),
    *("chosen", "rejected", "preferred_output", "non_preferred_output"),
)
#: What an answer of messages follows.
_ASKED = ("prompt", "query", "question", "input")


def decoded(record: Mapping[str, Any], format_name: str | None = None) -> Mapping[str, Any]:
    """The record with what is JSON text read.

    `BadRecord` where a list that the format reads is a text that is no JSON. Without a format, all
    is read that can be.
    """
    found: dict[str, Any] = {}
    for name in _LISTS if format_name is None else _LISTS_OF.get(format_name, ()):
        if isinstance(text := record.get(name), str):
            try:
                found[name] = structure(text, f"field {name!r} is") if text.strip() else None
            except BadRecord:
                if format_name is not None:
                    raise
    answers = {name: _messages(record[name]) for name in _ANSWERS if name in record}
    answers = {name: messages for name, messages in answers.items() if messages is not None}
    found |= answers
    if answers or any(isinstance(record.get(name), list) for name in _ANSWERS):
        asked = {name: _messages(record[name]) for name in _ASKED if name in record}
        found |= {name: messages for name, messages in asked.items() if messages is not None}
    label = record.get("label")
    if isinstance(label, str) and label.lstrip().startswith("["):
        labels = _json(label)
        found |= {"label": labels} if isinstance(labels, list) else {}
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
    """The JSON value of a text, None if it is no JSON."""
    try:
        return DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None


def _messages(text: Any) -> Any:
    """Messages, or an object around them, that a text is in JSON; None if it is anything else."""
    if not isinstance(text, str) or text.lstrip()[:1] not in ("[", "{"):
        return None
    value = _json(text)
    inner = value.get("messages") if isinstance(value, dict) else value
    whole = isinstance(value, dict) and inner is None
    return value if are_messages([value] if whole else inner) else None


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
