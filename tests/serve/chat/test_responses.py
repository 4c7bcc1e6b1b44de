"""/v1/responses: what is asked of the model, what is refused, items and events."""

from __future__ import annotations

import asyncio
import json
import typing
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx2
import pytest
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseOutputMessage
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from openai.types.responses.response_stream_event import ResponseStreamEvent
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from launcher.serve.chat.model_process import Failed
from launcher.serve.chat.response_object import ResponseAnswer
from launcher.serve.chat.wire_responses import ResponseRequest
from support.served import Served

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
IMAGE = {"type": "input_image", "image_url": "https://example.org/a.png"}
END = {"index": 0, "prompt_tokens": 3, "completion_tokens": 2}
CALLS = [{"name": "f", "arguments": "{}"}, {"name": "g", "arguments": '{"a": 1}'}]
LIKELY = {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": []}


def asked(**members: Any) -> ResponseRequest:
    return ResponseRequest.model_validate({"model": "tiny", "input": "Hello", **members})


def test_every_member_that_the_official_client_sends_is_known() -> None:
    sent = set(typing.get_type_hints(ResponseCreateParamsStreaming))
    assert sent - ResponseRequest.model_fields.keys() == set()


def test_items_are_turns_of_a_chat() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            **{"type": "message", "role": "assistant", "id": "msg_1", "status": "completed"},
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [IMAGE | {"type": "x"}]},
    ]
    items[-1]["output"] = [{"type": "input_text", "text": "2"}]
    found = asked(input=items, instructions="Speak.").request(100)["messages"]
    function = {"name": "f", "arguments": "{}"}
    assert found == [
        {"role": "system", "content": "Speak."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Let me see."}],
            "tool_calls": [
                {"id": name, "type": "function", "function": function} for name in ("c1", "c2")
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "2"}]},
    ]


