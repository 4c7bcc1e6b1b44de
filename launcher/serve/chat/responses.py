"""Answers of models as clients of OpenAI read them: whole, or as a stream of events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from launcher.serve.chat.model_process import Failed, Line
from launcher.serve.db.database import new_id
from launcher.serve.db.tables import now
from launcher.serve.http.failure import ApiError

#: Seconds after which a client may ask again.
_AGAIN_S = 5
_AT_FAULT = {
    "context_length_exceeded": "messages",
    "invalid_messages": "messages",
    "no_chat_template": "messages",
    "empty_prompt": "prompt",
    "invalid_prompt": "prompt",
    "unsupported_parameter": "tools",
}


class Answer:
    """The answer to one request, of a chat or of a plain prompt."""

    def __init__(
        self,
        model: str,
        n: int,
        *,
        is_chat: bool,
        functions: bool = False,
        logprobs: bool = False,
        with_usage: bool = False,
    ) -> None:
        """`model` as the client has named it; `n` choices; `functions`, whether a call is told as
        it was before there were tools; `logprobs`, whether it is told how likely tokens were;
        `with_usage`, whether a stream ends with numbers of tokens."""
        self._model, self._n, self._is_chat = model, n, is_chat
        self._functions, self._logprobs = functions, logprobs
        self._with_usage = with_usage
        self._created = now()
        self._id = new_id("chatcmpl-" if is_chat else "cmpl-", 29)

    async def whole(self, lines: AsyncGenerator[Line, None]) -> dict[str, Any]:
        """The body of an answer that is not streamed; `ApiError` if the model refuses."""
        texts, ends = [""] * self._n, [Line()] * self._n
        calls: list[list[Line]] = [[] for _ in texts]
        likely: list[list[Line]] = [[] for _ in texts]
        async for line in lines:
            refuse(line)
            index = line["index"]
            texts[index] += line.get("text", "")
            calls[index] += line.get("calls", ())
            likely[index] += line.get("logprobs", ())
            ends[index] = line
        choices = [
            self._choice(
                index, text, ends[index]["finish_reason"], "message", calls[index], likely[index]
            )
            for index, text in enumerate(texts)
        ]
        kind = "chat.completion" if self._is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": _usage(ends)}

    def refuse(self, line: Line) -> None:
        """`ApiError` if the line says that there is no answer."""
        refuse(line)

    async def events(self, lines: AsyncGenerator[Line, None]) -> AsyncGenerator[str, None]:
        """A streamed answer, event by event; a model that dies in its midst says so in one."""
        head = self._head("chat.completion.chunk" if self._is_chat else "text_completion")
        if self._with_usage:
            head["usage"] = None
        ends: list[Line] = []
        begun: set[int] = set()
        try:
            async for line in lines:
                refuse(line)
                index = line["index"]
                if self._is_chat and index not in begun:
                    begun.add(index)
                    yield _event({**head, "choices": [self._choice(index, "", None, "role")]})
                if "finish_reason" in line:
                    ends.append(line)
                text, reason, calls = (line.get(n) for n in ("text", "finish_reason", "calls"))
                likely = line.get("logprobs")
                choice = self._choice(index, text or "", reason, "delta", calls, likely)
                yield _event({**head, "choices": [choice]})
        except (ApiError, Failed) as error:
            yield _event((error if isinstance(error, ApiError) else unavailable()).body())
            return
        if self._with_usage:
            yield _event({**head, "choices": [], "usage": _usage(ends)})
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _choice(
        self,
        index: int,
        text: str,
        reason: str | None,
        part: str,
        calls: Sequence[Line] | None = None,
        likely: Sequence[Line] | None = None,
    ) -> dict[str, Any]:
        said: dict[str, Any]
        called = self._calls(calls or (), streamed=part == "delta")
        if self._functions and reason == "tool_calls":
            reason = "function_call"
        if not self._is_chat:
            said = {"text": text}
        elif part == "message":
            content = text if text or not called else None
            said = {"message": {"role": "assistant", "content": content, "refusal": None, **called}}
        elif part == "role":
            said = {"delta": {"role": "assistant", "content": ""}}
        else:
            said = {"delta": {**({"content": text} if text else {}), **called}}
        logprobs = {"content": list(likely), "refusal": None} if self._logprobs and likely else None
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}

    def _calls(self, calls: Sequence[Line], *, streamed: bool) -> dict[str, Any]:
        """Calls of tools as members of a message."""
        if calls and self._functions:
            return {"function_call": calls[0]}
        made = [
            {
                **({"index": number} if streamed else {}),
                "id": new_id("call_", 24),
                "type": "function",
                "function": call,
            }
            for number, call in enumerate(calls)
        ]
        return {"tool_calls": made} if made else {}


def refuse(line: Line, names: Mapping[str, str] | None = None) -> None:
    """`ApiError` if the line says that there is no answer; `names` are those of members that a
    request has otherwise than one of chats."""
    if "error" not in line:
        return
    param = line.get("param") or _AT_FAULT.get(line["code"])
    if param is None:
        raise unavailable()
    param = (names or {}).get(param, param)
    raise ApiError(400, line["error"], param=param, code=line["code"])


def unavailable() -> ApiError:
    """For a model that cannot be opened, or has died; why is in the server's log."""
    return ApiError(
        503,
        "The model cannot answer at present.",
        code="model_unavailable",
        headers={"Retry-After": str(_AGAIN_S)},
    )


def _usage(ends: list[Line]) -> dict[str, int]:
    prompt = ends[0]["prompt_tokens"]
    answers = sum(end["completion_tokens"] for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
    }


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
