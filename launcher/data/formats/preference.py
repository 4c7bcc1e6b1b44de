"""{"prompt": ..., "chosen": ..., "rejected": ...}: two answers, the first one better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Preference, kind
from launcher.data.formats.jsonfields import decoded
from launcher.data.formats.messages import (
    ROLES,
    Message,
    Turns,
    read_history,
    read_turns,
    template_options_of,
    tools_of,
    with_system,
)
from launcher.record_fields import is_given

#: The names of both answers, those of OpenAI and ms-swift behind TRL's.
_CHOSEN = ("chosen", "preferred_output")
_REJECTED = ("rejected", "non_preferred_output", "rejected_response", "rejected_messages")
#: What the better answer is the end of, where only the worse one has a field (ms-swift).
_WHOLE = ("messages", "response", "completion", "output")
_ASKED = ("prompt", "messages", "conversations", "instruction", "input", "query", "question")


class PreferenceFormat:
    """Answers as texts or messages; the prompt is given, or is what both answers begin with."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether both answers are there, under any of their names."""
        if any(is_given(record.get(name)) for name in _CHOSEN):
            return any(is_given(record.get(name)) for name in _REJECTED)
        return _worse_alone(record) is not None and any(name in record for name in _WHOLE)

    def read(self, record: Mapping[str, Any]) -> Preference:
        """The pair; `BadRecord` if an answer is missing, empty, or no better than the other."""
        record, tools = _as_trl(record)
        prompt = _prompt(record)
        chosen, rejected = (_answer(record, name) for name in ("chosen", "rejected"))
        if prompt:
            chosen, rejected = _behind(prompt, chosen), _behind(prompt, rejected)
        else:
            shared = _shared(chosen, rejected)
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if chosen == rejected:
            raise BadRecord(
                "chosen and rejected are the same",
                hint="there is nothing to prefer: remove the record, or set data.bad_records=skip",
            )
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            if not answer or answer[-1]["role"] != "assistant":
                last = answer[-1]["role"] if answer else "nothing"
                raise BadRecord(
                    f"{name} ends with {last}, not with an assistant's message",
                    hint="an answer is text, or messages of which the assistant's is last",
                )
        before = with_system(record, Turns(prompt)).messages
        return Preference(before, chosen, rejected, tools, template_options_of(record))


def how_to_learn_chosen(record: Mapping[str, Any]) -> str:
    """What to type to learn the better answers of records like this one."""
    record = decoded(record)
    chosen = next((name for name in _CHOSEN if name in record), None)
    if chosen is None:  # the better answer is where it is in records without a worse one
        usual = {"messages": "chat", "conversations": "sharegpt", "instruction": "alpaca"}
        name = next((usual[field] for field in usual if field in record), "prompt")
        return f"to learn the better answers: data={name}"
    asked = _asked(record)
    mapping = {"prompt": asked, "completion": chosen}
    name = "prompt"
    if asked is None and isinstance(record[chosen], str):
        name, mapping = "text objective=text", {"text": chosen}
    elif asked is None:
        name, mapping = "chat", {"messages": chosen}
    elif asked == "instruction":
        name, mapping = "alpaca", {"output": chosen}
    written = ", ".join(f"{to}: {of}" for to, of in mapping.items() if to != of)
    return f"to learn the better answers: data={name} 'data.columns={{{written}}}'"


def _asked(record: Mapping[str, Any]) -> str | None:
    """The field that says what both answers follow, if there is one."""
    for name in _ASKED:
        value = record.get(name)
        last = value[-1] if isinstance(value, list) and value else None
        who = (last.get("role") or last.get("from")) if isinstance(last, dict) else None
        # A conversation that ends with an answer is no prompt: it holds the better answer again.
        if is_given(value) and not (isinstance(who, str) and ROLES.get(who) == "assistant"):
            return name
    return None


def _worse_alone(record: Mapping[str, Any]) -> str | None:
    """The field of a worse answer whose better one stands where answers stand (ms-swift)."""
    return next(
        (name for name in ("rejected_response", "rejected_messages") if record.get(name)), None
    )


def _as_trl(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Message] | None]:
    """The record with TRL's names for both answers, and its tools."""
    renamed = dict(record)
    for want, names in (("chosen", _CHOSEN), ("rejected", _REJECTED)):
        have = next((name for name in names if record.get(name) is not None), want)
        if have in record:
            renamed[want] = record[have]
    if isinstance(asked := record.get("input"), dict):  # OpenAI's
        renamed["input"] = asked.get("messages")
        renamed["tools"] = asked.get("tools", record.get("tools"))
    if "chosen" not in renamed and _worse_alone(record):
        renamed |= _whole(record)
    return renamed, tools_of(renamed)


def _whole(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Prompt and better answer of a record that says which answer would have been worse."""
    messages = record.get("messages")
    if isinstance(messages, list):
        return {"messages": messages[:-1], "chosen": messages[-1:]}
    return {"chosen": next((record[name] for name in _WHOLE[1:] if name in record), None)}


def _prompt(record: Mapping[str, Any]) -> list[Message]:
    name = _asked(record)
    turns = read_history(record.get("history"))
    if name is None:
        return turns.messages
    raw = record[name]
    if name == "instruction" and isinstance(raw, str) and isinstance(record.get("input"), str):
        raw = "\n\n".join(filter(None, (raw, record["input"])))
    if isinstance(raw, str):
        return [*turns.messages, {"role": "user", "content": raw}]
    return [*turns.messages, *read_turns(raw, name).messages]


def _answer(record: Mapping[str, Any], name: str) -> list[Message]:
    if name not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise BadRecord(
            f"no field {name!r}; the record has: {keys}",
            hint=f"map it with data.columns.{name}=COLUMN, or force another data.format",
        )
    raw = record[name]
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


def _behind(prompt: list[Message], answer: list[Message]) -> list[Message]:
    """An answer without the prompt that it repeats."""
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many first messages of both are the same: the prompt, where none is given."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)) - 1
    )
