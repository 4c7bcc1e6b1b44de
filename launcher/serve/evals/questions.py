"""What a run asks a model of each item: a chat, or a response, as clients' own requests are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from launcher.core.errors import ConfigError
from launcher.graders.errors import Ungraded
from launcher.graders.sample import Sample
from launcher.graders.template import (
    MAX_PLACES,
    Template,
    TemplatePlace,
    TooLongError,
    too_many_places,
)
from launcher.serve.chat.model_process import Line
from launcher.serve.chat.wire_chat import ChatRequest
from launcher.serve.chat.wire_responses import ResponseRequest
from launcher.serve.http.failure import ApiError

_WHERE = "data_source.input_messages"
_SAMPLING = "data_source.sampling_params"
#: Members of a request -> what they are called in `sampling_params`.
_NAMES = {
    "max_tokens": "max_completion_tokens",
    "max_output_tokens": "max_completion_tokens",
    "reasoning": "reasoning_effort",
}
_NOTHING = Sample("")


class Unaskable(Exception):
    """Nothing can be asked of this item; `code` says of what kind the reason is."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ItemQuestion:
    """A request to a model."""

    wanted: Line
    messages: list[dict[str, Any]]
    """As clients see them: role and content."""


class Questions:
    """Makes them by a run's `data_source`."""

    def __init__(self, source: Mapping[str, Any], longest: int, most_bytes: int) -> None:
        """`longest`: most tokens of an answer; `most_bytes`: of a question, in UTF-8. `ApiError`
        400, naming the member, for templates and parameters that will not do."""
        self._source, self._longest, self._most_bytes = source, longest, most_bytes
        self._is_chat = source["type"] == "completions"
        asked = source["input_messages"]
        try:
            if asked["type"] == "template":
                self._reference = None
                self._templates = [
                    (one["role"], Template(_text(one["content"]), f"{_WHERE}.template[{number}]"))
                    for number, one in enumerate(asked["template"])
                ]
            else:
                where = f"{_WHERE}.item_reference"
                self._reference = TemplatePlace(asked["item_reference"], where)
                self._templates = []
        except ConfigError as error:
            problem = error.problems[0]
            said = f"{problem.where}: {problem.found} ({problem.hint})"
            raise ApiError(400, said, param=problem.where, code="invalid_template") from error
        if len(self.places) > MAX_PLACES:
            found, hint = too_many_places()
            found = f"{_WHERE} has {found}: {hint}."
            raise ApiError(400, found, param=_WHERE, code="invalid_template")
        for place in self.places:
            if place.root != "item":
                found = f"{_WHERE} reads '{place.text}': before a model answers there is only item."
                raise ApiError(400, found, param=_WHERE, code="invalid_template")
        self._request([{"role": "user", "content": "?"}], f"{_SAMPLING}.")

    @property
    def places(self) -> list[TemplatePlace]:
        """What is read of items."""
        if self._reference is not None:
            return [self._reference]
        return [place for _, template in self._templates for place in template.places]

    def of(self, item: Mapping[str, Any]) -> ItemQuestion:
        """The question about an item; `Unaskable` if there is none, also if it would be longer than
        a chat of a client may be. It may take a second: call it in a thread."""
        try:
            wanted = self._request(self._messages(item), "")
        except TooLongError as error:
            found = f"The question is longer than {self._most_bytes:,} bytes."
            raise Unaskable("context_length_exceeded", found) from error
        except Ungraded as error:
            raise Unaskable(error.error.kind, error.error.message) from error
        except ApiError as error:
            raise Unaskable(error.code or "invalid_messages", error.message) from error
        shown = [
            {"role": one["role"], "content": _text(one.get("content") or "")}
            for one in wanted["messages"]
        ]
        return ItemQuestion(wanted, shown)

    def _messages(self, item: Mapping[str, Any]) -> Any:
        if self._reference is not None:
            found = self._reference.of(item, _NOTHING)
            text = json.dumps(found, ensure_ascii=False)
            if len(text.encode(errors="replace")) > self._most_bytes:
                raise TooLongError
            return found
        left, messages = self._most_bytes, list[dict[str, Any]]()
        for role, template in self._templates:
            text = template.fill(item, _NOTHING, left)
            left -= len(text.encode(errors="replace"))
            messages.append({"role": role, "content": text})
        return messages

    def about(self, question: ItemQuestion) -> dict[str, Any]:
        """How it is asked, as clients see it beside an answer."""
        wanted = question.wanted
        return {
            "input": question.messages,
            "model": self._source["model"],
            "max_completion_tokens": wanted["max_tokens"] or self._longest,
            "seed": wanted.get("seed"),
            "temperature": wanted["temperature"],
            "top_p": wanted["top_p"],
        }

    def _request(self, messages: Any, prefix: str) -> Line:
        """The request to the model; `ApiError` 400 that names the member below `prefix`."""
        sampling = dict(self._source.get("sampling_params") or {})
        body = {"model": self._source["model"], **sampling}
        seed = sampling.get("seed")
        kind: type[ChatRequest] | type[ResponseRequest] = ChatRequest
        if self._is_chat:
            body["messages"] = messages
        else:
            kind = ResponseRequest
            body["input"] = messages
            body.pop("seed", None)
            body["max_output_tokens"] = body.pop("max_completion_tokens", None)
            if effort := body.pop("reasoning_effort", None):
                body["reasoning"] = {"effort": effort}
        try:
            wanted = kind.model_validate(body).request(self._longest)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _named(
                ApiError(400, f"{first['msg']} - '{where}'", param=where), prefix
            ) from error
        except ApiError as error:
            raise _named(error, prefix) from error
        return wanted if self._is_chat else {**wanted, "seed": seed}


def _named(error: ApiError, prefix: str) -> ApiError:
    if error.param is None or not prefix:
        return error
    first, dot, rest = error.param.partition(".")
    named = f"{prefix}{_NAMES.get(first, first)}{dot}{rest}"
    return ApiError(400, f"{named}: {error.message}", param=named, code=error.code)


def _text(content: str | Mapping[str, Any] | Sequence[Any]) -> str:
    """The text of content, which may come in parts."""
    parts = [content] if isinstance(content, str | Mapping) else content
    return "\n".join(
        part if isinstance(part, str) else str(part.get("text", part.get("refusal", "")))
        for part in parts
    )
