"""Conversations to be answered, in which every other field is the grader's."""

from __future__ import annotations

import pytest

from launcher.data.formats import BadRecord, OpenQuestion, Reader, detect
from launcher.record_fields import FIELDS, Use

USER = {"role": "user", "content": "How many?"}
SAID = {"role": "assistant", "content": "Two.", "reasoning": "One and one.", "weight": 0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
#: What other formats read or refuse beside the messages.
TAKEN = sorted(
    {name for field in FIELDS if field.use is not Use.nothing for name in field.names}
    - {"messages", "tools", "functions"}
)


@pytest.mark.parametrize("name", TAKEN)
def test_a_field_of_any_name_is_the_graders(name):
    read = Reader("question", {}, asks=True).read({"messages": [USER], name: "yes"})
    assert read == (OpenQuestion([USER]), 1.0)


def test_earlier_turns_and_tools_are_shown():
    record = {"messages": [USER, SAID, USER], "tools": [TOOL], "weight": "heavy", "label": 0}
    example, weight = Reader("question", {}, asks=True).read(record)
    plain = {name: said for name, said in SAID.items() if name != "weight"}
    assert (example, weight) == (OpenQuestion([USER, plain, USER], [TOOL]), 1.0)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"prompt": "How many?"}, "no list 'messages'; the record has: 'prompt'"),
        ({"messages": [USER, SAID]}, "ends with the assistant"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_asks_nothing_is_told(record, found):
    read = Reader("question", {}, asks=True).read(record)
    assert isinstance(read, BadRecord)
    assert found in read.found


def test_who_learns_from_written_answers_cannot_read_it():
    read = Reader("question", {}).read({"messages": [USER]})
    assert isinstance(read, BadRecord)
    assert "objective=grpo" in read.hint


def test_nobody_gets_it_unasked():
    assert detect([{"messages": [USER]}], {}, asks=True) == "chat"