def test_what_is_asked_of_the_model() -> None:
    plain = asked().request(100)
    assert plain["messages"] == [{"role": "user", "content": "Hello"}]
    assert (plain["temperature"], plain["n"], plain["logprobs"]) == (1.0, 1, None)
    assert "tools" not in plain
    harmless = {
        **{"store": False, "background": False, "truncation": "disabled", "user": "a"},
        **{"metadata": {"a": "b"}, "max_tool_calls": 3, "reasoning": {"effort": None}},
        **{"include": ["reasoning.encrypted_content"], "text": {"format": {"type": "text"}}},
        **{"safety_identifier": "a", "prompt_cache_key": "a", "service_tier": "auto"},
    }
    assert asked(**harmless).request(100) == plain
    form = {"type": "json_schema", "name": "a", "schema": {"type": "null"}, "strict": True}
    choice = {"type": "function", "name": "f"}
    full = asked(
        tools=[TOOL],
        tool_choice=choice,
        parallel_tool_calls=False,
        text={"format": form},
        top_logprobs=2,
        max_output_tokens=7,
    ).request(100)
    function = {name: TOOL[name] for name in ("name", "parameters", "strict")}
    assert full["tools"] == [{"type": "function", "function": function}]
    assert full["call"] == {"is_forced": True, "names": ["f"]}
    assert (full["max_calls"], full["logprobs"], full["max_tokens"]) == (1, 2, 7)
    assert full["format"] == {"schema": {"type": "null"}}
    likely = asked(include=["message.output_text.logprobs"]).request(100)
    assert likely["logprobs"] == 0


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"input": []}, "input", "at least 1"),
        ({"input": None}, "input", "list"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input.[0].content", "'input_image'"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0", "'function_call_output'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "'message'"),
        ({"input": [{"role": "user", "content": "a", "rol": 1}]}, "input.0.message.rol", "'role'"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "call_id", "required"),
        ({"store": True}, "store", "not supported"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
        ({"conversation": "conv_1"}, "conversation", "not supported"),
        ({"background": True}, "background", "not supported"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "not supported"),
        ({"reasoning": {"efort": None}}, "reasoning.efort", "effort"),
        ({"tool_choice": "auto"}, "tool_choice", "'tools' are specified"),
        ({"text": {"format": {"type": "text", "strict": True}}}, "text.format.strict", "json_s"),
        (
            {"text": {"format": {"type": "json_object", "schema": {}}}},
            "text.format.schema",
            "'json_schema'",
        ),
        ({"truncation": "auto"}, "truncation", "not supported"),
        ({"prompt": {"id": "x"}}, "prompt", "not supported"),
        ({"moderation": {"model": "x"}}, "moderation", "not supported"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "required"),
        ({"text": {"format": {"type": "x"}}}, "text.format.type", "'json_object'"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
        ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice", "Invalid value"),
        ({"tool_choice": "required"}, "tool_choice", "'tools' are specified"),
        ({"include": ["everything"]}, "include.0", "Input should be"),
        ({"max_output_tokens": 5000}, "max_output_tokens", "at most 4096"),
        ({"stream_options": {}}, "stream_options", "'stream' is enabled"),
        ({"seed": 1}, "seed", "Unknown parameter"),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused(
    client: TestClient, changed: dict[str, Any], param: str, message: str
) -> None:
    answer = client.post("/v1/responses", json={"model": "tiny", "input": "a", **changed})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert param in error["param"]
    assert message in error["message"]


def told(
    request: ResponseRequest, lines: list[dict[str, Any]], dies: bool = False
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The same answer whole, and as events."""

    async def said() -> AsyncGenerator[dict[str, Any], None]:
        for line in lines:
            yield line
        if dies:
            raise Failed("it has died")

    async def both() -> tuple[dict[str, Any] | None, list[str]]:
        events = [event async for event in ResponseAnswer(request).events(said())]
        return None if dies else await ResponseAnswer(request).whole(said()), events

    whole, events = asyncio.run(both())
    found = []
    for event in events:
        kind, data = event.removesuffix("\n\n").split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    read = TypeAdapter(ResponseStreamEvent)
    for event in found:
        read.validate_python(event)
    return whole, found


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


MESSAGE = ["output_item.added", "content_part.added", "output_text.delta"]
DONE = ["output_text.done", "content_part.done", "output_item.done"]
CALL = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]


def test_text_is_an_item_of_parts() -> None:
    lines = [
        {"index": 0, "text": "Hal", "logprobs": [LIKELY]},
        {"index": 0, "text": "lo"},
        {**END, "finish_reason": "stop"},
    ]
    whole, events = told(asked(top_logprobs=1), lines)
    response = Response.model_validate(whole)
    assert response.output_text == "Hallo"
    assert response.status == "completed"
    assert (response.usage.input_tokens, response.usage.total_tokens) == (3, 5)
    assert kinds(events) == [
        *("created", "in_progress"),
        *(*MESSAGE, "output_text.delta", *DONE, "completed"),
    ]
    assert events[-1]["response"]["output"][0]["content"] == whole["output"][0]["content"]
    assert whole["output"][0]["content"][0]["logprobs"] == [LIKELY]
    assert events[4]["logprobs"] == [{"token": "a", "logprob": -0.5, "top_logprobs": []}]
    assert events[0]["response"]["output"] == []
    ids = {event["response"]["id"] for event in events if "response" in event}
    assert len(ids) == 1


def test_calls_are_items_behind_the_text() -> None:
    lines = [
        {"index": 0, "text": "Well."},
        {"index": 0, "calls": CALLS},
        {**END, "finish_reason": "tool_calls"},
    ]
    whole, events = told(asked(tools=[TOOL]), lines)
    message, one, other = Response.model_validate(whole).output
    assert isinstance(message, ResponseOutputMessage)
    assert isinstance(one, ResponseFunctionToolCall)
    assert (one.name, other.arguments) == ("f", '{"a": 1}')
    assert one.call_id != other.call_id
    assert kinds(events) == [
        *("created", "in_progress"),
        *(*MESSAGE, *DONE, *CALL, *CALL, "completed"),
    ]
    places = [event["output_index"] for event in events if "output_index" in event]
    assert places == [0] * 6 + [1] * 4 + [2] * 4
    # What is sent back is the same conversation.
    again = asked(input=[{"role": "user", "content": "a"}, *whole["output"]]).messages()
    assert [turn["role"] for turn in again] == ["user", "assistant"]
    assert [call["function"] for call in again[1]["tool_calls"]] == CALLS


@pytest.mark.parametrize(
    ("lines", "dies", "last", "output"),
    [
        ([{**END, "finish_reason": "stop"}], False, "completed", "completed"),
        (
            [{"index": 0, "text": "a"}, {**END, "finish_reason": "length"}],
            False,
            "incomplete",
            "incomplete",
        ),
        ([{"index": 0, "text": "a"}], True, "failed", None),
        ([{"index": 0, "text": "a"}, {"error": "x", "code": "failed"}], True, "failed", None),
        (
            [{"error": "x", "code": "invalid_value", "param": "response_format"}],
            True,
            "failed",
            None,
        ),
    ],
)
def test_how_answers_end(
    lines: list[dict[str, Any]], dies: bool, last: str, output: str | None
) -> None:
    whole, events = told(asked(), lines, dies)
    end = events[-1]
    assert end["type"] == f"response.{last}"
    assert end["response"]["status"] == last
    assert [item["status"] for item in end["response"]["output"]] == ([output] if output else [])
    if last == "incomplete":
        assert whole is not None
        assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    if last == "failed":
        code = "invalid_prompt" if lines[-1].get("param") else "server_error"
        assert end["response"]["error"]["code"] == code


def test_what_was_asked_is_repeated() -> None:
    form = {"type": "json_schema", "name": "a", "schema": {"type": "null"}, "strict": True}
    whole, _ = told(
        asked(tools=[TOOL], text={"format": form}, metadata={"a": "b"}, instructions="x"),
        [{**END, "finish_reason": "stop"}],
    )
    assert whole is not None
    assert whole["text"]["format"] == form
    assert whole["tools"] == [{"description": None, **TOOL}]
    assert (whole["metadata"], whole["instructions"]) == ({"a": "b"}, "x")
    assert (whole["store"], whole["tool_choice"], whole["truncation"]) == (
        False,
        "auto",
        "disabled",
    )


@pytest.fixture(scope="module")
def asking(served: Served) -> Iterator[httpx2.Client]:
    with served.client(timeout_s=120) as found:
        yield found


@pytest.mark.slow
def test_the_same_question_has_the_same_answer_as_in_a_chat(asking: httpx2.Client) -> None:
    base = {"model": "tiny", "temperature": 0}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    chat = asking.post("/chat/completions", json={**base, "messages": messages, "max_tokens": 9})
    body = {**base, "input": "Hello", "instructions": "Be brief.", "max_output_tokens": 9}
    found = asking.post("/responses", json=body).json()
    assert (
        found["output"][0]["content"][0]["text"]
        == (chat.json()["choices"][0]["message"]["content"])
    )
    assert found["usage"]["input_tokens"] == chat.json()["usage"]["prompt_tokens"]
    for stream in (False, True):
        refused = {"type": "json_schema", "name": "a", "schema": {"not": {}}}
        answer = asking.post(
            "/responses", json={**body, "text": {"format": refused}, "stream": stream}
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text.format")
