"""Models and chat over HTTP: what is answered, what is refused, and who may ask."""

from __future__ import annotations

import asyncio
import json
import typing
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types import CompletionCreateParams as PlainParams
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageParam,
    CompletionCreateParams,
)
from starlette.testclient import TestClient

from launcher.serve.chat.responses import Answer
from launcher.serve.chat.wire_chat import ChatRequest, CompletionRequest, Message
from launcher.serve.db.database import Database
from launcher.serve.db.tables import Job, JobState, Model, Project
from launcher.serve.service import Service
from support.served import Served, wait_until

HELLO = [{"role": "user", "content": "Anna has 3 apples and gets 4 more. How many?"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FINAL, STEP = "ft:tiny:local:a/b:x1", "ft:tiny:local:a/b:x2:ckpt-step-5"


def add_models(database: Database, project: str) -> None:
    """A finished job of a project and its two models, without the run."""
    with database.begin() as session:
        found = session.query(Project).filter_by(name=project).one()
        job = Job(
            id=f"ftjob-{project}",
            project_id=found.id,
            model="tiny",
            training_file="file-1",
            seed=1,
            state=JobState.succeeded,
        )
        session.add(job)
        session.flush()
        common = {"project_id": found.id, "job_id": job.id}
        session.add(Model(name=FINAL, step=10, checkpoint_id="c1", is_final=True, **common))
        session.add(Model(name=STEP, step=5, checkpoint_id="c2", **common))


def test_models_are_listed_retrieved_and_deleted(client: TestClient, service: Service) -> None:
    add_models(service.database, "ours")
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["tiny", "gpt-3.5-turbo", FINAL, STEP]
    assert {tuple(model) for model in listed["data"]} == {("id", "object", "created", "owned_by")}
    for written in (FINAL, FINAL.replace("/", "%2F"), FINAL.replace(":", "%3A")):
        assert client.get(f"/v1/models/{written}").json()["id"] == FINAL
    assert client.get("/v1/models/tiny").json()["owned_by"] == "system"
    deleted = client.delete(f"/v1/models/{FINAL}")
    assert deleted.json() == {"id": FINAL, "object": "model", "deleted": True}
    assert client.get(f"/v1/models/{FINAL}").status_code == 404
    assert client.delete(f"/v1/models/{FINAL}").status_code == 404
    assert client.delete("/v1/models/tiny").status_code == 403
    assert [m["id"] for m in client.get("/v1/models").json()["data"]][-1] == STEP


def test_models_of_another_project_are_none(
    client: TestClient, service: Service, stranger: dict[str, str]
) -> None:
    add_models(service.database, "ours")
    assert len(client.get("/v1/models", headers=stranger).json()["data"]) == 2
    body = {"model": FINAL, "messages": HELLO}
    for answer in (
        client.get(f"/v1/models/{FINAL}", headers=stranger),
        client.delete(f"/v1/models/{FINAL}", headers=stranger),
        client.post("/v1/chat/completions", json=body, headers=stranger),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": f"The model '{FINAL}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    assert client.get(f"/v1/models/{FINAL}").status_code == 200


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": None}, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "string"),
        ({"messages": [{"role": "assistant"}]}, "messages.[0].content", "content"),
        ({"model": None}, "model", "string"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_p": -1}, "top_p", "greater"),
        ({"n": 17}, "n", "16"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": 5}, "stop", "string"),
        ({"max_tokens": 0}, "max_tokens", "greater"),
        ({"max_tokens": 5000}, "max_tokens", "at most 4096"),
        ({"top_logprobs": 2}, "top_logprobs", "'logprobs' is true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"tool_choice": "required"}, "tool_choice", "'tools' are specified"),
        ({"tools": [TOOL], "tool_choice": "must"}, "tool_choice", "Invalid value"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice", "Invalid value"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", "does not name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "'g', which is none",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
            "tool_choice",
            "'mode'",
        ),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "'json_object'"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "only with it",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "required",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schem": {}},
                }
            },
            "response_format.json_schema.schem",
            "'schema'",
        ),
        ({"presence_penalty": 2.5}, "presence_penalty", "less than or equal to 2"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "greater than or equal to -2"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "100"),
        ({"logit_bias": {"05": 1}}, "logit_bias.05.[key]", "pattern"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias", "300"),
        ({"tool_choice": "auto"}, "tool_choice", "'tools' are specified"),
        ({"tool_choice": "none", "functions": [TOOL["function"]]}, "tool_choice", "'tools' are"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f", "mode": "auto"}},
            "tool_choice.mode",
            "Unknown parameter",
        ),
        (
            {
                "tools": [TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"name": "f", "strict": True}]},
                },
            },
            "tool_choice.allowed_tools.tools.strict",
            "Unknown parameter",
        ),
        ({"audio": {"voice": "x"}}, "audio", "not supported"),
        ({"store": True}, "store", "not supported"),
        ({"service_tier": "flex"}, "service_tier", "not supported"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "not supported"),
        ({"verbosity": "low"}, "verbosity", "not supported"),
        ({"web_search_options": {}}, "web_search_options", "not supported"),
        ({"moderation": {}}, "moderation", "not supported"),
        ({"function_call": {"name": "f"}}, "function_call", "'functions' are specified"),
        (
            {"functions": [TOOL["function"]], "function_call": {"name": "g"}},
            "function_call",
            "'g', which is none",
        ),
        ({"max_token": 5}, "max_token", "Did you mean 'max_tokens'"),
        ({"top_k": 5}, "top_k", "Unknown parameter: 'top_k'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "'stream' is enabled"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "include_usage"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "different things"),
        ({"messages": [{**HELLO[0], "nam": "x"}]}, "messages.0.nam", "'name'"),
        ({"messages": [{**HELLO[0], "refusal": "x"}]}, "messages.[0]", "assistant"),
        ({"messages": [{**HELLO[0], "audio": {"id": "x"}}]}, "messages.[0].audio", "text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            "messages.[0].content.x",
            "Unknown",
        ),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.custom", "Unknown"),
        ({"tools": [TOOL | {"x": 1}]}, "tools.0.x", "Unknown"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "params": {}}}]},
            "tools.0.function.params",
            "'parameters'",
        ),
        ({"tools": [TOOL], "functions": [TOOL["function"]]}, "functions", "both"),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages.1.tool_calls.0.function.name",
            "required",
        ),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused(
    client: TestClient, changed: dict[str, Any], param: str, message: str
) -> None:
    body = {"model": "tiny", "messages": HELLO, **changed}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def parameters(union: Any) -> set[str]:
    """Names of what a client may send, as the official types have it."""
    return {name for one in typing.get_args(union) for name in typing.get_type_hints(one)}


