"""Bodies of chat and completion requests: what is read, what is refused, what is ignored."""

# Annotations are not postponed here: pydantic reads them.
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from launcher.api.failure import ApiError
from launcher.api.talker import Line

#: Longest answer to a plain prompt unless the client says otherwise, as at OpenAI.
COMPLETION_TOKENS = 16
#: Stop strings of one request.
MAX_STOP = 4

Tokens = Annotated[int, Field(ge=1, le=1 << 30)]


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None


class Part(BaseModel):
    """A part of a message. Only text is supported."""

    type: str
    text: str | None = None


class Message(BaseModel):
    """A turn of a conversation. `content` is null at most for an assistant's turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None

    def plain(self, place: int) -> dict[str, str]:
        """As chat templates know it; 400 in the envelope for what is not text."""
        parts = self.content or []
        if isinstance(parts, str):
            parts = [Part(type="text", text=parts)]
        for part in parts:
            if part.type != "text" or part.text is None:
                message = f"Only text is supported, not content of type '{part.type}'."
                raise ApiError(400, message, param=f"messages.[{place}].content")
        if self.content is None:
            message = "Only messages with content are supported."
            raise ApiError(400, message, param=f"messages.[{place}].content")
        text = "".join(part.text or "" for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Sampled(BaseModel):
    """What requests to a model share. Members that are not named here are ignored, but not those
    of `refused`, which would change the answer."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def refused(self) -> dict[str, bool]:
        """Members that are not supported -> whether the request needs them."""
        return {
            "presence_penalty": bool(self.presence_penalty),
            "frequency_penalty": bool(self.frequency_penalty),
            "logit_bias": bool(self.logit_bias),
        }

    def request(self, longest: int) -> Line:
        """The request to the model; 400 in the envelope for what it cannot do."""
        for name, is_needed in self.refused().items():
            if is_needed:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                raise ApiError(400, message, param=name, code="unsupported_parameter")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > MAX_STOP or not all(stop):
            message = f"'stop' takes at most {MAX_STOP} strings, none of them empty."
            raise ApiError(400, message, param="stop")
        asked = self.length()
        if asked is not None and asked > longest:
            raise ApiError(
                400,
                f"max_tokens is too large: {asked}. This server supports at most {longest}"
                " completion tokens.",
                param="max_tokens",
                code="invalid_value",
            )
        return {
            "max_tokens": asked,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "n": self.n or 1,
            "seed": self.seed,
            "stop": stop,
        }

    def length(self) -> int | None:
        """Most tokens that are wanted, None for as many as there is room for."""
        return self.max_tokens


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tool_choice: Any = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None

    def refused(self) -> dict[str, bool]:
        """Members that are not supported -> whether the request needs them."""
        form = (self.response_format or {}).get("type", "text")
        return {
            **super().refused(),
            "logprobs": bool(self.logprobs),
            "top_logprobs": bool(self.top_logprobs),
            "tool_choice": self.tool_choice not in (None, "none", "auto"),
            "function_call": self.function_call not in (None, "none", "auto"),
            "response_format": form != "text",
            "modalities": (self.modalities or ["text"]) != ["text"],
            "audio": self.audio is not None,
        }

    def request(self, longest: int) -> Line:
        """The request to the model; 400 in the envelope for what it cannot do."""
        messages = [message.plain(place) for place, message in enumerate(self.messages)]
        return {**super().request(longest), "messages": messages}

    def length(self) -> int | None:
        """Most tokens that are wanted, None for as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    def refused(self) -> dict[str, bool]:
        """Members that are not supported -> whether the request needs them."""
        return {
            **super().refused(),
            "best_of": (self.best_of or 1) != (self.n or 1),
            "echo": bool(self.echo),
            "logprobs": self.logprobs is not None,
            "suffix": bool(self.suffix),
        }

    def request(self, longest: int) -> Line:
        """The request to the model; 400 in the envelope for what it cannot do."""
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return {**super().request(longest), "prompt": prompt}

    def length(self) -> int | None:
        """Most tokens that are wanted."""
        return self.max_tokens or COMPLETION_TOKENS
