"""Answers of one model to several who ask at once, each in its own way and at its own length."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from launcher.evals.decoding import Decoding, SeededChoice
from launcher.evals.generation import PLAIN, inference, pad_left, padding_of, reads_padding
from launcher.inference.detokenizer import Pieces
from launcher.inference.speaker import Speaker
from launcher.inference.steering import Likelihood, Steered, Steering, TokenNames


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted.

    tokens: the prompt. number: tells answers to one prompt apart; part of what seeds the choice.
    """

    tokens: list[int]
    decoding: Decoding
    number: int
    show: Callable[[str, list[Likelihood]], None]
    """Called with every piece of text, and with its tokens where they are told."""
    end: Callable[[str, int], None]
    """Called once at the end: "stop", "length" or "failed", and the answer's tokens."""
    is_gone: Callable[[], bool]
    """Whether nobody waits for the answer any more; then `end` may not be called."""
    steering: Steering = field(default_factory=Steering)


def reply(speaker: Speaker, asks: Sequence[Ask]) -> None:
    """Answer all of `asks`: in one batch, or one for each length if the model needs it."""
    with inference(speaker.model):
        if reads_padding(speaker.model):
            _reply(speaker, asks)
            return
        for length in sorted({len(ask.tokens) for ask in asks}):
            _reply(speaker, [ask for ask in asks if len(ask.tokens) == length])


def _reply(speaker: Speaker, asks: Sequence[Ask]) -> None:
    model, tokenizer = speaker.model, speaker.tokenizer
    stops = speaker.stop_tokens
    pad = padding_of(tokenizer, stops)
    tokens, mask = pad_left([ask.tokens for ask in asks], pad)
    width = tokens.shape[1]
    processors: list[Any] = []
    names = TokenNames(tokenizer)
    steered = Steered([ask.steering for ask in asks], width, names)
    if not all(ask.steering.is_idle for ask in asks):
        processors.append(steered)
    if any(ask.decoding.temperature > 0 for ask in asks):
        rows = [(ask.decoding, ask.number) for ask in asks]
        processors.append(SeededChoice(rows, width))
    model.generate(
        input_ids=tokens.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max(ask.decoding.max_new_tokens for ask in asks),
        **PLAIN,
        pad_token_id=pad,
        eos_token_id=stops or None,
        stopping_criteria=[_Listening(asks, tokenizer, stops, steered)],
        logits_processor=processors,
    )


class Utterance:
    """What is said in one answer, as its tokens come, and whether it is at its end."""

    def __init__(self, ask: Ask, tokenizer: Any, stops: Collection[int], names: TokenNames) -> None:
        self._ask, self._stops = ask, stops
        self._pieces = Pieces(tokenizer, ask.decoding.stop)
        self._told = _Told(names)
        self._count = 0

    def take(
        self,
        token: int,
        likelihood: Likelihood | None = None,
        *,
        is_over: bool = False,
        has_failed: bool = False,
    ) -> bool:
        """Pass on what a token says, and how likely it was; whether the answer has ended.

        `is_over`: nothing may follow the token. `has_failed`: nothing can.
        """
        ask, pieces = self._ask, self._pieces
        self._count += 1
        at_end = token in self._stops
        text = ""
        if not at_end:
            self._told.add(token, likelihood)
            text = pieces.add([token])
        if has_failed:
            ask.end("failed", self._count)
            return True
        is_full = self._count >= ask.decoding.max_new_tokens
        is_over = at_end or is_over
        if is_over or is_full:
            text += pieces.rest()
        is_ended = is_over or is_full or pieces.is_stopped
        likelihoods = self._told.behind(text, is_all=is_ended and not pieces.is_stopped)
        if text or likelihoods:
            ask.show(text, likelihoods)
        if is_ended:
            is_stopped = is_over or pieces.is_stopped
            ask.end("stop" if is_stopped else "length", self._count - at_end)
        return is_ended


class _Listening(StoppingCriteria):
    """Passes on what each row says, and ends it where it is to end."""

    def __init__(
        self, asks: Sequence[Ask], tokenizer: Any, stops: Sequence[int], steered: Steered
    ) -> None:
        self._asks, self._steered = asks, steered
        self._stops = set(stops)
        self._said = [Utterance(ask, tokenizer, self._stops, steered.names) for ask in asks]
        self._ended = [False] * len(asks)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are at their end, bool [rows]; called after every token."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._ended[row]:
                self._ended[row] = self._asks[row].is_gone() or self._hear(row, token)
                if self._ended[row]:
                    self._steered.leave(row)
        return torch.tensor(self._ended, dtype=torch.bool, device=input_ids.device)

    def _hear(self, row: int, token: int) -> bool:
        steered = self._steered
        likelihood = None if token in self._stops else steered.heard(row, token)
        has_failed = row in steered.failed
        is_over = not has_failed and steered.is_over(row)
        return self._said[row].take(token, likelihood, is_over=is_over, has_failed=has_failed)


class _Told:
    """Tokens that wait until their text is shown."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._waiting: list[tuple[int, Likelihood]] = []
        self._ahead = 0
        """Bytes of tokens that were told, less those of the text that was shown."""

    def add(self, token: int, likelihood: Likelihood | None) -> None:
        """A token was said."""
        if likelihood is not None:
            size = len(likelihood["bytes"]) if self._names.is_shown(token) else 0
            self._waiting.append((size, likelihood))

    def behind(self, text: str, *, is_all: bool) -> list[Likelihood]:
        """Tokens that begin in `text`, which is shown now, or all."""
        self._ahead -= len(text.encode(errors="replace"))
        found = []
        while self._waiting and (is_all or self._ahead < 0):
            size, likelihood = self._waiting.pop(0)
            self._ahead += size
            found.append(likelihood)
        return found
