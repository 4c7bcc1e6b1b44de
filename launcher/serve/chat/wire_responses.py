"""Bodies of POST /v1/responses: what is read, what is refused, what is ignored."""

# Annotations are not postponed here: pydantic reads them.
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from launcher.core.errors import did_you_mean
from launcher.serve.chat.model_process import Line
from launcher.serve.chat.wire_chat import (
    Spoken,
    Tokens,
    choice_of,
    too_long,
    unsupported,
    without_tools,
)
from launcher.serve.http.failure import ApiError, unknown_member

#: Which member of a chat's request stands where in one of these.
NAMES = {"messages": "input", "response_format": "text.format"}

#: Members of a part beside its text: a part of an answer may be sent back as it came.
_BESIDE = ("type", "annotations", "logprobs", "parsed", "prompt_cache_breakpoint")
_TEXTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
#: None of them is supported; clients send them without a value.
_REASONING = ("effort", "summary", "generate_summary", "context", "mode")
_LIKELIHOODS = "message.output_text.logprobs"

Parts = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Status = Literal["in_progress", "completed", "incomplete"]


class InputMessage(Spoken):
    """A turn of a conversation; one of an answer may be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Parts
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCall(Spoken):
    """A call in the history."""

    type: Literal["function_call"]
    call_id: str
    name: Annotated[str, Field(min_length=1)]
    arguments: str
    id: str | None = None
    status: Status | None = None
    parsed_arguments: Any = None
    """What the clients' own `parse` has made of `arguments`."""


