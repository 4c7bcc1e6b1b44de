"""OpenAI's rules for fine-tuning files, each with a record that breaks it and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from launcher.curate.records.profiles import FIXES, openai
from launcher.curate.report import report
from launcher.data.formats.base import BadRecord


def say(role: str, content: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
PAIR = {
    "input": {"messages": [say("user")]},
    "preferred_output": [say("assistant", "a")],
    "non_preferred_output": [say("assistant", "b")],
}
GOOD = [
    chat(say("user"), say("assistant")),
    chat(say("developer"), say("user", name="li"), say("assistant", weight=0), say("assistant")),
    chat(say("user", [{"type": "text", "text": "hi"}]), say("assistant", weight=1)),
    chat(
        say("user"),
        {"role": "assistant", "tool_calls": [CALL]},
        say("tool", tool_call_id="c1"),
        say("assistant"),
        tools=[TOOL],
        parallel_tool_calls=False,
    ),
    PAIR,
]
BAD = [
    ("openai_json", BadRecord("broken JSON")),
    ("openai_messages", {"messages": []}),
    ("openai_messages", {}),
    ("openai_messages", chat("hi", say("assistant"))),
    ("openai_roles", chat(say("human"), say("assistant"))),
    ("openai_keys", chat(say("user", mood="bad"), say("assistant"))),
    ("openai_keys", chat(say("user"), say("assistant"), id=3)),
    ("openai_content", chat(say("user", 3), say("assistant"))),
    ("openai_content", chat(say("user", ""), say("assistant"))),
    ("openai_content", chat(say("user"), say("assistant", None))),
    ("openai_content", chat(say("user", [{"type": "video"}]), say("assistant"))),
    ("openai_assistant", chat(say("user"))),
    ("openai_assistant", chat(say("user"), say("assistant", weight=0))),
    ("openai_last", chat(say("user"), say("assistant"), say("user"))),
    ("openai_weight", chat(say("user"), say("assistant", weight=0.5))),
    ("openai_weight", chat(say("user", weight=0), say("assistant"))),
    ("openai_tools", chat(say("user"), say("tool", tool_call_id="c9"), say("assistant"))),
    ("openai_tools", chat(say("user"), say("assistant"), tools=[{"name": "add"}])),
    ("openai_tools", chat(say("user"), say("assistant"), parallel_tool_calls="yes")),
    ("openai_assistant", {**PAIR, "preferred_output": "a"}),
    ("openai_messages", {**PAIR, "input": "hi"}),
]


@pytest.mark.parametrize("record", GOOD)
def test_good_records(record: Any) -> None:
    assert list(openai(record)) == []


@pytest.mark.parametrize(("rule", "record"), BAD)
def test_bad_records(rule: str, record: Any) -> None:
    assert [name for name, _ in openai(record)] == [rule]


def test_every_rule_of_records_can_be_broken() -> None:
    assert {rule for rule, _ in BAD} == set(FIXES["openai"]) - {"openai_file"}


def test_arguments_that_are_no_json_text() -> None:
    call = {**CALL, "function": {"name": "add", "arguments": {"a": 1}}}
    record = chat(say("user"), {"role": "assistant", "tool_calls": [call]}, say("assistant"))
    assert [name for name, _ in openai(record)] == ["openai_tools"]


def test_a_file_with_too_few_examples(
    write: Callable[..., str], configure: Callable[..., Any]
) -> None:
    lines = [chat(say("user", f"question {i}?"), say("assistant", f"{i} is")) for i in range(9)]
    made = report.build(configure(train=write([*lines, "{"]), validation_share=0.5), "openai")
    verdicts = {rule["name"]: rule for rule in made["rules"]}
    assert verdicts["openai_file"]["verdict"] == "pass"
    assert verdicts["openai_json"]["examples"][0]["where"].endswith(":10")
    made = report.build(configure(train=write(lines)), "openai")
    verdicts = {rule["name"]: rule for rule in made["rules"]}
    assert verdicts["openai_file"]["verdict"] == "fail"
    assert "9 examples; 10 are needed" in verdicts["openai_file"]["examples"][0]["why"]
