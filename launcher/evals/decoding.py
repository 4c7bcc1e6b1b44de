"""How an answer is decoded: its length, what ends it, and a choice that depends on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from launcher.config.schema import Config


@dataclass(frozen=True, slots=True)
class Decoding:
    """Options of `eval` that decide what a model answers; temperature 0 takes the likeliest."""

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, config: Config, draw: int = 0) -> Decoding:
        """Those of a run, for one of several answers to a prompt; the likeliest tokens do not
        depend on its seed."""
        options = config.eval
        seed = config.seed + (draw << 32) if options.temperature else 0
        return cls(
            options.max_new_tokens, tuple(options.stop), options.temperature, options.top_p, seed
        )

    def end(self, text: str) -> int:
        """Where the first stop string begins in `text`; -1 without one."""
        found = (text.find(string) for string in self.stop)
        return min((place for place in found if place >= 0), default=-1)


class SeededChoice(LogitsProcessor):
    """Draws every row's next token and leaves `generate` no other, so that it takes that one.

    The n-th token of a record is drawn by the n-th number of a stream of its own, which depends on
    the seed and the record's name alone: an answer is the same in any batch, on any rank. With
    top_p the draw is among the fewest likeliest tokens that hold this share (Holtzman et al. 2020).
    A row of temperature 0 takes the likeliest.
    """

    def __init__(self, rows: Sequence[tuple[Decoding, int | tuple[int, ...]]], width: int) -> None:
        """`rows`: how each is decoded, and its record's id, or several numbers that name it."""
        longest = max(decoding.max_new_tokens for decoding, _ in rows)
        draws = np.zeros((len(rows), longest))
        for place, (decoding, name) in enumerate(rows):
            if decoding.temperature > 0:
                numbers = name if isinstance(name, tuple) else (name,)
                draws[place] = np.random.default_rng([decoding.seed, *numbers]).random(longest)
        self._draws = torch.from_numpy(draws)
        self._temperatures = _column([decoding.temperature or 1.0 for decoding, _ in rows])
        self._top_p = _column([decoding.top_p for decoding, _ in rows])
        self._width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`, [rows, vocabulary], with -inf for all tokens but the drawn."""
        tokens = self.pick(scores, input_ids.shape[1] - self._width)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)

    def pick(self, scores: Tensor, step: int, rows: Tensor | slice = slice(None)) -> Tensor:
        """The next token of each of `rows`, int64 [n, 1], by their `scores` [n, vocabulary]; `step`
        counts the tokens before it."""
        draw, heat, top_p = (
            own[rows].to(scores.device)
            for own in (self._draws[:, step], self._temperatures, self._top_p)
        )
        shares = torch.softmax(scores.double() / heat, dim=-1)
        shares, tokens = shares.sort(dim=-1, descending=True, stable=True)
        sums = shares.cumsum(-1)
        within = sums - shares < top_p
        kept = within.sum(-1, keepdim=True).clamp(min=1)
        target = draw.unsqueeze(1) * sums.gather(1, kept - 1)
        place = torch.minimum((sums <= target).sum(-1, keepdim=True), kept - 1)
        return tokens.gather(1, place)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


class StopStrings(StoppingCriteria):
    """Ends a row once its answer has a stop string, however the string is cut into tokens."""

    def __init__(self, decoding: Decoding, tokenizer: Any, width: int) -> None:
        self._decoding, self._tokenizer, self._width = decoding, tokenizer, width
        # A token spells at least a byte, so that so many last tokens hold a string that is new.
        self._window = max(len(string.encode()) for string in decoding.stop) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are at their end, bool [rows]."""
        last = input_ids[:, self._width :][:, -self._window :].tolist()
        texts = (self._tokenizer.decode(tokens, skip_special_tokens=True) for tokens in last)
        ended = [self._decoding.end(text) >= 0 for text in texts]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)
