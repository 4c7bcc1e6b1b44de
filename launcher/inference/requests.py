"""Requests to a model that answers: read, checked, and turned into what it is to say."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from launcher.data.chat.masking import NoTools
from launcher.data.formats.base import BadRecord
from launcher.data.formats.messages import Message, read_turns, tools_of
from launcher.evals.decoding import Decoding
from launcher.inference.batching import Ask
from launcher.inference.constraints import Constraint
from launcher.inference.speaker import Speaker
from launcher.inference.steering import Likelihood, Steering

Write = Callable[[dict[str, Any]], None]

_SEEDS = 1 << 63
FAILED = "The model has failed at this request."
_NOT_KEPT = "The answer cannot go on as its schema says: make it simpler."
#: Tokens whose likelihoods are one line: with the likeliest beside them, each takes kilobytes.
_TOLD_AT_ONCE = 64
#: Characters; a token has four in prose, and in a whole text never so many.
_LONGEST_TOKENS = 32


class Refused(Exception):
    """A request that cannot be answered; `code` tells programs why, `param` which member is at
    fault where the code does not tell."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def asks_of(
    request: dict[str, Any],
    speaker: Speaker,
    longest: int,
    write: Write,
    is_gone: Callable[[], bool],
) -> list[Ask]:
    """The `n` answers that a request wants, of at most `longest` tokens; `write` gets their lines.
    `constraint` in it is what they keep to. One that fails is the end of all.

    Raises `Refused` if there is no room for them or the chat template does not take the messages.
    """
    _check_length(request, speaker.positions)
    tokens = _prompt_tokens(request, speaker)
    room = _room(tokens, request.get("max_tokens"), speaker.positions, longest)
    seed = request.get("seed")
    decoding = Decoding(
        max_new_tokens=room,
        stop=tuple(request.get("stop") or ()),
        temperature=request.get("temperature", 1.0),
        top_p=request.get("top_p", 1.0),
        seed=secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS,
    )

    steering = _steering(request, speaker)
    offered = [tool.get("function", tool)["name"] for tool in request.get("tools") or ()]
    callable_ = (request.get("call") or {}).get("names") or offered
    form = speaker.call_form if offered else None

    hidden = set(speaker.tokenizer.all_special_tokens) if form else set()
    has_failed = False

    def is_lost() -> bool:
        return has_failed or is_gone()

    def ask(index: int) -> Ask:
        name = {"id": request["id"], "index": index}
        said, sent = "", 0
        told: list[tuple[int, Likelihood]] = []
        """With where each token begins in what is said."""

        def say(text: str, likelihoods: list[Likelihood]) -> None:
            for begin in range(0, len(likelihoods), _TOLD_AT_ONCE):
                piece = likelihoods[begin : begin + _TOLD_AT_ONCE]
                write({**name, "text": text if not begin else "", "logprobs": piece})
            if text and not likelihoods:
                write({**name, "text": text})

        def show(text: str, likelihoods: list[Likelihood]) -> None:
            nonlocal said, sent
            if form is None:
                say(text, likelihoods)
                return
            # What may be a call is one if it is so at its end.
            place = len(said)
            for one in likelihoods:
                told.append((place, one))
                if one["token"] not in hidden:
                    place += len(bytes(one["bytes"]).decode(errors="ignore"))
            said += text
            begin, sent = sent, max(sent, form.certain(said))
            say(said[begin:sent], [])

        def end(reason: str, count: int) -> None:
            nonlocal has_failed
            if reason == "failed":
                has_failed = True
                param = "tools" if request.get("format") is None else "response_format"
                at_fault = {"code": "invalid_value", "param": param}
                write({"id": request["id"], "error": _NOT_KEPT, **at_fault})
                return
            if form:
                text, calls = form.read(said, callable_)
                beyond = len(text) if calls else len(said) + 1
                say(text[sent:], [one for place, one in told if place < beyond])
                if calls:
                    calls = calls[: request.get("max_calls")]
                    write({**name, "calls": [call._asdict() for call in calls]})
                    reason = "tool_calls" if reason == "stop" else reason
            counts = {"prompt_tokens": len(tokens), "completion_tokens": count}
            write({**name, "finish_reason": reason, **counts})

        return Ask(tokens, decoding, index, show, end, is_lost, steering())

    return [ask(index) for index in range(request.get("n", 1))]