class FunctionCallOutput(Spoken):
    """What a function has returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Parts
    name: str | None = None
    id: str | None = None
    status: Status | None = None


def _kind(item: Any) -> Any:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else kind


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="unsupported_item",
        custom_error_message="Only items of the types 'message', 'function_call' and"
        " 'function_call_output' are supported",
    ),
]


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _with_string(schema: dict[str, Any]) -> None:
    items = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string"}, items]


class FunctionTool(Spoken):
    """A function that the model may call. With `strict` it is called as `parameters` say."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AnswerFormat(Spoken):
    """What form the text has. Name and description of a schema are not shown to the model."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(Spoken):
    """How the text is written."""

    format: AnswerFormat | None = None
    verbosity: str | None = None


class ResponseStreamOptions(Spoken):
    """What a stream holds besides the answer."""

    include_obfuscation: bool | None = None
    """Filling against listeners, without effect: what is sent is the answer alone."""


class ResponseRequest(Spoken):
    """POST /v1/responses: every member that the official clients know. Nothing is stored."""

    model: str
    input: Annotated[
        list[Item],
        Field(min_length=1, fail_fast=True, json_schema_extra=_with_string),
        BeforeValidator(_as_items),
    ]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    include: (
        list[
            Literal[
                "message.output_text.logprobs",
                "reasoning.encrypted_content",
                "file_search_call.results",
                "web_search_call.results",
                "web_search_call.action.sources",
                "message.input_image.image_url",
                "computer_call_output.output.image_url",
                "code_interpreter_call.outputs",
            ]
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    background_options: Any = None
    reasoning: dict[str, Any] | None = None
    truncation: str | None = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None
    image: Any = None
    access_programs: Any = None
    service_tier: str | None = None
    # These change no answer: they are for tools that are not here, and for a service's accounts,
    # caches and monitors.
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    def refused(self) -> dict[str, bool]:
        """Members that are not supported -> whether the request needs them."""
        verbosity = self.text.verbosity if self.text else None
        return {
            "store": bool(self.store),
            "previous_response_id": self.previous_response_id is not None,
            "conversation": self.conversation is not None,
            "background": bool(self.background),
            "background_options": self.background_options is not None,
            "reasoning": any(value is not None for value in (self.reasoning or {}).values()),
            "truncation": self.truncation not in (None, "disabled"),
            "prompt": self.prompt is not None,
            "context_management": bool(self.context_management),
            "moderation": self.moderation is not None,
            "image": self.image is not None,
            "access_programs": self.access_programs is not None,
            "service_tier": self.service_tier not in (None, "auto", "default"),
            "text.verbosity": verbosity not in (None, "medium"),
        }

    def request(self, longest: int) -> Line:
        """The request to the model; 400 in the envelope for what it cannot do."""
        for member in self.reasoning or ():
            if member not in _REASONING:
                raise unknown_member(f"reasoning.{member}", did_you_mean(member, _REASONING))
        for name, is_needed in self.refused().items():
            if is_needed:
                raise unsupported(name)
        if self.stream_options is not None and not self.stream:
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise ApiError(400, message, param="stream_options")
        if self.max_output_tokens is not None and self.max_output_tokens > longest:
            raise too_long("max_output_tokens", self.max_output_tokens, longest)
        found: Line = {
            "messages": self.messages(),
            "max_tokens": self.max_output_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "n": 1,
            "logprobs": (self.top_logprobs or 0) if self.tells_likelihoods else None,
            "max_calls": 1 if self.parallel_tool_calls is False else None,
        }
        schema = self._schema()
        if schema is not None:
            found["format"] = {"schema": schema}
        if self.tool_choice is not None and self.tools is None:
            raise without_tools("tool_choice")
        names = [tool.name for tool in self.tools or ()]
        call = choice_of(self.tool_choice, names, "tool_choice")
        if self.tools and call is not None:
            functions = [
                tool.model_dump(exclude={"type"}, exclude_none=True) for tool in self.tools
            ]
            found["tools"] = [{"type": "function", "function": own} for own in functions]
            found |= {"call": call} if call else {}
        return found

    @property
    def tells_likelihoods(self) -> bool:
        """Whether it is told how likely tokens were."""
        return bool(self.top_logprobs) or _LIKELIHOODS in (self.include or ())

    def _schema(self) -> dict[str, Any] | None:
        """That of the answer; None for text."""
        wanted = self.text.format if self.text else None
        if wanted is not None and wanted.type != "json_schema":
            for name in ("name", "schema", "description", "strict"):
                if getattr(wanted, name.replace("schema", "schema_")) is not None:
                    message = f"'{name}' is only allowed with the type 'json_schema'."
                    raise ApiError(400, message, param=f"text.format.{name}")
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return {"type": "object"}
        for name, value in (("name", wanted.name), ("schema", wanted.schema_)):
            if value is None:
                where = f"text.format.{name}"
                raise ApiError(400, f"Missing required parameter: '{where}'.", param=where)
        return wanted.schema_

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as one of chats: an answer and its calls are one turn."""
        found: list[dict[str, Any]] = []
        if self.instructions:
            found.append({"role": "system", "content": self.instructions})
        for place, item in enumerate(self.input):
            where = f"input.[{place}]"
            if isinstance(item, InputMessage):
                content = _content(item.content, f"{where}.content")
                found.append({"role": item.role, "content": content})
            elif isinstance(item, FunctionCallOutput):
                content = _content(item.output, f"{where}.output")
                found.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
                if item.name is not None:
                    found[-1]["name"] = item.name
            else:
                if not found or found[-1]["role"] != "assistant":
                    found.append({"role": "assistant"})
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                found[-1].setdefault("tool_calls", []).append(call)
        return found


def _content(content: str | list[dict[str, Any]], where: str) -> str | list[dict[str, Any]]:
    """Text, or its parts as those of a chat's message."""
    return content if isinstance(content, str) else [_part(part, where) for part in content]


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    name = _TEXTS.get(kind) if isinstance(kind, str) else None
    if name is None or not isinstance(part.get(name), str):
        message = f"Only text is supported, not content of type '{kind}'."
        raise ApiError(400, message, param=where)
    known = (name, *_BESIDE)
    for member in part:
        if member not in known:
            raise unknown_member(f"{where}.{member}", did_you_mean(member, known))
    return {"type": "refusal" if name == "refusal" else "text", name: part[name]}
