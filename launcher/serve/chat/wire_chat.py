"""Bodies of chat and completion requests: what is read, what is refused, what is ignored."""

# Annotations are not postponed here: pydantic reads them.
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from launcher.core.errors import did_you_mean
from launcher.serve.chat.model_process import Line
from launcher.serve.http.failure import ApiError, unknown_member
from launcher.serve.http.wire import RequestBody

#: Longest answer to a plain prompt unless the client says otherwise, as at OpenAI.
COMPLETION_TOKENS = 16
#: Stop strings of one request.
MAX_STOP = 4
#: Tokens of one request whose logits are changed.
MAX_BIASES = 300
_MODES = ("auto", "required")

Tokens = Annotated[int, Field(ge=1, le=1 << 30)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
#: Number of a token, as JSON has keys.
TokenId = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")]


class Spoken(RequestBody):
    """What goes to a model: texts as long as a body may be."""

    model_config = ConfigDict(str_max_length=None)


class StreamOptions(Spoken):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Filling against listeners, without effect: what is sent is the answer alone."""


class SaidFunction(Spoken):
    """A call in the history."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"
    parsed_arguments: Any = None
    """What the clients' own `parse` has made of `arguments`."""


class SaidCall(Spoken):
    """A call in the history. `index` is what streams add."""

    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: SaidFunction


class Message(Spoken):
    """A turn of a conversation, with the members that training reads.

    `weight` says what is learned, and `annotations` are of an answer that is sent back: neither
    changes what is said.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[SaidCall], Field(fail_fast=True)] | None = None
    function_call: SaidFunction | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    weight: Literal[0, 1] | None = None
    annotations: list[Any] | None = None
    audio: Any = None
    parsed: Any = None
    """What the clients' own `parse` has made of `content`."""

    def plain(self, place: int) -> dict[str, Any]:
        """As training reads it; 400 in the envelope for what cannot be said."""
        where = f"messages.[{place}]"
        if isinstance(self.content, list):
            for part in self.content:
                _check_part(part, f"{where}.content")
        if self.audio is not None:
            raise ApiError(400, "Only text is supported, not audio.", param=f"{where}.audio")
        calls = self.tool_calls or self.function_call or self.refusal
        if calls and self.role != "assistant":
            message = f"Only an assistant calls tools or refuses, not '{self.role}'."
            raise ApiError(400, message, param=where)
        if self.content is None and not calls:
            message = "Only messages with content are supported."
            raise ApiError(400, message, param=f"{where}.content")
        unsaid = {"annotations", "weight", "audio", "parsed"}
        said = self.model_dump(exclude_none=True, exclude=unsaid)
        for call in said.get("tool_calls", ()):
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
        said.get("function_call", {}).pop("parsed_arguments", None)
        return said


def _check_part(part: dict[str, Any], where: str) -> None:
    kind = part.get("type")
    if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
        message = f"Only text is supported, not content of type '{kind}'."
        raise ApiError(400, message, param=where)
    known = ("type", kind, "prompt_cache_breakpoint")
    for name in part:
        if name not in known:
            raise unknown_member(f"{where}.{name}", did_you_mean(name, known))


class Function(Spoken):
    """A function that the model may call. With `strict` it is called as `parameters` say."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Spoken):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class AnswerSchema(Spoken):
    """A schema that the answer keeps to, with or without `strict`. Its name and description are not
    shown to the model."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Spoken):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: AnswerSchema | None = None


class Sampled(Spoken):
    """What requests to a model share. Those of `refused` would change the answer; `user` does
    not."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)
        ]
        | None
    ) = None
    user: str | None = None

    def refused(self) -> dict[str, bool]:
        """Members that are not supported -> whether the request needs them."""
        return {}

    def request(self, longest: int) -> Line:
        """The request to the model; 400 in the envelope for what it cannot do."""
        for name, is_needed in self.refused().items():
            if is_needed:
                raise unsupported(name)
        if self.stream_options is not None and not self.stream:
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise ApiError(400, message, param="stream_options")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > MAX_STOP or not all(stop):
            message = f"'stop' takes at most {MAX_STOP} strings, none of them empty."
            raise ApiError(400, message, param="stop")
        asked = self.length()
        if asked is not None and asked > longest:
            raise too_long("max_tokens", asked, longest)
        return {
            "max_tokens": asked,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "n": self.n or 1,
            "seed": self.seed,
            "stop": stop,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "logit_bias": self.logit_bias or {},
        }

    def length(self) -> int | None:
        """Most tokens that are wanted, None for as many as there is room for."""
        return self.max_tokens


class ChatRequest(Sampled):
    """POST /v1/chat/completions: every member that the official clients know."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Tokens | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(fail_fast=True)] | None = None
    function_call: Any = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    audio: Any = None
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: Any = None
    verbosity: str | None = None
    moderation: Any = None
    web_search_options: Any = None
    # These change no answer: they are for a service's accounts, caches and monitors.
    metadata: dict[str, str] | None = None
    prediction: Any = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    def refused(self) -> dict[str, bool]:
        """Members that are not supported -> whether the request needs them."""
        return {
            **super().refused(),
            "modalities": (self.modalities or ["text"]) != ["text"],
            "audio": self.audio is not None,
            "store": bool(self.store),
            "service_tier": self.service_tier not in (None, "auto", "default"),
            "reasoning_effort": self.reasoning_effort is not None,
            "verbosity": self.verbosity not in (None, "medium"),
            "moderation": self.moderation is not None,
            "web_search_options": self.web_search_options is not None,
        }

    def request(self, longest: int) -> Line:
        """The request to the model; 400 in the envelope for what it cannot do."""
        both = self.max_tokens and self.max_completion_tokens
        if both and self.max_tokens != self.max_completion_tokens:
            message = "'max_tokens' and 'max_completion_tokens' say different things."
            raise ApiError(400, message, param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            message = "'top_logprobs' is only allowed when 'logprobs' is true."
            raise ApiError(400, message, param="top_logprobs")
        messages = [message.plain(place) for place, message in enumerate(self.messages)]
        found = {**super().request(longest), "messages": messages}
        if self.logprobs:
            found["logprobs"] = self.top_logprobs or 0
        schema = self._schema()
        if schema is not None:
            found["format"] = {"schema": schema}
        one = self.functions or self.parallel_tool_calls is False
        return {**found, **self._tools(), "max_calls": 1 if one else None}

    def _schema(self) -> dict[str, Any] | None:
        """That of the answer; None for text."""
        wanted = self.response_format
        if wanted is None:
            return None
        if (wanted.type == "json_schema") != (wanted.json_schema is not None):
            message = "'json_schema' is given with the type 'json_schema', and only with it."
            raise ApiError(400, message, param="response_format.json_schema")
        if wanted.json_schema is not None:
            return wanted.json_schema.schema_ or {}
        return {"type": "object"} if wanted.type == "json_object" else None

    def _tools(self) -> dict[str, Any]:
        """The tools that the model may call, and which of them it has to; nothing where it must
        not."""
        if self.tools and self.functions:
            raise ApiError(400, "'tools' and 'functions' are both given.", param="functions")
        tools = self.tools or [
            Tool(type="function", function=function) for function in self.functions or ()
        ]
        if self.tool_choice is not None and self.tools is None:
            raise without_tools("tool_choice")
        if self.functions:
            choice = self.function_call
            named = isinstance(choice, dict) and choice.keys() == {"name"}
            choice = {"type": "function", "function": choice} if named else choice
            call = choice_of(choice, [tool.function.name for tool in tools], "function_call")
        else:
            if self.function_call not in (None, "none", "auto"):
                message = "'function_call' is only allowed when 'functions' are specified."
                raise ApiError(400, message, param="function_call")
            names = [tool.function.name for tool in tools]
            call = choice_of(self.tool_choice, names, "tool_choice")
        if call is None or not tools:
            return {}
        plain = [tool.model_dump(exclude_none=True) for tool in tools]
        return {"tools": plain, **({"call": call} if call else {})}

    def length(self) -> int | None:
        """Most tokens that are wanted, None for as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampled):
    """POST /v1/completions: every member that the official clients know."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    def refused(self) -> dict[str, bool]:
        """Members that are not supported -> whether the request needs them."""
        return {
            **super().refused(),
            "echo": bool(self.echo),
            "logprobs": self.logprobs is not None,
            "suffix": bool(self.suffix),
        }

    def request(self, longest: int) -> Line:
        """The request to the model; 400 in the envelope for what it cannot do."""
        choices = self.n or 1
        if self.best_of is not None and self.best_of < choices:
            message = f"'best_of' is {self.best_of}, but must be at least 'n', which is {choices}."
            raise ApiError(400, message, param="best_of")
        if self.best_of is not None and self.best_of > choices:
            raise unsupported("best_of")  # nothing here tells which of them are best
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return {**super().request(longest), "prompt": prompt}

    def length(self) -> int | None:
        """Most tokens that are wanted."""
        return self.max_tokens or COMPLETION_TOKENS


def too_long(name: str, asked: int, longest: int) -> ApiError:
    """For an answer of more tokens than the site allows."""
    return ApiError(
        400,
        f"{name} is too large: {asked}. This server supports at most {longest} completion tokens.",
        param=name,
        code="invalid_value",
    )


def choice_of(choice: Any, offered: Sequence[str], param: str) -> dict[str, Any] | None:
    """What `launcher.inference.constraints` calls `call`, of one of the choices that clients have;
    {} where it is the model's own, None for no call. `offered` are names of tools; 400 in the
    envelope if it is no choice, or names another."""
    if choice == "none":
        return None
    if choice in (None, "auto"):
        return {}
    found: dict[str, Any] = {"is_forced": True}
    if isinstance(choice, dict):
        _check_members(choice, param)
    if isinstance(choice, dict) and choice.get("type") == "function":
        found["names"] = [_name_in(choice, param)]
    elif isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(tools, list) or not tools or allowed.get("mode") not in _MODES:
            message = f"'allowed_tools' has 'tools' and a 'mode', which is one of {_MODES}."
            raise ApiError(400, message, param=param)
        found = {
            "is_forced": allowed["mode"] == "required",
            "names": [_name_in(tool, param) for tool in tools],
        }
    elif choice != "required":
        message = f"Invalid value for '{param}': 'none', 'auto', 'required' or a function's name."
        raise ApiError(400, message, param=param)
    if not offered:
        raise without_tools(param)
    unknown = next((name for name in found.get("names", ()) if name not in offered), None)
    if unknown is not None:
        message = f"'{param}' names '{unknown}', which is none of 'tools'."
        raise ApiError(400, message, param=param)
    return found


#: Members of a choice of tools, by the member that they stand in.
_CHOSEN = {
    "": ("type", "function", "name", "allowed_tools", "mode", "tools"),
    "function": ("name",),
    "allowed_tools": ("mode", "tools"),
    "tools": ("type", "function", "name"),
}


def _check_members(choice: dict[str, Any], param: str, within: str = "") -> None:
    """400 in the envelope for a member that would be passed over."""
    known = _CHOSEN[within]
    if not within and choice.get("type") in ("function", "allowed_tools"):
        is_one = choice["type"] == "function"
        known = ("type", *(known[1:3] if is_one else known[3:]))
    for name, value in choice.items():
        if name not in known:
            raise unknown_member(f"{param}.{name}", did_you_mean(name, known))
        for held in value if isinstance(value, list) else [value]:
            if isinstance(held, dict) and name in _CHOSEN:
                _check_members(held, f"{param}.{name}", name)


def without_tools(param: str) -> ApiError:
    """For a choice of tools where there are none."""
    return ApiError(400, f"'{param}' is only allowed when 'tools' are specified.", param=param)


def _name_in(choice: Any, param: str) -> str:
    """The name of a function, below `function` or beside the type."""
    held = choice.get("function", choice) if isinstance(choice, dict) else None
    name = held.get("name") if isinstance(held, dict) else None
    if not isinstance(name, str) or choice.get("type", "function") != "function":
        raise ApiError(400, f"'{param}' does not name a function.", param=param)
    return name


def unsupported(name: str) -> ApiError:
    """For a member that is known, and would change the answer in a way that it cannot be."""
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    return ApiError(400, message, param=name, code="unsupported_parameter")
