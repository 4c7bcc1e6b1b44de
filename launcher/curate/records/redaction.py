"""Texts and records without the personal data and secrets in them."""

from __future__ import annotations

import json
from typing import Any

from launcher.curate.records.personal import PrivateSpan, private_spans
from launcher.data.formats.base import MAX_FOUND

#: Characters around what is shown of a text that are looked at: what they cut is found too.
SPARE = 4000
#: Kind of a span -> what redaction puts in its place.
_STANDS_FOR = {
    "e-mail address": "[EMAIL]",
    "phone number": "[PHONE]",
    "card number": "[CARD]",
    "IBAN": "[IBAN]",
    "IP address": "[IP]",
    "social security number": "[SSN]",
    "key": "[KEY]",
    "private key": "[PRIVATE_KEY]",
    "password": "[PASSWORD]",
}
#: What a message has one of, besides its role.
_SAID = {"content", "tool_calls", "function_call"}


def redact(text: str, rules: frozenset[str]) -> tuple[str, list[PrivateSpan]]:
    """The text with each span of these rules replaced by what it is, such as `[EMAIL]`."""
    gone = [span for span in private_spans(text) if span.rule in rules]
    if not gone:
        return text, []
    return _replaced(text, [(t.begin, t.end, _STANDS_FOR[t.kind]) for t in gone]), gone


def without(text: str) -> str:
    """The text with a space for every span."""
    return _replaced(text, [(span.begin, span.end, " ") for span in private_spans(text)])


def shown(text: str, size: int, begin: int = 0) -> str:
    """`size` characters of a text from `begin` on, masked. What is cut is hidden as what is whole:
    a span over the edge shows no more of itself than its ends."""
    first = max(0, begin - SPARE)
    part = text[first : begin + size + SPARE]
    hidden = [(t.begin + 2, max(t.begin + 2, t.end - 2), "•••") for t in private_spans(part)]
    return _replaced(part, hidden, begin - first, begin - first + size)


def reason_shown(reason: str) -> str:
    """What was found, which may quote the record. What cut it short may have cut what is hidden."""
    if reason.endswith(" ...") and len(reason) > MAX_FOUND:
        reason = f"{reason[:MAX_FOUND].rpartition(' ')[0]} ..."
    return shown(reason, len(reason))


def redact_record(value: Any, rules: frozenset[str], found: list[PrivateSpan]) -> Any:
    """A record with all its texts redacted; `found` gets the spans. Keys stay, and of messages and
    tool calls what means something to programs. Raises `RecursionError` for one nested too deep."""
    if isinstance(value, str):
        text, gone = redact(value, rules)
        found += gone
        return text
    if isinstance(value, (list, tuple)):
        return [redact_record(part, rules, found) for part in value]
    if not isinstance(value, dict):
        return value
    kept = _kept(value)
    made = {}
    for key, part in value.items():
        if key in kept and isinstance(part, str):
            made[key] = part
        elif key == "arguments" and "name" in value and isinstance(part, str):
            made[key] = _arguments(part, rules, found)
        else:
            made[key] = redact_record(part, rules, found)
    return made


def _kept(value: dict[str, Any]) -> tuple[str, ...]:
    """Fields of messages, of their parts and of tool calls that programs read."""
    if isinstance(value.get("role"), str) and not _SAID.isdisjoint(value):
        return ("role", "type", "id", "tool_call_id")
    if isinstance(value.get("function"), dict):
        return ("type", "id")
    kind = value.get("type")
    return ("type",) if isinstance(kind, str) and kind in value else ()


def _arguments(text: str, rules: frozenset[str], found: list[PrivateSpan]) -> str:
    """Arguments of a call, JSON in a text, with their values redacted where they stand."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if not isinstance(value, (dict, list)):
        cleaned: str = redact_record(text, rules, found)
        return cleaned
    gone: list[PrivateSpan] = []
    value = redact_record(_worded(value, rules), rules, gone)
    found += gone
    return json.dumps(value, ensure_ascii=False) if gone else text


def _worded(value: Any, rules: frozenset[str]) -> Any:
    """The value with numbers that are to be redacted as texts."""
    if isinstance(value, dict):
        return {key: _worded(part, rules) for key, part in value.items()}
    if isinstance(value, list):
        return [_worded(part, rules) for part in value]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number and redact(str(value), rules)[1] else value


def _replaced(
    text: str, changes: list[tuple[int, int, str]], begin: int = 0, end: int | None = None
) -> str:
    """Characters [begin, end) of a text, with ranges of it, in order, replaced."""
    end = len(text) if end is None else min(end, len(text))
    parts, at = [], begin
    for first, last, new in changes:
        if last > begin and first < end:
            parts += [text[at:first], new]
            at = max(at, last)
    return "".join([*parts, text[at:end]])
