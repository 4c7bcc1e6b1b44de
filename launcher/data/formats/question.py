"""Conversations that are to be answered: {"messages": [...], ...}, in which all else is the
grader's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, OpenQuestion
from launcher.data.formats.messages import read_turns, tools_of


class QuestionFormat:
    """OpenAI's layout for reinforcement: `messages`, perhaps `tools`, and whatever a grader reads.

    No other field has a meaning here, whatever it means in another format: a `label`, a `weight`
    and an `answer` are the grader's alone.
    """

    #: whether `weight` beside the messages is that of the record.
    weighs = False

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Never: the same fields are a `chat` to whoever has not said otherwise."""
        return False

    def read(self, record: Mapping[str, Any]) -> OpenQuestion:
        """Always `BadRecord`: it is asked of an objective that learns from written answers."""
        raise BadRecord(
            "data=question only asks, and what is learned are written answers",
            hint="objective=grpo has the model answer; data=chat reads conversations with answers",
        )


def asked_of(record: Mapping[str, Any]) -> OpenQuestion:
    """What a record asks; `BadRecord` if nobody is to answer."""
    if not isinstance(record.get("messages"), list):
        keys = ", ".join(map(repr, record)) or "none"
        raise BadRecord(
            f"no list 'messages'; the record has: {keys}",
            hint="write the conversation to be answered as a list of messages",
        )
    turns = read_turns(record["messages"], "messages")
    if turns.messages[-1]["role"] == "assistant":
        raise BadRecord(
            "the conversation ends with the assistant, and its answer is to be drawn",
            hint="leave the last message out; as a field of another name the grader reads it",
        )
    return OpenQuestion(turns.messages, tools_of(record))
