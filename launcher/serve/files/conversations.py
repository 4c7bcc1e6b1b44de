"""The check of conversations, as the method `supervised` learns them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from launcher import record_fields
from launcher.serve.files import messages
from launcher.serve.files.examples import ExampleKind

_KNOWN = record_fields.known("chat") | {*record_fields.ANSWERS_BESIDE}


def fault_of(record: Mapping[str, Any]) -> str:
    """What is wrong with a conversation and what stands beside it."""
    if fault := messages.fault_of_conversation(record):
        return fault
    turns = record["messages"]
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        return "has no message from the assistant."
    if all(map(messages.is_silent, answers)):
        return "has weight 0 on every message from the assistant: nothing can be learned."
    if known := record_fields.refused(record, "chat"):
        return f'has "{known[0]}", which is not read: {known[1].what}. {messages.REMOVE}'
    if record_fields.is_given(record.get("conversations")):
        return 'has "messages" and "conversations".'
    if fault := messages.fault_of_tools(record) or messages.fault_of_options(record):
        return fault
    beside = next(
        (n for n in record_fields.ANSWERS_BESIDE if record_fields.is_given(record.get(n))), None
    )
    if beside and turns[-1]["role"] != "assistant":
        return f'has its answer in "{beside}", not in the messages.'
    return messages.fault_of_system(record, turns[0])


def _objects(
    record: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any], Collection[str]]]:
    yield "the example", record, _KNOWN


CONVERSATIONS = ExampleKind(fault_of, _objects, lambda record: record["messages"])