def test_every_member_that_the_official_clients_send_is_known() -> None:
    assert parameters(CompletionCreateParams) - ChatRequest.model_fields.keys() == set()
    assert parameters(PlainParams) - CompletionRequest.model_fields.keys() == set()
    assert parameters(ChatCompletionMessageParam) - Message.model_fields.keys() == set()
    said = ChatCompletionMessage(role="assistant", content="b", annotations=[])
    Message.model_validate(said.model_dump())  # an answer that is sent back


def test_what_changes_no_answer_is_accepted() -> None:
    harmless = {
        "user": "a",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "a",
        "prompt_cache_key": "a",
        "prompt_cache_retention": "24h",
        "prediction": {"type": "content", "content": "x"},
        "verbosity": "medium",
        "tool_choice": "auto",
        "tools": [],
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
    }
    messages = [{**HELLO[0], "name": "anna"}, {"role": "assistant", "content": "b", "weight": 0}]
    asked = ChatRequest(model="tiny", messages=messages, **harmless).request(100)
    plain = ChatRequest(model="tiny", messages=messages).request(100)
    assert asked == plain
    assert asked["messages"][0]["name"] == "anna"


def test_tools_and_calls_go_to_the_model() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [{**call, "index": 0}]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    base = {"model": "tiny", "messages": messages}
    asked = ChatRequest(**base, tools=[TOOL]).request(100)
    assert asked["messages"] == [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    assert (asked["tools"], asked["max_calls"]) == ([TOOL], None)
    one = ChatRequest(**base, tools=[TOOL], parallel_tool_calls=False).request(100)
    assert one["max_calls"] == 1
    assert "tools" not in ChatRequest(**base, tools=[TOOL], tool_choice="none").request(100)
    old = ChatRequest(**base, functions=[TOOL["function"]]).request(100)
    assert (old["tools"], old["max_calls"]) == ([TOOL], 1)


@pytest.mark.parametrize(
    ("choice", "call"),
    [
        (None, None),
        ("auto", None),
        ("required", {"is_forced": True}),
        (
            {"type": "function", "function": {"name": "f"}},
            {"is_forced": True, "names": ["f"]},
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                },
            },
            {"is_forced": False, "names": ["f"]},
        ),
    ],
)
def test_a_choice_of_tools_goes_to_the_model(choice: Any, call: Any) -> None:
    other = {"type": "function", "function": {"name": "g"}}
    asked = ChatRequest(model="tiny", messages=HELLO, tools=[TOOL, other], tool_choice=choice)
    found = asked.request(100)
    assert found["tools"] == [TOOL, other]
    assert found.get("call") == call
    old = {"functions": [TOOL["function"]], "function_call": {"name": "f"}}
    forced = ChatRequest(model="tiny", messages=HELLO, **old).request(100)
    assert forced["call"] == {"is_forced": True, "names": ["f"]}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"schema": {"type": "object"}}),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}},
            {"schema": {"type": "null"}},
        ),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": True}}, {"schema": {}}),
    ],
)
def test_a_form_of_answers_goes_to_the_model(wanted: Any, found: Any) -> None:
    asked = ChatRequest(model="tiny", messages=HELLO, response_format=wanted).request(100)
    assert asked.get("format") == found


