"""The check of questions, as the method `reinforcement` has them answered: the model answers, and a
grader reads what else stands in a line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from launcher.serve.files import messages
from launcher.serve.files.examples import ExampleKind

_MOST_MISSING = 3

#: Item -> what a grader names and the item lacks.
Missing = Callable[[Mapping[str, Any]], list[str]]


def questions(missing: Missing) -> ExampleKind:
    """Questions for a grader that misses so much of a line."""

    def fault_of(record: Mapping[str, Any]) -> str:
        return _fault_of_question(record) or _fault_of_item(record, missing)

    return ExampleKind(fault_of, _objects, lambda record: record["messages"])


def _fault_of_question(record: Mapping[str, Any]) -> str:
    """What is wrong with a conversation that is to be answered."""
    if fault := messages.fault_of_conversation(record):
        return fault
    turns = record["messages"]
    last = turns[-1]["role"]
    if last == "assistant":
        return (
            'ends with the assistant, as what the method "supervised" learns from; here the model'
            " answers, so the last message is the user's. Create the job with"
            ' "method": {"type": "supervised"}, or take that message out.'
        )
    if last != "user":
        return f"ends with a message from {last}: the last message is the user's."
    return messages.fault_of_tools(record)


def _fault_of_item(record: Mapping[str, Any], missing: Missing) -> str:
    """What the grader names and the line lacks."""
    lacks = missing({"prompt": "", **record})
    if not lacks:
        return ""
    more = f" and {len(lacks) - _MOST_MISSING} more" if len(lacks) > _MOST_MISSING else ""
    named = ", ".join(f'"{path}"' for path in lacks[:_MOST_MISSING])
    return f"lacks {named}{more}, which the grader reads."


def _objects(
    record: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any], Collection[str]]]:
    """Nothing: all beside the messages is the grader's."""
    return iter(())
