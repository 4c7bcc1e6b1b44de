"""{"prompt": ..., "chosen": ..., "rejected": ...}: two answers, the first one better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Preference, kind
from launcher.data.formats.chat import read_messages, read_tools

Message = dict[str, Any]
#: OpenAI's names for the same.
_OPENAI = {"chosen": "preferred_output", "rejected": "non_preferred_output"}


class PreferenceFormat:
    """Answers as texts or messages; the prompt is given, or is what both answers begin with."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether both answers are there, under these names or OpenAI's."""
        return all(name in record or other in record for name, other in _OPENAI.items())

    def read(self, record: Mapping[str, Any]) -> Preference:
        """The pair; `BadRecord` if an answer is missing, empty, or no better than the other."""
        prompt, tools = _prompt(record)
        chosen, rejected = (_answer(record, name) for name in ("chosen", "rejected"))
        if "prompt" not in record and "input" not in record:
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
        return Preference(prompt, chosen, rejected, tools)


def _prompt(record: Mapping[str, Any]) -> tuple[list[Message], list[Message] | None]:
    tools = record.get("tools")
    raw = record.get("prompt")
    if raw is None and isinstance(record.get("input"), dict):
        raw, tools = record["input"].get("messages"), record["input"].get("tools", tools)
    elif raw is None:
        raw = record.get("input")
    if raw is None or raw == "":
        return [], read_tools(tools)
    if isinstance(raw, str):
        return [{"role": "user", "content": raw}], read_tools(tools)
    return read_messages(raw, "prompt"), read_tools(tools)


def _answer(record: Mapping[str, Any], name: str) -> list[Message]:
    field = name if name in record else _OPENAI[name]
    if field not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise BadRecord(
            f"no field {name!r}; the record has: {keys}",
            hint=f"map it with data.columns.{name}=COLUMN, or force another data.format",
        )
    raw = record[field]
    if isinstance(raw, dict):
        raw = [raw]
    if isinstance(raw, list):
        return read_messages(raw, field)
    if not isinstance(raw, str):
        raise BadRecord(
            f"field {field!r} is {kind(raw)}, neither text nor messages",
            hint="write the answer as text, or as a list of messages",
        )
    if not raw.strip():
        raise BadRecord(f"{field} is empty", hint="remove the record, or skip bad ones")
    return [{"role": "assistant", "content": raw}]


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many first messages of both are the same: the prompt, where none is given."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)) - 1
    )
