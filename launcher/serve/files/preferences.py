"""The check of preferences, as the method `dpo` learns them: two answers to one input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from launcher import record_fields
from launcher.record_fields import is_given
from launcher.serve.files import messages
from launcher.serve.files.examples import ExampleKind

_ANSWERS = ("preferred_output", "non_preferred_output")
_MEMBERS = ("input", *_ANSWERS)
_INPUT = frozenset(("messages", "tools", "parallel_tool_calls"))
_BESIDE = frozenset(
    ("system", "system_prompt", "tools", "functions", "weight", "chat_template_kwargs")
)
#: Other names of what both answers follow, and of answers, in the format that runs read.
_OTHER_NAMES = record_fields.reads("preference") - {*_MEMBERS, *_BESIDE}
_WHO_ANSWERS = ("assistant", "tool")


def fault_of(record: Mapping[str, Any]) -> str:
    """What is wrong with an input, its answers and what stands beside them."""
    if is_given(record.get("messages")) and not any(name in record for name in _MEMBERS):
        return (
            'has one conversation, which the method "supervised" learns from, and no'
            ' "preferred_output". Create the job with "method": {"type": "supervised"}.'
        )
    asked = record.get("input")
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        return 'has no object "input" with a list "messages".'
    return (
        _fault_of_input(asked)
        or _fault_of_answer(record, "preferred_output")
        or _fault_of_answer(record, "non_preferred_output")
        or _fault_beside(record, asked)
        or _fault_of_pair(record)
    )


def _fault_of_input(asked: Mapping[str, Any]) -> str:
    turns = asked["messages"]
    if not turns:
        return 'has no messages in "input".'
    if fault := messages.fault_of_messages(turns, "input, "):
        return fault
    if turns[-1]["role"] == "assistant":
        return 'has an "input" that ends with the assistant: both answers follow somebody else.'
    if any(turn.get(name) for turn in turns for name in record_fields.FLAGS):
        return 'has a weight in "input" that is not 0, and only both answers are learned.'
    if is_given(asked.get("functions")):
        return 'has "functions" in "input". Write them as "tools".'
    return messages.fault_of_tools(asked)


def _fault_of_answer(record: Mapping[str, Any], name: str) -> str:
    turns = record.get(name)
    if not isinstance(turns, list) or not turns:
        return f'has no list "{name}" with a message from the assistant.'
    if fault := messages.fault_of_messages(turns, f"{name}, "):
        return fault
    if wrong := next((turn for turn in turns if turn["role"] not in _WHO_ANSWERS), None):
        return f'has a message from {wrong["role"]} in "{name}": an answer is the assistant\'s.'
    if turns[-1]["role"] != "assistant":
        return f'has a "{name}" that does not end with the assistant.'
    if any(map(messages.is_silent, turns)):
        return f'has weight 0 in "{name}", and both answers are learned from.'
    if not _says_something(turns[-1]):
        return f'has a "{name}" that is empty.'
    return ""


def _says_something(turn: Mapping[str, Any]) -> bool:
    """Whether an answer has words or calls."""
    if any(is_given(turn.get(name)) for name in ("tool_calls", "function_call")):
        return True
    said = (turn.get(name) for name in ("content", "value", "refusal"))
    return any(messages.text_of(text).strip() for text in said if text is not None)


def _fault_beside(record: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What is wrong with what stands beside input and answers."""
    other = sorted(name for name in _OTHER_NAMES if record.get(name) is not None)
    if other:
        return f'has "{other[0]}" beside "input" and both answers. {messages.REMOVE}'
    if known := record_fields.refused(record, "preference"):
        return f'has "{known[0]}", which is not read: {known[1].what}. {messages.REMOVE}'
    given = [name for name in ("tools", "functions") if is_given(record.get(name))]
    if given and "tools" in asked:
        return f'has "tools" in "input" and "{given[0]}" beside it.'
    return (
        messages.fault_of_tools(record)
        or messages.fault_of_options(record)
        or messages.fault_of_system(record, asked["messages"][0])
    )


def _fault_of_pair(record: Mapping[str, Any]) -> str:
    preferred, other = ([*map(_plain, record[name])] for name in _ANSWERS)
    return "has the same answer twice: there is nothing to prefer." if preferred == other else ""


def _plain(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what says nothing, and its text in one piece."""
    said = {name: value for name, value in turn.items() if is_given(value)}
    for name in record_fields.FLAGS:
        said.pop(name, None)
    if isinstance(said.get("content"), list):
        said["content"] = messages.text_of(said["content"])
    return said


def _objects(
    record: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any], Collection[str]]]:
    yield "the example", record, {*_MEMBERS, *_BESIDE}
    yield "the input", record["input"], _INPUT


def _messages(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [*record["input"]["messages"], *(turn for name in _ANSWERS for turn in record[name])]


PREFERENCES = ExampleKind(fault_of, _objects, _messages)
