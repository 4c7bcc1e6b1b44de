"""ShareGPT: speakers, tools, calls."""

import json
from typing import Any

import pytest

from support.formats import read


def turns(*pairs: tuple[str, Any], **extra: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": what} for who, what in pairs], **extra}


def test_sharegpt_speakers_become_roles() -> None:
    found = read("sharegpt", turns(("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c")))
    assert found.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_sharegpt_tools_calls_system_and_weight() -> None:
    call = json.dumps({"name": "add", "arguments": {"a": 1}})
    record = turns(
        ("human", "1+1?"),
        ("function_call", call),
        ("observation", "2"),
        ("gpt", "two"),
        system="Be kind.",
        tools=json.dumps([{"name": "add"}]),
    )
    record["conversations"][3]["weight"] = 0
    record["conversations"].append({"from": "gpt", "value": "end"})
    found = read("sharegpt", record)
    assert [m["role"] for m in found.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "assistant",
    ]
    assert found.messages[2]["tool_calls"] == [{"function": json.loads(call)}]
    assert found.tools == [{"name": "add"}]
    assert found.context_only == {4}


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({}, "'conversations' is missing"),
        (turns(), "an empty list"),
        (turns(("narrator", "x")), "turn 1 is from 'narrator'"),
        (turns(("human", "x")), "no assistant turn"),
        (turns(("human", 3), ("gpt", "x")), "content of message 1 (user) is a number"),
        (turns(("human", "x"), ("function_call", "{")), "turn 2: the function call is no JSON"),
        ({"conversations": ["x"]}, "message 1 is text"),
        (turns(("human", "x"), ("gpt", "y"), system=1), "'system' is a number"),
        (turns(("human", "x"), ("gpt", "y"), tools="["), "'tools' is no JSON"),
    ],
)
def test_sharegpt_refuses(record: dict[str, Any], found: str) -> None:
    assert found in read("sharegpt", record).found
