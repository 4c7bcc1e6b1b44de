"""One answer whose tokens a server draws."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.inference.batching import Ask, Utterance
from launcher.inference.speaker import Speaker
from launcher.inference.steering import Likelihood, TokenNames
from launcher.inference.vllm.server import WatchedServer
from launcher.vllm.command import BASE
from launcher.vllm.connection import (
    FailedError,
    GoneError,
    RefusedError,
    ServerConnection,
    Withdrawal,
)

#: Times that an answer is begun; with each the server was lost, or has failed.
_TRIES = 4
_SEEDS = 1 << 63
#: What vLLM tells of tokens that cannot be.
_NEVER = -9999.0
_PRIME = 1_000_003
#: What vLLM says of a form of answers that its library does not take.
_OF_GRAMMARS = re.compile("(?i)grammar|structured|guidance")


class Relay:
    """An answer, whatever becomes of the server meanwhile.

    One that is begun again has the same tokens up to where it was, since its seed is the same; they
    are compared, and not told twice.
    """

    def __init__(
        self,
        ask: Ask,
        speaker: Speaker,
        server: WatchedServer,
        adapter: tuple[str, Path] | None,
        project: str,
    ) -> None:
        """`adapter`: name and folder of what the model has beside the server's own weights.
        `project`: who asks; another does not learn by the time of an answer what was asked."""
        self._ask, self._speaker = ask, speaker
        self._server, self._adapter, self._project = server, adapter, project
        self._names = TokenNames(speaker.tokenizer)
        self._stops = set(speaker.stop_tokens)
        self._said: list[int] = []
        self._utterance = Utterance(ask, speaker.tokenizer, self._stops, self._names)
        self._constraint = ask.steering.constraint
        self._withdrawal = Withdrawal()

    def withdraw(self) -> None:
        """Nobody waits for it any more: it is not waited for here, nor drawn."""
        self._withdrawal.make()

    def answer(self) -> None:
        """Have all of it told, unless nobody waits for it any more. Raises `GoneError` if it cannot
        be had, and `launcher.inference.requests.Refused`."""
        for tries_left in reversed(range(_TRIES)):
            try:
                start, connection = self._server.reach(self._ask.is_gone)
            except GoneError:
                if self._ask.is_gone():
                    return
                raise
            try:
                self._tell(start, connection)
                return
            except RefusedError as error:
                if self._constraint is None or not _OF_GRAMMARS.search(str(error)):
                    raise
                self._ask.end("failed", 0)  # its library is another, and has not all that ours has
                return
            except GoneError as error:
                if self._ask.is_gone():
                    return
                self._server.lost(start)
                if not tries_left or isinstance(error, _OtherError):
                    raise

    def _tell(self, start: str, connection: ServerConnection) -> None:
        if self._adapter is not None:
            self._server.take_adapter(start, connection, *self._adapter)
        at = 0
        for token, likelihood in self._drawn(connection):
            self._server.heard()
            if self._ask.is_gone():
                return
            at += 1
            if at <= len(self._said):
                if token != self._said[at - 1]:
                    raise _OtherError("a lost answer goes on otherwise than it began")
                continue
            self._said.append(token)
            if self._take(token, likelihood):
                return
        if not self._ask.is_gone():
            raise GoneError("the answer ends before its end")

    def _take(self, token: int, likelihood: Likelihood | None) -> bool:
        if token in self._stops or self._constraint is None:
            return self._utterance.take(token, likelihood)
        try:
            self._constraint.take(token)
        except RuntimeError:
            return self._utterance.take(token, has_failed=True)
        return self._utterance.take(token, likelihood, is_over=self._constraint.is_over)

    def _drawn(self, connection: ServerConnection) -> Iterator[tuple[int, Likelihood | None]]:
        """The tokens, and how likely each was where that is told."""
        for event in connection.stream("/v1/completions", self._body(), self._withdrawal):
            if "error" in event:
                raise FailedError(str(event["error"]))
            for choice in event["choices"]:
                tokens, told = choice.get("token_ids") or (), choice.get("logprobs")
                for place, token in enumerate(tokens):
                    yield token, told and self._likelihood(token, told, place)

    def _body(self) -> dict[str, Any]:
        ask, steering = self._ask, self._ask.steering
        decoding = ask.decoding
        body = {
            "model": BASE if self._adapter is None else self._adapter[0],
            "prompt": ask.tokens,
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature if decoding.top_p else 0.0,
            "top_p": decoding.top_p or 1.0,
            "seed": (decoding.seed + ask.number * _PRIME) % _SEEDS,
            "presence_penalty": steering.presence,
            "frequency_penalty": steering.frequency,
            "stop_token_ids": sorted(self._stops),
            "ignore_eos": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stream": True,
        }
        if self._project:
            # Keys and values of prompts are each project's.
            body["cache_salt"] = hashlib.sha256(self._project.encode()).hexdigest()
        if steering.biases is not None:
            tokens, values = (own.tolist() for own in steering.biases)
            body["logit_bias"] = dict(zip(map(str, tokens), values, strict=True))
        if steering.constraint is not None:
            body["structured_outputs"] = {"grammar": steering.constraint.for_others}
        if steering.top is not None:
            body["logprobs"] = steering.top
        return body

    def _likelihood(self, token: int, told: dict[str, Any], place: int) -> Likelihood:
        top = self._ask.steering.top or 0
        others = [
            (_number(name), value)
            for name, value in told["top_logprobs"][place].items()
            if value > _NEVER
        ]
        others.sort(key=lambda one: (-one[1], one[0]))
        return {
            **self._names.named(token, told["token_logprobs"][place]),
            "top_logprobs": [self._names.named(*one) for one in others[:top]],
        }


class _OtherError(GoneError):
    """What was told cannot be gone on with."""


def _number(name: str) -> int:
    """The token that vLLM calls `token_id:N`."""
    return int(name.rpartition(":")[2])
