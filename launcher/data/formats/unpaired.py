"""{"prompt": ..., "completion": ..., "label": true}: an answer, and whether it is a good one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.answers import (
    answer_of,
    asked_in,
    behind,
    first_given,
    prompt_of,
    require_answer,
)
from launcher.data.formats.base import BadRecord, Unpaired, kind
from launcher.data.formats.jsonfields import are_messages
from launcher.data.formats.messages import (
    ROLES,
    Turns,
    read_turns,
    template_options_of,
    tools_of,
    with_system,
)
from launcher.record_fields import VERDICTS, is_given, verdict

_ANSWERED = ("completion", "response", "output")
#: Conversations of which the last turn is judged.
_WHOLE = ("messages", "conversations")


class UnpairedFormat:
    """An answer to a prompt, or at the end of a conversation, with a verdict on it."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is an answer, what it answers, and a verdict."""
        name = first_given(record, VERDICTS)
        if name is None or verdict(record.get(name)) is None:
            return False
        if _whole(record):
            return True
        return asked_in(record) is not None and first_given(record, _ANSWERED) is not None

    def read(self, record: Mapping[str, Any]) -> Unpaired:
        """The answer and its label; `BadRecord` without either, or where the label says neither
        good nor bad."""
        label = _label(record)
        if whole := _whole(record):
            turns = read_turns(record.get(whole), whole).messages
            prompt, answer = turns[:-1], turns[-1:]
            beside = first_given(record, _ANSWERED)
            if beside and answer_of(record.get(beside), beside) != answer:
                raise BadRecord(
                    f"{whole!r} ends with another answer than {beside!r}",
                    hint=f"to leave one aside: data.columns.{beside}=",
                )
        else:
            name = first_given(record, _ANSWERED) or _ANSWERED[0]
            if name not in record:
                keys = ", ".join(map(repr, record)) or "none"
                raise BadRecord(
                    f"no field {name!r}; the record has: {keys}",
                    hint=f"map it with data.columns.{name}=COLUMN, or force another data.format",
                )
            prompt = prompt_of({key: value for key, value in record.items() if key != name})
            answer = behind(prompt, answer_of(record[name], name))
            require_answer(answer, name)
        before = with_system(record, Turns(prompt)).messages
        return Unpaired(before, answer, label, tools_of(record), template_options_of(record))


def _whole(record: Mapping[str, Any]) -> str | None:
    """The field with a conversation that ends with the answer."""
    for name in _WHOLE:
        turns: Any = record.get(name)
        if are_messages(turns):
            last = turns[-1].get("role") or turns[-1].get("from")
            if isinstance(last, str) and ROLES.get(last.lower()) == "assistant":
                return name
    return None


def _label(record: Mapping[str, Any]) -> bool:
    given = {name: record[name] for name in VERDICTS if is_given(record.get(name))}
    if len(given) > 1 and verdict(given.get("rating")) is None:  # then it is a mark
        given.pop("rating", None)
    if not given:
        keys = ", ".join(map(repr, record)) or "none"
        raise BadRecord(
            f"no field 'label'; the record has: {keys}",
            hint="map it with data.columns.label=COLUMN, or force another data.format",
        )
    found = {name: verdict(value) for name, value in given.items()}
    for name, value in found.items():
        if value is None:
            raw = given[name]
            said = repr(raw) if isinstance(raw, (str, int, float)) else kind(raw)
            raise BadRecord(
                f"field {name!r} is {said}, neither good nor bad",
                hint=f"write true or false; to leave it aside: data.columns.{name}=",
            )
    if len(set(found.values())) > 1:
        names = list(found)
        raise BadRecord(
            f"{names[0]!r} and {names[1]!r} say different things",
            hint=f"to leave one aside: data.columns.{names[1]}=",
        )
    return bool(next(iter(found.values())))


def how_to_learn_good(record: Mapping[str, Any]) -> str:
    """What to type to learn the good answers of records like this one, and no other."""
    name = first_given(record, VERDICTS) or VERDICTS[0]
    usual = {"messages": "chat", "conversations": "sharegpt", "instruction": "alpaca"}
    format_name = next((usual[field] for field in usual if field in record), "prompt")
    return f"to learn the good answers alone: data={format_name} data.columns.weight={name}"
