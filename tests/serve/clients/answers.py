"""Answers in every form that the official Python client asks for: `answers.py MODEL`, the address
and key from the environment as always. Prints what it has seen as JSON.
"""

import json
import sys
import time

import openai
from pydantic import BaseModel, ConfigDict

ASKED = [{"role": "user", "content": "Anna has 3 apples and gets 4 more. How many?"}]


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid")
    on: bool
    side: bool


SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "side": {"type": "boolean"}},
    "required": ["on", "side"],
    "additionalProperties": False,
}
FUNCTION = {"name": "move", "description": "Move.", "parameters": SCHEMA, "strict": True}
FORMAT = {"name": "Point", "schema": SCHEMA, "strict": True}


def chat(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": ASKED, "seed": 3, "max_tokens": 200}
    tools = [{"type": "function", "function": FUNCTION}]
    one = {"tools": tools, "parallel_tool_calls": False}
    called = client.chat.completions.create(**asked, **one, tool_choice="required")
    (choice,) = called.choices
    assert choice.finish_reason == "tool_calls", choice
    for call in choice.message.tool_calls:
        Point.model_validate_json(call.function.arguments)
    chosen = {"type": "function", "function": {"name": "move"}}
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**streamed, **one, tool_choice=chosen))
    parts = [
        part
        for chunk in chunks
        if chunk.choices
        for part in chunk.choices[0].delta.tool_calls or ()
    ]
    assert {part.function.name for part in parts} == {"move"}
    assert chunks[-1].usage.total_tokens > 0
    history = [
        *ASKED,
        choice.message.model_dump(exclude_none=True),
        *(
            {"role": "tool", "tool_call_id": call.id, "content": "7"}
            for call in choice.message.tool_calls
        ),
    ]
    again = client.chat.completions.create(**{**asked, "messages": history, "max_tokens": 9}, **one)
    assert again.choices[0].finish_reason in ("stop", "length", "tool_calls")
    form = {"type": "json_schema", "json_schema": FORMAT}
    two = client.chat.completions.create(**asked, n=2, response_format=form)
    assert [Point.model_validate_json(one.message.content) for one in two.choices]
    parse = getattr(client.chat.completions, "parse", client.beta.chat.completions.parse)
    assert isinstance(parse(**asked, response_format=Point).choices[0].message.parsed, Point)
    follow = getattr(client.chat.completions, "stream", client.beta.chat.completions.stream)
    with follow(**asked, response_format=Point, logprobs=True) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert isinstance(final.message.parsed, Point)
    assert "".join(one.token for one in final.logprobs.content) == final.message.content
    likely = client.chat.completions.create(
        **asked,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        stop=["\n", "!"],
        logit_bias={"5": -100},
        presence_penalty=0.5,
        frequency_penalty=0.5,
    )
    told = likely.choices[0].logprobs.content
    said = bytes(byte for one in told for byte in one.bytes).decode(errors="replace")
    assert said.startswith(likely.choices[0].message.content)
    assert {len(one.top_logprobs) for one in told} == {2}


def responses(client: openai.OpenAI, model: str) -> dict:
    question = ASKED[0]["content"]
    asked = {"model": model, "input": question, "temperature": 0, "max_output_tokens": 200}
    whole = client.responses.create(**asked, instructions="Be brief.")
    events = list(client.responses.create(**asked, instructions="Be brief.", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    with client.responses.stream(**asked, text_format=Point) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Point)
    parsed = client.responses.parse(**asked, text_format=Point)
    assert isinstance(parsed.output_parsed, Point)
    tools = [{"type": "function", **FUNCTION}]
    one = {"tools": tools, "parallel_tool_calls": False, "tool_choice": "required"}
    called = client.responses.create(**asked, **one)
    calls = [item for item in called.output if item.type == "function_call"]
    assert calls
    assert Point.model_validate_json(calls[0].arguments)
    with client.responses.stream(**asked, **one) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    assert final.output[-1].arguments == calls[-1].arguments
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "7"} for call in calls
    ]
    history = [{"role": "user", "content": question}, *called.output, *outputs]
    answer = client.responses.create(
        **{**asked, "input": history, "max_output_tokens": 9}, tools=tools
    )
    return {
        "status": whole.status,
        "text": whole.output_text,
        "answered": answer.status,
        "kinds": kinds[:2] + kinds[-1:],
        "errors": errors(client, asked, tools),
    }


def errors(client: openai.OpenAI, asked: dict, tools: list) -> list:
    found = []
    bad = {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}
    for more in (
        {"previous_response_id": "resp_1"},
        {"text": bad},
        {"tools": tools, "tool_choice": {"type": "function", "name": "fly"}},
        {"store": True},
    ):
        try:
            client.responses.create(**asked, **more)
        except openai.BadRequestError as error:
            found.append(error.param)
    return found


def batch(client: openai.OpenAI, model: str) -> list:
    url = "/v1/responses"
    body = {"model": model, "input": ASKED[0]["content"], "max_output_tokens": 5}
    asked = [
        {"custom_id": name, "method": "POST", "url": url, "body": {**body, **more}}
        for name, more in (("good", {}), ("bad", {"store": True}))
    ]
    lines = "\n".join(map(json.dumps, asked)).encode()
    file = client.files.create(file=("requests.jsonl", lines), purpose="batch")
    wanted = {"input_file_id": file.id, "endpoint": url, "completion_window": "24h"}
    other = client.batches.create(**wanted)
    assert client.batches.cancel(other.id).status in ("cancelling", "cancelled")
    made = client.batches.create(**wanted, metadata={"a": "b"})
    while made.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.05)
        made = client.batches.retrieve(made.id)
    listed = list(client.batches.list(limit=1))
    assert [one.id for one in listed][:2] == [made.id, other.id]
    (answer,) = client.files.content(made.output_file_id).text.splitlines()
    (error,) = client.files.content(made.error_file_id).text.splitlines()
    answer, error = json.loads(answer), json.loads(error)
    assert answer["response"]["body"]["object"] == "response"
    told = [answer["custom_id"], error["custom_id"], error["response"]["status_code"]]
    return [made.status, made.request_counts.total, made.metadata, *told]


def main(model: str) -> None:
    client = openai.OpenAI(max_retries=0)
    chat(client, model)
    seen = {**responses(client, model), "batch": batch(client, model)}
    print(json.dumps({"version": openai.__version__, **seen}))


main(*sys.argv[1:])
