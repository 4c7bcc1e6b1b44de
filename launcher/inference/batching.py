"""Answers of one model to several who ask at once, each in its own way and at its own length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from launcher.evals.decoding import Decoding, SeededChoice
from launcher.evals.generation import PLAIN, inference, pad_left, padding_of, reads_padding
from launcher.inference.detokenizer import Pieces
from launcher.inference.speaker import Speaker


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted.

    tokens: the prompt. number: tells answers to one prompt apart; part of what seeds the choice.
    """

    tokens: list[int]
    decoding: Decoding
    number: int
    show: Callable[[str], None]
    """Called with every piece of text."""
    end: Callable[[str, int], None]
    """Called once at the end: "stop" or "length", and the answer's tokens."""
    is_gone: Callable[[], bool]
    """Whether nobody waits for the answer any more; then `end` may not be called."""


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
    options: dict[str, Any] = {}
    if any(ask.decoding.temperature > 0 for ask in asks):
        rows = [(ask.decoding, ask.number) for ask in asks]
        options["logits_processor"] = [SeededChoice(rows, tokens.shape[1])]
    model.generate(
        input_ids=tokens.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max(ask.decoding.max_new_tokens for ask in asks),
        **PLAIN,
        pad_token_id=pad,
        eos_token_id=stops or None,
        stopping_criteria=[_Listening(asks, tokenizer, stops)],
        **options,
    )


class _Listening(StoppingCriteria):
    """Passes on what each row says, and ends it where it is to end."""

    def __init__(self, asks: Sequence[Ask], tokenizer: Any, stops: Sequence[int]) -> None:
        self._asks = asks
        self._stops = set(stops)
        self._pieces = [Pieces(tokenizer, ask.decoding.stop) for ask in asks]
        self._ended = [False] * len(asks)
        self._count = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are at their end, bool [rows]; called after every token."""
        self._count += 1
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._ended[row]:
                self._ended[row] = self._asks[row].is_gone() or self._hear(row, token)
        return torch.tensor(self._ended, dtype=torch.bool, device=input_ids.device)

    def _hear(self, row: int, token: int) -> bool:
        ask, pieces = self._asks[row], self._pieces[row]
        at_end = token in self._stops
        text = "" if at_end else pieces.add([token])
        is_full = self._count >= ask.decoding.max_new_tokens
        if at_end or is_full:
            text += pieces.rest()
        if text:
            ask.show(text)
        if at_end or is_full or pieces.is_stopped:
            ask.end("stop" if at_end or pieces.is_stopped else "length", self._count - at_end)
            return True
        return False
