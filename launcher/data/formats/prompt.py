"""{"prompt": ..., "completion": ...}, as texts or as lists of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Chat, Pair, text_field
from launcher.data.formats.messages import (
    Turns,
    conversation,
    read_history,
    read_turns,
    system_of,
    template_options_of,
    tools_of,
)
from launcher.record_fields import is_given

#: What the two are called.
ASKED = ("prompt", "query", "question")
ANSWERED = ("completion", "response")


class PromptFormat:
    """A prompt and its completion, under these names or mapped by `data.columns`."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether both fields are there."""
        if "prompt" in record and "completion" in record:
            return True
        both = any(name in record for name in ASKED) and any(name in record for name in ANSWERED)
        return both and "instruction" not in record

    def read(self, record: Mapping[str, Any]) -> Pair | Chat:
        """The pair, or the chat that it is with messages, earlier turns, a system message or tools
        in it; `BadRecord` if either is missing, is neither text nor messages, or says nothing."""
        asked, answered = name_of(record, ASKED), name_of(record, ANSWERED)
        if answered not in record:  # then "question" alone is no sign of this layout
            asked = "prompt"
        prompt: Any = record.get(asked)
        tools = record.get("tools")
        if isinstance(prompt, dict):  # OpenAI's input of a preference
            prompt, tools = prompt.get("messages"), prompt.get("tools", tools)
        if not isinstance(prompt, list):
            prompt = text_field(record, asked)
        return pair_of({**record, "tools": tools}, prompt, answer_of(record, answered))


def name_of(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of `names` that says something; the first of all, if none does.

    `BadRecord` if several say different things.
    """
    given = [name for name in names if is_given(record.get(name))]
    for name in given[1:]:
        if record[name] != record[given[0]]:
            raise BadRecord(
                f"{given[0]!r} and {name!r} say different things",
                hint=f"to leave one aside: data.columns.{name}=",
            )
    return next(iter(given), next((name for name in names if name in record), names[0]))


def answer_of(record: Mapping[str, Any], name: str) -> str | list[Any]:
    """What field `name` answers: a text that says something, or messages."""
    answer = record.get(name)
    if isinstance(answer, dict) and ("role" in answer or "from" in answer):
        return [answer]
    if isinstance(answer, list):
        return answer
    text = text_field(record, name)
    if not text.strip():
        raise BadRecord(f"the {name} is empty", hint="remove the record, or skip bad ones")
    return text


def pair_of(
    record: Mapping[str, Any], prompt: str | list[Any], answer: str | list[Any]
) -> Pair | Chat:
    """A prompt and an answer with the record's system message, history and tools."""
    history = read_history(record.get("history"))
    bare = system_of(record) is None and tools_of(record) is None
    plain = bare and not history.messages and not template_options_of(record)
    if plain and isinstance(prompt, str) and isinstance(answer, str):
        return Pair(prompt, answer)
    turns = Turns()
    turns.add(history)
    turns.add(turns_of(prompt, "prompt", "user"), learned=False)
    reply = turns_of(answer, "completion", "assistant")
    shared = len(turns.messages)
    if reply.messages[:shared] == turns.messages:  # the whole conversation, the prompt included
        reply = Turns(reply.messages[shared:], {i - shared for i in reply.silent if i >= shared})
    if not reply.answers:
        raise BadRecord(
            "the completion has no assistant's message behind the prompt",
            hint="a completion is text, or messages of which the assistant's is last",
        )
    turns.add(reply)
    return conversation(record, turns)


def turns_of(said: str | list[Any], name: str, role: str) -> Turns:
    """Messages as they are; a text as the message of `role`."""
    if isinstance(said, str):
        return Turns([{"role": role, "content": said}])
    return read_turns(said, name)