@pytest.mark.parametrize("functions", [False, True])
def test_calls_are_answered_as_clients_read_them(functions: bool) -> None:
    calls = [{"name": "f", "arguments": "{}"}, {"name": "g", "arguments": "{}"}]
    end = {"index": 0, "prompt_tokens": 3, "completion_tokens": 2}

    async def lines() -> AsyncGenerator[dict[str, Any], None]:
        yield {"index": 0, "calls": calls[:1] if functions else calls}
        yield {**end, "finish_reason": "tool_calls"}

    async def both() -> tuple[dict[str, Any], list[str]]:
        answer = Answer("tiny", 1, is_chat=True, functions=functions)
        events = [event async for event in answer.events(lines())]
        return await answer.whole(lines()), events

    whole, events = asyncio.run(both())
    message = ChatCompletion.model_validate(whole).choices[0].message
    chunks = [ChatCompletionChunk.model_validate_json(event[6:]) for event in events[:-1]]
    assert message.content is None
    if functions:
        assert message.function_call.name == "f"
        assert whole["choices"][0]["finish_reason"] == "function_call"
        return
    assert [call.function.name for call in message.tool_calls] == ["f", "g"]
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    streamed = chunks[1].choices[0].delta.tool_calls
    assert [(call.index, call.function.name) for call in streamed] == [(0, "f"), (1, "g")]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("changed", "choices"),
    [
        ({"n": 2}, 2),
        ({"n": 2, "best_of": 2}, 2),
        ({"best_of": 1}, 1),
        ({}, 1),
        ({"n": 3, "best_of": 2}, None),
        ({"best_of": 2}, None),
        ({"n": 1, "best_of": 3}, None),
        ({"best_of": 0}, None),
    ],
)
def test_choices_of_a_completion(
    client: TestClient, changed: dict[str, Any], choices: int | None
) -> None:
    body = {"model": "tiny", "prompt": "a", **changed}
    if choices is not None:
        assert CompletionRequest(**body).request(100)["n"] == choices
        return
    answer = client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "best_of")


def test_an_image_is_refused_by_name(client: TestClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert "image_url" in error["message"]


def test_a_list_of_prompts_and_tokens_are_refused(client: TestClient) -> None:
    for prompt in (["a", "b"], [1, 2], [[1]], None):
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": prompt})
        assert answer.status_code == 400


@pytest.fixture(scope="module")
def asking(served: Served) -> Iterator[httpx2.Client]:
    """A client of a server that has its model open already."""
    with served.client(timeout_s=120) as found:
        assert found.post("/chat/completions", json=body_of(max_tokens=1)).status_code == 200
        yield found


def body_of(**changed: Any) -> dict[str, Any]:
    return {"model": "gpt-3.5-turbo", "messages": HELLO, "temperature": 0, **changed}


@pytest.mark.slow
def test_an_answer_is_whole_or_streamed(asking: httpx2.Client) -> None:
    whole = asking.post("/chat/completions", json=body_of(max_tokens=20)).json()
    text = whole["choices"][0]["message"]["content"]
    assert whole["object"] == "chat.completion"
    assert whole["model"] == "gpt-3.5-turbo"
    assert whole["usage"]["completion_tokens"] == 20
    parts = [{"type": "text", "text": part} for part in HELLO[0]["content"].partition(" ")]
    asked = {
        **body_of(max_completion_tokens=20, stream=True, stream_options={"include_usage": True}),
        "messages": [{"role": "user", "content": parts}],
        "user": "somebody",
        "tools": [],
        "tool_choice": "auto",
    }
    with asking.stream("POST", "/chat/completions", json=asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]]
    assert "".join(said) == text
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


