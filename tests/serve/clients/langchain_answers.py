"""Answers by langchain-openai: `langchain_answers.py MODEL`, the address and key from the
environment. Prints what it has seen as JSON.
"""

import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

QUESTION = "Anna has 3 apples and gets 4 more. How many?"


class Point(BaseModel):
    on: bool
    side: bool


@tool
def move(on: bool) -> str:
    """Move."""
    return "7" if on else "8"


def main(model: str) -> None:
    asked = {"model": model, "temperature": 0, "max_tokens": 60, "max_retries": 0}
    chat, responses = ChatOpenAI(**asked), ChatOpenAI(**asked, use_responses_api=True)
    one = {"tool_choice": "move", "strict": True, "parallel_tool_calls": False}
    called = chat.bind_tools([move], **one).invoke(QUESTION)
    (call,) = called.tool_calls
    history = [HumanMessage(QUESTION), called, ToolMessage("7", tool_call_id=call["id"])]
    short = ChatOpenAI(**{**asked, "max_tokens": 4})
    structured = chat.with_structured_output(Point).invoke(QUESTION)
    ways = {"method": "function_calling", "strict": True}
    called_so = ChatOpenAI(**{**asked, "max_tokens": 200}).with_structured_output(Point, **ways)
    chunks = list(chat.stream(QUESTION, stream_usage=True))
    likely = chat.bind(logprobs=True).invoke(QUESTION).response_metadata["logprobs"]["content"]
    told = {
        "text": chat.invoke(QUESTION).text,
        "streamed": "".join(chunk.text for chunk in chunks),
        "used": [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata],
        "likely": "".join(token["token"] for token in likely),
        "call": [call["name"], sorted(call["args"])],
        "history": bool(short.bind_tools([move]).invoke(history).response_metadata),
        "structured": [type(one).__name__ for one in (structured, called_so.invoke(QUESTION))],
        "responses": responses.invoke(QUESTION).text,
        "responses_streamed": "".join(chunk.text for chunk in responses.stream(QUESTION)),
        "responses_call": responses.bind_tools([move], **one)
        .invoke(QUESTION)
        .tool_calls[0]["name"],
        "completed": bool(OpenAI(model=model, max_tokens=4).invoke("Arr")),
    }
    print(json.dumps(told))


main(*sys.argv[1:])
