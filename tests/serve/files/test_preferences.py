"""The check of files of preferences."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.data.formats import BadRecord, Preference, Reader
from launcher.record_fields import FIELDS, TURN_FIELDS, Field, Use
from launcher.serve.files import validation
from launcher.serve.files.conversations import CONVERSATIONS
from launcher.serve.files.preferences import PREFERENCES
from launcher.serve.files.unread_members import Unread
from launcher.serve.files.validation import FileFault
from support.draws import examples
from support.openai_turns import ANSWER, CALL, CALLS, TOOL, TURNS, USER, VALUES

WORSE = {"role": "assistant", "content": "Who knows."}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "7"}


def record(**changes: Any) -> dict[str, Any]:
    """A preference; what is `...` is left out."""
    made = {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [ANSWER],
        "non_preferred_output": [WORSE],
        **changes,
    }
    return {name: value for name, value in made.items() if value is not ...}


def after(*messages: Any, **beside: Any) -> dict[str, Any]:
    """One whose input has these messages."""
    return record(input={"messages": list(messages), **beside})


def fault_of(example: object) -> str:
    return validation.fault_of(json.dumps(example).encode(), PREFERENCES)


def read(example: object) -> Any:
    """What the preparation of a run makes of it."""
    found = Reader("preference", {}).read(example)
    return found if isinstance(found, BadRecord) else found[0]


@pytest.mark.parametrize(
    "good",
    [
        record(),
        after({"role": "system", "content": "Be short."}, USER),
        after({"role": "developer", "content": "Be short."}, USER, ANSWER, USER),
        after(USER, {**ANSWER, "weight": 0}, {**USER, "name": "Ann"}),
        after(USER, tools=[TOOL], parallel_tool_calls=False),
        after(USER, CALLING, RESULT, tools=[TOOL]),
        record(preferred_output=[CALLING]),
        record(preferred_output=[CALLING, RESULT, ANSWER]),
        record(preferred_output=[{"role": "assistant", "content": None, "refusal": "No."}]),
        record(preferred_output=[{**ANSWER, "weight": 1}], weight=2.5),
        record(system="Be short.", tools=None, chat_template_kwargs={"enable_thinking": False}),
        record(prompt=None, chosen=None, id=7),
        record(preferred_output=[{**ANSWER, "content": [{"type": "text", "text": "Ah."}]}]),
    ],
)
def test_lines_as_openai_writes_them_are_good(good: dict[str, Any]) -> None:
    assert fault_of(good) == ""
    found = read(good)
    assert isinstance(found, Preference)
    # None of the input has become a part of both answers, or was left out.
    assert found.prompt[-1]["role"] == good["input"]["messages"][-1]["role"]
    assert len(found.chosen) == len(good["preferred_output"])


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ([1], "not a JSON object"),
        ({}, 'no object "input" with a list "messages"'),
        (record(input=...), 'no object "input"'),
        (record(input=[USER]), 'no object "input"'),
        (record(input={"messages": "Why?"}), 'no object "input"'),
        (after(), 'no messages in "input"'),
        (after("Why?"), "wrong at input, message 1: it is not an object"),
        (after({"role": "robot", "content": "a"}), "wrong at input, message 1: its"),
        (after(USER, ANSWER), "ends with the assistant"),
        (after(USER, {**ANSWER, "weight": 1}, USER), 'a weight in "input" that is not 0'),
        (after(USER, tools={}), '"tools" that are no list'),
        (after(USER, functions=[{"name": "f"}]), 'Write them as "tools"'),
        (after(USER, parallel_tool_calls="no"), "parallel_tool_calls"),
        (after({"role": "user", "content": [{"type": "image_url"}]}), "content"),
        (record(preferred_output=...), 'no list "preferred_output"'),
        (record(preferred_output=[]), 'no list "preferred_output"'),
        (record(preferred_output="Because."), 'no list "preferred_output"'),
        (record(preferred_output=ANSWER), 'no list "preferred_output"'),
        (record(non_preferred_output=...), 'no list "non_preferred_output"'),
        (record(non_preferred_output=[7]), "wrong at non_preferred_output, message 1"),
        (record(preferred_output=[USER]), 'a message from user in "preferred_output"'),
        (record(preferred_output=[CALLING, RESULT]), "does not end with the assistant"),
        (record(preferred_output=[{**ANSWER, "content": ""}]), '"preferred_output" that is empty'),
        (
            record(non_preferred_output=[{**ANSWER, "content": " \n"}]),
            '"non_preferred_output" that is empty',
        ),
        (record(preferred_output=[{**ANSWER, "weight": 0}]), 'weight 0 in "preferred_output"'),
        (record(non_preferred_output=[ANSWER]), "the same answer twice"),
        (
            record(non_preferred_output=[{**ANSWER, "weight": 1, "name": None}]),
            "the same answer twice",
        ),
        (
            record(
                non_preferred_output=[
                    {"role": "assistant", "content": [{"type": "text", "text": ANSWER["content"]}]}
                ]
            ),
            "the same answer twice",
        ),
        (record(prompt="Why?"), 'has "prompt" beside "input" and both answers'),
        (record(messages=[USER, ANSWER]), 'has "messages" beside "input"'),
        (record(chosen=""), 'has "chosen" beside "input"'),
        (record(history=[["a", "b"]]), 'has "history" beside "input"'),
        (
            after(USER, tools=[TOOL]) | {"functions": [{"name": "f"}]},
            '"tools" in "input" and "functions" beside it',
        ),
        (record(system=["x"]), 'a "system" beside the messages'),
        (
            after({"role": "system", "content": "x"}, USER) | {"system": "y"},
            "two system messages",
        ),
        (record(weight=-1), 'a "weight" beside the messages'),
        (record(chat_template_kwargs={"tokenize": True}), 'has "tokenize" in'),
    ],
)
def test_other_lines_are_told_apart(bad: object, found: str) -> None:
    assert found in fault_of(bad)


def test_a_file_for_the_other_method_says_which() -> None:
    chat = {"messages": [USER, ANSWER]}
    assert '"supervised" learns from' in fault_of(chat)
    assert 'with "method": {"type": "supervised"}.' in fault_of(chat)
    told = validation.fault_of(json.dumps(record()).encode(), CONVERSATIONS)
    assert '"dpo" learns from' in told
    assert 'with "method": {"type": "dpo"}.' in told


def refused(fields: tuple[Field, ...], name: str) -> list[str]:
    chosen = (field for field in fields if field.use is Use.refused and name in field.formats)
    return [name for field in chosen for name in field.names]


@pytest.mark.parametrize("name", refused(FIELDS, "preference"))
def test_a_field_that_training_refuses_is_named_before(name: str) -> None:
    assert f'has "{name}", which is not read: ' in fault_of(record(**{name: True}))
    assert isinstance(read(record(**{name: True})), BadRecord)
    assert fault_of(record(**{name: None})) == ""


@pytest.mark.parametrize("name", refused(TURN_FIELDS, "chat"))
def test_a_member_that_training_refuses_is_named_before(name: str) -> None:
    bad = record(preferred_output=[{**ANSWER, name: True}])
    assert f'wrong at preferred_output, message 1: its "{name}" is not read: ' in fault_of(bad)
    assert isinstance(read(bad), BadRecord)


BESIDE = sorted({name for field in FIELDS for name in field.names} | {"answer"})
SIDES = st.lists(st.just(ANSWER) | st.just(WORSE) | TURNS, max_size=2) | VALUES


@settings(max_examples=examples(500), deadline=None)
@given(
    beside=st.dictionaries(
        st.sampled_from(BESIDE), VALUES | st.lists(CALLS, max_size=1), max_size=2
    ),
    inside=st.dictionaries(st.sampled_from(["tools", "functions", "system"]), VALUES, max_size=1),
    turns=st.lists(st.just(USER) | st.just(ANSWER) | TURNS, min_size=1, max_size=3),
    preferred=SIDES,
    other=SIDES,
)
def test_whatever_passes_can_be_trained_on(
    beside: dict[str, Any], inside: dict[str, Any], turns: list[Any], preferred: Any, other: Any
) -> None:
    both = {"preferred_output": preferred, "non_preferred_output": other}
    example = {**beside, "input": {**inside, "messages": turns}, **both}
    if fault_of(example) == "":
        found = read(example)
        assert not isinstance(found, BadRecord), found
        assert len(found.prompt) in (len(turns), len(turns) + 1)  # a system message beside them


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ([record()] * 9, "invalid_n_examples", "has 9 example(s), but must have at least 10"),
        (
            [record()] * 9 + [{"messages": [USER, ANSWER]}],
            "invalid_file_format",
            "Example 10 (line 10) has one conversation",
        ),
        (
            [record()] * 2 + [record(non_preferred_output=[ANSWER])],
            "invalid_file_format",
            "Example 3 (line 3) has the same answer twice",
        ),
    ],
)
def test_what_is_no_file_of_preferences_is_not_kept(
    tmp_path: Path, content: list[Any], code: str, message: str
) -> None:
    lines = io.BytesIO("\n".join(map(json.dumps, content)).encode())
    with pytest.raises(FileFault, match=r".") as caught:
        validation.keep(
            lines, tmp_path / "t.jsonl", "training", PREFERENCES, least=10, line_bytes=1 << 20
        )
    assert caught.value.code == code
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (record(), None),
        (record(system="s", weight=1, chat_template_kwargs={"x": 1}), None),
        (record(prefered_output=[ANSWER]), "of the example (once, first in line 7, did you mean"),
        (after(USER, tool=[TOOL]), "'tool' of the input (once, first in line 7, did you mean"),
        (after({**USER, "nmae": "Ann"}), "'nmae' of a message"),
        (record(non_preferred_output=[{**WORSE, "wieght": 1}]), "'wieght' of a message"),
    ],
)
def test_a_member_that_nobody_reads_is_told(example: dict[str, Any], found: str | None) -> None:
    unread = Unread(PREFERENCES)
    assert validation.fault_of(json.dumps(example).encode(), PREFERENCES, 7, unread) == ""
    told = unread.text("training")
    assert told is None if found is None else found in str(told)