@pytest.mark.slow
def test_seeds_choices_and_stop_strings(asking: httpx2.Client) -> None:
    drawn = body_of(temperature=1.2, n=3, seed=11, max_tokens=12)
    one, other = (asking.post("/chat/completions", json=drawn).json() for _ in range(2))
    assert one["choices"] == other["choices"]
    assert [choice["index"] for choice in one["choices"]] == [0, 1, 2]
    texts = {choice["message"]["content"] for choice in one["choices"]}
    assert len(texts) == 3
    assert one["usage"]["completion_tokens"] <= 36
    plain = asking.post("/chat/completions", json=body_of(max_tokens=30)).json()
    text = plain["choices"][0]["message"]["content"]
    stopped = asking.post("/chat/completions", json=body_of(max_tokens=30, stop=text[4:6])).json()
    assert stopped["choices"][0]["message"]["content"] == text[: text.index(text[4:6])]
    assert stopped["choices"][0]["finish_reason"] == "stop"


@pytest.mark.slow
def test_a_schema_is_kept_to_and_one_that_cannot_be_is_refused(asking: httpx2.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }

    def asked(schema: Any, **changed: Any) -> dict[str, Any]:
        held = {"name": "a", "schema": schema, "strict": True}
        form = {"type": "json_schema", "json_schema": held}
        return body_of(max_tokens=60, response_format=form, **changed)

    whole = asking.post("/chat/completions", json=asked(schema, n=2, seed=1, temperature=1)).json()
    for choice in whole["choices"]:
        assert choice["finish_reason"] == "stop"
        assert 0 <= json.loads(choice["message"]["content"])["n"] <= 9
    for changed in ({}, {"stream": True}):
        refused = asking.post("/chat/completions", json=asked({"not": {}}, **changed))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "response_format"
        assert "not" in refused.json()["error"]["message"]


@pytest.mark.slow
def test_likelihoods_are_told_whole_or_streamed(asking: httpx2.Client) -> None:
    asked = body_of(max_tokens=8, logprobs=True, top_logprobs=2, stop="\n")
    whole = asking.post("/chat/completions", json=asked).json()["choices"][0]["logprobs"]["content"]
    with asking.stream("POST", "/chat/completions", json={**asked, "stream": True}) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    streamed = [one for c in choices if c["logprobs"] for one in c["logprobs"]["content"]]
    assert streamed == whole
    assert {len(one["top_logprobs"]) for one in whole} == {2}


@pytest.mark.slow
def test_a_plain_prompt_is_continued(asking: httpx2.Client) -> None:
    asked = {"model": "tiny", "prompt": "Once upon", "temperature": 0}
    whole = asking.post("/completions", json=asked).json()
    assert whole["object"] == "text_completion"
    assert whole["usage"]["completion_tokens"] == 16
    response = asking.post("/completions", json={**asked, "stream": True})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if "{" in line]
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]


@pytest.mark.slow
def test_what_exceeds_the_context_is_refused_also_as_a_stream(asking: httpx2.Client) -> None:
    for changed in ({"max_tokens": 1024}, {"max_tokens": 1024, "stream": True}):
        answer = asking.post("/chat/completions", json=body_of(**changed))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert "maximum context length is 1024 tokens" in error["message"]


@pytest.mark.slow
def test_whoever_hangs_up_is_no_longer_answered(asking: httpx2.Client, served: Served) -> None:
    long = body_of(temperature=1.0, max_tokens=900, n=16)
    for _ in range(2):
        with asking.stream("POST", "/chat/completions", json={**long, "stream": True}) as response:
            next(response.iter_lines())
    with pytest.raises(httpx2.TimeoutException):
        asking.post("/chat/completions", json=long, timeout=1.0)
    # Each of them alone would take longer than this.
    quick = asking.post("/chat/completions", json=body_of(max_tokens=1), timeout=8.0)
    assert quick.status_code == 200
    wait_until(lambda: "status=499" in served.log.read_text(), "the end of the request")


@pytest.mark.slow
def test_a_model_that_cannot_be_opened_is_unavailable(served: Served, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{served.home / 'serve.db'}")
    add_models(database, "demo")
    database.engine.dispose()
    with served.client(timeout_s=120) as asking:
        answer = asking.post("/chat/completions", json=body_of(model=STEP))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_unavailable"
    assert "not a run folder" in served.log.read_text()
