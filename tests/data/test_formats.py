"""Formats, with plain dicts."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.variants import FORMATS
from launcher.data.formats import BadRecord, Chat, Pair, Text, detect, rename
from launcher.data.formats.alpaca import AlpacaFormat
from launcher.data.formats.chat import ChatFormat
from launcher.data.formats.prompt import PromptFormat
from launcher.data.formats.text import TextFormat

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
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["messages", "tools", "prompt", "completion", "instruction", "input", "output", "text"]
)
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls", "weight", "from"]),
    st.sampled_from(["user", "assistant", 0, 1]) | JSON,
)


@settings(max_examples=60)
@given(st.dictionaries(KEYS, JSON | st.lists(MESSAGE, max_size=4)))
def test_any_record_is_read_or_refused(record: dict) -> None:
    for name in FORMATS:
        with contextlib.suppress(BadRecord):
            assert isinstance(FORMATS.load(name)().read(record), Chat | Pair | Text)
