"""Answers to POST /v1/responses: an object with its items, or the events in which it comes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from launcher.serve.chat.model_process import Failed, Line
from launcher.serve.chat.responses import refuse, unavailable
from launcher.serve.chat.wire_responses import NAMES, ResponseRequest
from launcher.serve.db.database import new_id
from launcher.serve.db.tables import now
from launcher.serve.http.failure import ApiError

_ENDED = {"length": "incomplete"}


class ResponseAnswer:
    """The answer to one request."""

    def __init__(self, asked: ResponseRequest) -> None:
        self._asked = asked
        self._number = 0
        self._last = Line()
        self._output: list[dict[str, Any]] = []
        """Items that are whole."""
        self._head = {
            "id": new_id("resp_", 48),
            "object": "response",
            "created_at": now(),
            "model": asked.model,
            **_echo(asked),
        }

    def refuse(self, line: Line) -> None:
        """`ApiError` if the line says that there is no answer."""
        refuse(line, NAMES)

    async def whole(self, lines: AsyncGenerator[Line, None]) -> dict[str, Any]:
        """The body of an answer that is not streamed; `ApiError` if the model refuses."""
        async for _ in self._told(lines):
            pass
        return self._ended()

    async def events(self, lines: AsyncGenerator[Line, None]) -> AsyncGenerator[str, None]:
        """A streamed answer, event by event; a model that dies in its midst says so in one."""
        begun = self._object("in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        try:
            async for event in self._told(lines):
                yield event
        except (ApiError, Failed) as error:
            known = error if isinstance(error, ApiError) else unavailable()
            code = "server_error" if known.status >= 500 else "invalid_prompt"
            failed = {"error": {"code": code, "message": known.message}}
            yield self._event("response.failed", response=self._object("failed", **failed))
            return
        ended = self._ended()
        yield self._event(f"response.{ended['status']}", response=ended)

    async def _told(self, lines: AsyncGenerator[Line, None]) -> AsyncGenerator[str, None]:
        """Every event of the items."""
        message: _Message | None = None
        async for line in lines:
            self.refuse(line)
            is_end = "finish_reason" in line
            says = bool(line.get("text") or line.get("logprobs"))
            # An answer of nothing at all is an empty message.
            if message is None and (says or (is_end and not self._output)):
                message = _Message(len(self._output))
                for event in message.begun():
                    yield self._event(**event)
            if message is not None and says:
                event = message.more(line.get("text", ""), line.get("logprobs", ()))
                yield self._event(**event)
            if message is not None and (is_end or "calls" in line):
                for event in message.ended(_ENDED.get(line.get("finish_reason", ""), "completed")):
                    yield self._event(**event)
                self._output.append(message.item)
                message = None
            for call in line.get("calls", ()):
                for event in _called(call, len(self._output)):
                    yield self._event(**event)
                self._output.append(event["item"])
            self._last = line

    def _ended(self) -> dict[str, Any]:
        last = self._last
        status = _ENDED.get(last["finish_reason"], "completed")
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        more = {"completed_at": now()} if status == "completed" else {}
        return self._object(status, incomplete_details=details, usage=_usage(last), **more)

    def _object(self, status: str, **more: Any) -> dict[str, Any]:
        nothing = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": list(self._output), **nothing, **more}

    def _event(self, kind: str, **members: Any) -> str:
        value = {"type": kind, "sequence_number": self._number, **members}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(value)}\n\n"


class _Message:
    """What a model says, as an item that comes piece by piece."""

    def __init__(self, place: int) -> None:
        self._text = ""
        self._likely: list[Line] = []
        self._id = new_id("msg_", 48)
        self._place = {"item_id": self._id, "output_index": place, "content_index": 0}

    @property
    def _part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "annotations": [],
            "logprobs": self._likely,
            "text": self._text,
        }

    def _as_item(self, status: str, content: Sequence[dict[str, Any]]) -> dict[str, Any]:
        said = {"id": self._id, "type": "message", "status": status}
        return {**said, "role": "assistant", "content": list(content)}

    def begun(self) -> Iterator[dict[str, Any]]:
        """Events before the text."""
        item = self._as_item("in_progress", ())
        index = self._place["output_index"]
        yield {"kind": "response.output_item.added", "output_index": index, "item": item}
        yield {"kind": "response.content_part.added", **self._place, "part": self._part}

    def more(self, text: str, likely: Sequence[Line]) -> dict[str, Any]:
        """The event of a piece of text."""
        self._text += text
        self._likely = [*self._likely, *likely]
        told = [_without_bytes(one) for one in likely]
        return {
            "kind": "response.output_text.delta",
            **self._place,
            "delta": text,
            "logprobs": told,
        }

    def ended(self, status: str) -> Iterator[dict[str, Any]]:
        """Events behind the text."""
        told = [_without_bytes(one) for one in self._likely]
        done = {"text": self._text, "logprobs": told}
        yield {"kind": "response.output_text.done", **self._place, **done}
        yield {"kind": "response.content_part.done", **self._place, "part": self._part}
        self.item = self._as_item(status, [self._part])
        index = self._place["output_index"]
        yield {"kind": "response.output_item.done", "output_index": index, "item": self.item}


def _called(call: Line, place: int) -> Iterator[dict[str, Any]]:
    """Events of a call; the last one has its item."""
    name = new_id("fc_", 48)
    item = {
        "id": name,
        "type": "function_call",
        "status": "in_progress",
        "call_id": new_id("call_", 24),
        "name": call["name"],
        "arguments": "",
    }
    at = {"output_index": place}
    here = {"item_id": name, **at}
    yield {"kind": "response.output_item.added", **at, "item": item}
    yield {
        "kind": "response.function_call_arguments.delta",
        **here,
        "delta": call["arguments"],
    }
    done = {"arguments": call["arguments"], "name": call["name"]}
    yield {"kind": "response.function_call_arguments.done", **here, **done}
    whole = {**item, "status": "completed", "arguments": call["arguments"]}
    yield {"kind": "response.output_item.done", **at, "item": whole}


def _without_bytes(one: Line) -> Line:
    top = [{"token": t["token"], "logprob": t["logprob"]} for t in one["top_logprobs"]]
    return {"token": one["token"], "logprob": one["logprob"], "top_logprobs": top}


def _echo(asked: ResponseRequest) -> dict[str, Any]:
    """What an answer repeats of its request, with what holds where that says nothing."""
    given = asked.model_dump(by_alias=True)
    form = (given["text"] or {}).get("format") or {"type": "text"}
    tools = [
        {"description": None, "parameters": None, "strict": None, **tool}
        for tool in given["tools"] or ()
    ]
    alike = ("instructions", "max_output_tokens", "max_tool_calls", "user", "safety_identifier")
    return {
        **{name: given[name] for name in alike},
        "prompt_cache_key": given["prompt_cache_key"],
        "metadata": given["metadata"] or {},
        "background": False,
        "store": False,
        "previous_response_id": None,
        "parallel_tool_calls": given["parallel_tool_calls"] is not False,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "temperature": 1.0 if given["temperature"] is None else given["temperature"],
        "top_p": 1.0 if given["top_p"] is None else given["top_p"],
        "top_logprobs": given["top_logprobs"] or 0,
        "text": {
            "format": {name: value for name, value in form.items() if value is not None},
            "verbosity": "medium",
        },
        "tool_choice": given["tool_choice"] or "auto",
        "tools": tools,
        "truncation": "disabled",
    }


def _usage(end: Line) -> dict[str, Any]:
    read, said = end["prompt_tokens"], end["completion_tokens"]
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + said,
    }
