"""Formats, with plain dicts."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema.variants import FORMATS
from launcher.data.formats import (
    BadRecord,
    Chat,
    Pair,
    Preference,
    Ranked,
    Reader,
    Text,
    Unpaired,
    detect,
    rename,
)
from launcher.data.formats.alpaca import AlpacaFormat
from launcher.data.formats.chat import ChatFormat
from launcher.data.formats.prompt import PromptFormat
from launcher.data.formats.text import TextFormat
from launcher.record_fields import FIELDS, TURN_FIELDS
from support.draws import examples
from support.formats import read

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yes"}


def test_chat_keeps_messages_and_tools() -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    assert ChatFormat().read({"messages": [USER, ASSISTANT], "tools": tools}) == Chat(
        [USER, ASSISTANT], tools
    )


def test_older_function_calls_are_tool_calls() -> None:
    call = {"name": "add", "arguments": '{"a": 1}'}
    asked = {"role": "assistant", "content": None, "function_call": call}
    answered = {"role": "function", "name": "add", "content": "1"}
    functions = [{"name": "add", "parameters": {}}]
    record = {"messages": [USER, asked, answered, ASSISTANT], "functions": functions}
    read = ChatFormat().read(record)
    assert read.tools == [{"type": "function", "function": functions[0]}]
    function = {"name": "add", "arguments": {"a": 1}}
    assert read.messages[1:3] == [
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": "add", "content": "1"},
    ]
    newer = [USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}]
    newer += [{"role": "tool", "name": "add", "content": "1"}, ASSISTANT]
    assert ChatFormat().read({"messages": newer, "tools": read.tools}) == read


def test_chat_parses_arguments_of_tool_calls_and_drops_nulls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    read = ChatFormat().read({"messages": [USER, message]}).messages[1]
    assert read["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert "content" not in read
    assert "name" not in read
    assert call["function"]["arguments"] == '{"a": 1}'  # the input is left alone


def test_chat_weight_zero_is_context_only() -> None:
    read = ChatFormat().read({"messages": [USER, {**ASSISTANT, "weight": 0}, USER, ASSISTANT]})
    assert read.context_only == {1}
    assert all("weight" not in message for message in read.messages)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"text": "a"}, "no field 'messages'; the record has: 'text'"),
        ({"messages": None}, "'messages' is null"),
        ({"messages": "hi"}, "'messages' is text"),
        ({"messages": []}, "an empty list"),
        ({"messages": ["hi"]}, "message 1 is text"),
        ({"messages": [{"content": "hi"}]}, "message 1 has no role"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1 (user) is a number"),
        ({"messages": [{"role": "user"}]}, "message 1 (user) is null"),
        ({"messages": [USER]}, "no assistant turn (roles: user)"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "weight 0"),
        ({"messages": [USER, {**ASSISTANT, "weight": 2}]}, "message 2 has weight 2"),
        ({"messages": [USER, ASSISTANT], "tools": "add"}, "'tools' is text"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{}]}]}, "without a function name"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]},
                ]
            },
            "arguments of 'f' are no JSON",
        ),
    ],
)
def test_chat_refuses(record: dict, found: str) -> None:
    with pytest.raises(BadRecord) as caught:
        ChatFormat().read(record)
    assert found in caught.value.found


def test_parts_of_text_are_joined_and_others_refused_by_name() -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    record = {"messages": [{"role": "user", "content": parts}, ASSISTANT]}
    assert read("chat", record) == Chat([USER, ASSISTANT])
    parts.append({"type": "image_url", "text": "x"})
    assert "message 1 has a part of type 'image_url'" in read("chat", record).found
    parts[2] = "x"  # type: ignore[call-overload]
    assert "a part of message 1 is text without a type" in read("chat", record).found


def test_prompt() -> None:
    read = PromptFormat().read(rename({"q": "2+2?", "a": "4"}, {"prompt": "q", "completion": "a"}))
    assert read == Pair("2+2?", "4")


def test_alpaca_joins_instruction_and_input() -> None:
    read = AlpacaFormat().read
    assert read({"instruction": "Add.", "input": "2 2", "output": "4"}) == Pair("Add.\n\n2 2", "4")
    assert read({"instruction": "Add.", "input": "", "output": "4"}) == Pair("Add.", "4")
    assert read({"instruction": "Add.", "input": None, "output": "4"}) == Pair("Add.", "4")
    assert read({"instruction": "Add.", "output": "4"}) == Pair("Add.", "4")


def test_text() -> None:
    assert TextFormat().read({"text": "Once."}) == Text("Once.")


@pytest.mark.parametrize(
    ("read", "record", "found"),
    [
        (PromptFormat().read, {"prompt": "a"}, "no field 'completion'; the record has: 'prompt'"),
        (PromptFormat().read, {"prompt": {"a": 1}, "completion": "b"}, "'prompt' is an object"),
        (PromptFormat().read, {"prompt": "a", "completion": " "}, "completion is empty"),
        (AlpacaFormat().read, {"instruction": "a", "output": ""}, "output is empty"),
        (AlpacaFormat().read, {"instruction": "a", "input": 1, "output": "b"}, "is a number"),
        (TextFormat().read, {"text": True}, "is a truth value"),
        (TextFormat().read, {"text": "\n"}, "text is empty"),
    ],
)
def test_other_formats_refuse(read: object, record: dict, found: str) -> None:
    with pytest.raises(BadRecord) as caught:
        read(record)  # type: ignore[operator]
    assert found in caught.value.found


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("chat", {"messages": [USER]}),
        ("prompt", {"prompt": "a", "completion": "b", "text": "c"}),
        ("alpaca", {"instruction": "a", "input": "", "output": "c"}),
        ("text", {"text": "a", "meta": {}}),
    ],
)
def test_detect(name: str, record: dict) -> None:
    assert detect([record], {}) == name
    # One odd record does not sway it; it is refused by itself later.
    assert detect([{"odd": 1}, record, record], {}) == name


def test_detect_with_columns() -> None:
    columns = {"prompt": "question", "completion": "answer"}
    assert detect([{"question": "a", "answer": "b"}], columns) == "prompt"


def test_detect_names_the_fields_it_found() -> None:
    with pytest.raises(BadRecord) as caught:
        detect([{"question": "a", "answer": "b"}], {})
    assert "'question', 'answer'" in caught.value.found
    assert "data.columns={prompt: question" in caught.value.hint


def test_rename_names_a_missing_column() -> None:
    with pytest.raises(BadRecord) as caught:
        rename({"a": 1}, {"prompt": "question"})
    assert "no column 'question'" in caught.value.found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted({name for field in FIELDS for name in field.names}))
MEMBERS = sorted({name for field in TURN_FIELDS for name in field.names} | {"human", "gpt"})
CALL = st.dictionaries(st.sampled_from(["function", "name", "arguments", "type", "id"]), JSON)
SAID = st.sampled_from(["user", "assistant", "gpt", "a", 0, 1, True]) | JSON
MESSAGE = st.dictionaries(
    st.sampled_from(MEMBERS), SAID | st.lists(CALL | JSON, max_size=2), max_size=4
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": SAID},
    optional={"tool_calls": st.lists(CALL, max_size=2), "weight": SAID, "train_detail": JSON},
)
VALUE = JSON | st.lists(MESSAGE, max_size=4) | st.lists(TURN, max_size=4)
RECORD = st.dictionaries(KEYS, VALUE | VALUE.map(json.dumps), max_size=6)


@settings(max_examples=examples(150), deadline=None)
@given(RECORD)
def test_any_record_is_read_or_refused(record: dict) -> None:
    for name in FORMATS:
        with contextlib.suppress(BadRecord):
            read = FORMATS.load(name)().read(record)
            assert isinstance(read, Chat | Pair | Preference | Ranked | Text | Unpaired)
        outcome = Reader(name, {}).read(record)
        if isinstance(outcome, BadRecord):  # with a reason of the format's own
            assert "cannot be read as" not in outcome.found
            continue
        messages = getattr(outcome[0], "messages", [])
        assert all(message.get("tool_calls") != [] for message in messages)
        assert not any(value is None for message in messages for value in message.values())
    with contextlib.suppress(BadRecord):
        assert detect([record], {}) in FORMATS


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(TURN, min_size=1, max_size=4), st.lists(CALL, max_size=2))
def test_json_text_is_read_as_the_object(turns: list, tools: list) -> None:
    for record in ({"messages": turns, "tools": tools}, {"conversations": turns, "tools": tools}):
        text = {name: json.dumps(value) for name, value in record.items()}
        name = "chat" if "messages" in record else "sharegpt"
        outcomes = [Reader(name, {}).read(given) for given in (record, text)]
        found = [one.found if isinstance(one, BadRecord) else one for one in outcomes]
        assert found[0] == found[1]


@pytest.mark.parametrize("field", ["response", "completion", "output", "answer"])
@pytest.mark.parametrize(
    "turns",
    [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant", "user")]},
        {"conversations": [{"from": s, "value": "a"} for s in ("human", "gpt", "human")]},
    ],
)
def test_an_answer_beside_a_conversation_is_not_lost(turns, field):
    name = "chat" if "messages" in turns else "sharegpt"
    reader = FORMATS.load(name)()
    with pytest.raises(BadRecord, match=f"its answer stands beside it in '{field}'"):
        reader.read({**turns, field: "b"})
    (key,) = turns
    said = (
        {"role": "assistant", "content": "b"} if name == "chat" else {"from": "gpt", "value": "b"}
    )
    whole = {key: [*turns[key], said]}
    assert reader.read({**whole, field: "b"}).messages == reader.read(whole).messages
