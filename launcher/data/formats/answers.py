"""Answers to one prompt, as the formats have them that judge answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.data.formats.base import BadRecord, Messages, kind
from launcher.data.formats.messages import ROLES, read_history, read_turns
from launcher.record_fields import JUDGED, is_given

#: What may say what the answers follow.
ASKED = ("prompt", "messages", "conversations", "instruction", "input", "query", "question")
#: What begins with what the answers follow, where nothing else says it.
_WHOLE = ("chosen", "preferred_output", "messages", "conversations")
#: Speakers in a dialogue that is one text (Anthropic's).
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ \t]?")


def asked_in(record: Mapping[str, Any]) -> str | None:
    """The field that says what the answers follow, if there is one."""
    for name in ASKED:
        value = record.get(name)
        last = value[-1] if isinstance(value, list) and value else None
        who = (last.get("role") or last.get("from")) if isinstance(last, dict) else None
        # A conversation that ends with an answer is no prompt: it holds an answer again.
        if is_given(value) and not (isinstance(who, str) and ROLES.get(who) == "assistant"):
            return name
    return None


def prompt_of(record: Mapping[str, Any]) -> Messages:
    """What the answers of a record follow: earlier turns, and what is asked."""
    name = asked_in(record)
    turns = read_history(record.get("history"))
    if name is None:
        return turns.messages
    raw = record[name]
    if name == "instruction" and isinstance(raw, str) and isinstance(record.get("input"), str):
        raw = "\n\n".join(filter(None, (raw, record["input"])))
    if isinstance(raw, str):
        said = dialogue(raw) or [{"role": "user", "content": raw}]
        return [*turns.messages, *said]
    return [*turns.messages, *read_turns(raw, name).messages]


def question_of(raw: Any, format_name: str | None, columns: Mapping[str, str]) -> Any:
    """What decides on which side of a split a record stands: itself, or, where answers are judged,
    what they follow, so that all answers to one prompt stand together."""
    if format_name not in JUDGED or not isinstance(raw, Mapping):
        return raw
    record = {**raw, **{want: raw[have] for want, have in columns.items() if have in raw}}
    name = asked_in(record)
    if name is not None:
        return [record.get("history"), record[name], name == "instruction" and record.get("input")]
    whole = next((record[field] for field in _WHOLE if is_given(record.get(field))), None)
    if isinstance(whole, list):
        return whole[:-1] or raw
    return (whole.rpartition("\n\nAssistant:")[0] if isinstance(whole, str) else "") or raw


def answer_of(raw: Any, name: str) -> Messages:
    """The answer that `name` is; `BadRecord` if it is empty, or neither text nor messages."""
    if isinstance(raw, dict):
        raw = [raw]
    if isinstance(raw, list):
        return read_turns(raw, name).messages
    if not isinstance(raw, str):
        raise BadRecord(
            f"field {name!r} is {kind(raw)}, neither text nor messages",
            hint="write the answer as text, or as a list of messages",
        )
    if not raw.strip():
        raise BadRecord(f"{name} is empty", hint="remove the record, or skip bad ones")
    return [{"role": "assistant", "content": raw}]


def require_answer(answer: Messages, name: str) -> None:
    """`BadRecord` unless the assistant speaks last, and says something."""
    if not answer or answer[-1]["role"] != "assistant":
        last = answer[-1]["role"] if answer else "nothing"
        raise BadRecord(
            f"{name} ends with {last}, not with an assistant's message",
            hint="an answer is text, or messages of which the assistant's is last",
        )
    if not (answer[-1].get("content") or answer[-1].get("tool_calls")):
        raise BadRecord(f"{name} is empty", hint="remove the record, or skip bad ones")


def behind(prompt: Messages, answer: Messages) -> Messages:
    """An answer without the prompt that it repeats."""
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer


def dialogue(text: str) -> Messages | None:
    """The turns of a dialogue written as one text, "\\n\\nHuman: ...\\n\\nAssistant: ..."; None
    for any other text. A last turn that says nothing is left out: there the answer is to stand."""
    marks = list(_SPEAKER.finditer(text))
    if not marks or marks[0].start() or not text[: marks[0].end()].lstrip().startswith("Human"):
        return None
    if not any(mark[1] == "Assistant" for mark in marks):
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    turns = [
        {
            "role": "user" if mark[1] == "Human" else "assistant",
            "content": text[mark.end() : end].strip(),
        }
        for mark, end in zip(marks, ends, strict=True)
    ]
    return turns if turns[-1]["content"] else turns[:-1]


def rating(value: Any, name: str) -> float | None:
    """A rating as a number, None where there is none; `BadRecord` for what is no number."""
    if not is_given(value):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRecord(
            f"{name!r} is {value!r}, which rates nothing",
            hint=f"write a finite number; to train as if it were not there: data.columns.{name}=",
        )
    return number


def first_given(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of `names` under which the record says something."""
    return next((name for name in names if is_given(record.get(name))), None)
