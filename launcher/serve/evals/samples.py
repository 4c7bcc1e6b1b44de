"""Answers of runs: as clients see them, and as graders read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cached_tokens": 0}
_NO_QUESTION: dict[str, Any] = {
    "input": [],
    "model": "",
    "max_completion_tokens": None,
    "seed": None,
    "temperature": None,
    "top_p": None,
}


class NoAnswer(Exception):
    """The model does not answer this item; `sample` says so to clients."""

    def __init__(self, sample: dict[str, Any]) -> None:
        super().__init__()
        self.sample = sample


def answered(about: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Both forms of a chat's answer to what was asked, `about`."""
    choice = body["choices"][0]
    message = choice["message"]
    text, calls = message["content"] or "", message.get("tool_calls", [])
    output = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    sample = _sample(about, [output], choice["finish_reason"])
    sample["usage"] = {**_NO_USAGE, **body["usage"]}
    return sample, {"output_text": text, "output_tools": calls}


def given(answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """An answer that stands in the data; none where there is none."""
    if answer is None:
        return _sample({}, [], "stop")
    calls = answer.get("output_tools")
    more = {"tool_calls": calls} if calls else {}
    output = {"role": "assistant", "content": answer["output_text"], **more}
    return _sample({}, [output], "stop")


def failed(about: Mapping[str, Any], model: str, code: str, message: str) -> dict[str, Any]:
    """That there is none, and why."""
    sample = _sample({"model": model, **about}, [], "error")
    return {**sample, "error": {"code": code, "message": message}}


def add_usage(usage: dict[str, dict[str, int]], model: str, used: Mapping[str, int]) -> None:
    """Count a question to a model; one whose answer was kept from before costs nothing."""
    if not used.get("total_tokens"):
        return
    found = usage.setdefault(model, {"invocation_count": 0, **_NO_USAGE})
    found["invocation_count"] += 1
    for name in _NO_USAGE:
        found[name] += used.get(name, 0)


def _sample(about: Mapping[str, Any], output: list[dict[str, Any]], reason: str) -> dict[str, Any]:
    return {
        **_NO_QUESTION,
        **about,
        "output": output,
        "finish_reason": reason,
        "usage": dict(_NO_USAGE),
        "error": None,
    }