def _steering(request: dict[str, Any], speaker: Speaker) -> Callable[[], Steering]:
    """Makes what steers each of the answers."""
    bias = {int(token): float(value) for token, value in (request.get("logit_bias") or {}).items()}
    width = speaker.width if bias else 0
    beyond = [token for token in bias if not 0 <= token < width]
    if beyond:
        message = f"There is no token {beyond[0]}: this model has {width}."
        raise Refused("invalid_value", message, "logit_bias")
    biases = None
    if bias:
        device = speaker.model.device
        biases = (
            torch.tensor([*bias], device=device),
            torch.tensor([*bias.values()], device=device),
        )
    constraint: Constraint | None = request.get("constraint")
    fixed = Steering(
        presence=request.get("presence_penalty") or 0.0,
        frequency=request.get("frequency_penalty") or 0.0,
        biases=biases,
        top=request.get("logprobs"),
    )

    def make() -> Steering:
        return fixed if constraint is None else replace(fixed, constraint=constraint.fresh())

    return make


def _check_length(request: dict[str, Any], positions: int | None) -> None:
    """A text that no tokenizer makes fit is not tokenised: others wait meanwhile."""
    said = [request.get("messages"), request.get("tools"), request.get("prompt")]
    length = sum(map(_length, said))
    if positions is not None and length > _LONGEST_TOKENS * positions:
        raise Refused(
            "context_length_exceeded",
            f"This model's maximum context length is {positions} tokens. However, you sent"
            f" {length} characters. Please reduce the length of the messages or prompt.",
        )


def _length(value: Any) -> int:
    """Characters of all texts in nested data."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_length(item) for name, item in value.items() if name not in ("role", "type"))
    return sum(map(_length, value)) if isinstance(value, list) else 0


def _conversation(request: dict[str, Any]) -> tuple[list[Message], list[Message] | None]:
    """Messages and tools, read as those of a training record are."""
    turns = read_turns(request["messages"], "messages")
    return turns.messages, tools_of(request)


def _prompt_tokens(request: dict[str, Any], speaker: Speaker) -> list[int]:
    if "prompt" in request:
        try:
            tokens = speaker.raw_tokens(request["prompt"])
        except BadRecord as error:
            raise Refused("invalid_prompt", f"{_sentence(error.found)}.") from error
        if tokens:
            return tokens
        if speaker.tokenizer.bos_token_id is None:
            raise Refused("empty_prompt", "The prompt is empty, and this model needs a beginning.")
        return [int(speaker.tokenizer.bos_token_id)]
    if not speaker.tokenizer.chat_template:
        raise Refused("no_chat_template", "This model has no chat template: use /v1/completions.")
    try:
        messages, tools = _conversation(request)
        return speaker.tokens(messages, tools=tools, whole=True)
    except NoTools as error:
        raise Refused("unsupported_parameter", f"{_sentence(error.found)}.") from error
    except BadRecord as error:
        raise Refused("invalid_messages", f"{_sentence(error.found)}.") from error
    except Exception as error:  # whatever a template raises: it is the model's own program
        raise Refused(
            "invalid_messages", f"The model's chat template does not take these messages: {error}"
        ) from error


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _room(tokens: list[int], asked: int | None, positions: int | None, longest: int) -> int:
    """How many tokens the answer may have."""
    if positions is None:
        return min(asked or longest, longest)
    if len(tokens) + (asked or 1) > positions:
        wanted = f"{len(tokens)} in the messages"
        if asked:
            wanted = f"{len(tokens) + asked} tokens ({wanted}, {asked} in the completion)"
        raise Refused(
            "context_length_exceeded",
            f"This model's maximum context length is {positions} tokens. However, you requested"
            f" {wanted}. Please reduce the length of the messages or completion.",
        )
    return min(asked or longest, longest, positions - len(tokens))
