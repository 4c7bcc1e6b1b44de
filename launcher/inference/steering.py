"""What else decides an answer's tokens, beside temperature and top_p, and how likely they were."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from launcher.data.words import is_byte_level
from launcher.inference.constraints import Constraint

#: How a token and its likelihood are told: `{token, bytes, logprob, top_logprobs}`.
Likelihood = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Steering:
    """How the choice of one answer's tokens differs from the model's own."""

    presence: float = 0.0
    """Taken from the logit of a token that the answer has already."""
    frequency: float = 0.0
    """The same, for each time that it has it."""
    biases: tuple[Tensor, Tensor] | None = None
    """Tokens, and what is added to the logit of each, fp32: both [biases]."""
    constraint: Constraint | None = None
    top: int | None = None
    """How many of the likeliest tokens are told beside each; None to tell nothing."""

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing and tells nothing."""
        changes = self.presence or self.frequency or self.biases or self.constraint
        return not changes and self.top is None


class Steered(LogitsProcessor):
    """Changes the logits of each row as its `Steering` says.

    Likelihoods are those of the model itself, before anything is changed.
    """

    def __init__(self, rows: Sequence[Steering], width: int, names: TokenNames) -> None:
        """`width`: tokens of the prompts."""
        self._rows, self._width, self.names = rows, width, names
        self._told = [row for row, own in enumerate(rows) if own.top is not None]
        self._logprobs: dict[int, Tensor] = {}
        self._over: set[int] = set()
        self.failed: dict[int, str] = {}
        """Rows that cannot go on, and why."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The changed `scores`, [rows, vocabulary]."""
        if self._told:
            own = torch.log_softmax(scores[self._told].float(), dim=-1).cpu()
            self._logprobs = dict(zip(self._told, own, strict=True))
        changed = scores.clone()
        for row, steering in enumerate(self._rows):
            if row not in self._over:
                self._change(changed[row], steering, input_ids[row, self._width :], row)
        return changed

    def _change(self, scores: Tensor, own: Steering, said: Tensor, row: int) -> None:
        if (own.presence or own.frequency) and len(said):
            tokens, counts = said.unique(return_counts=True)
            scores[tokens] -= own.presence + own.frequency * counts.to(scores.dtype)
        if own.biases is not None:
            tokens, biases = own.biases
            scores.index_add_(0, tokens.to(scores.device), biases.to(scores))
        if own.constraint is not None:
            try:
                allowed = own.constraint.allowed(len(scores))
                if not allowed.any():
                    raise RuntimeError("no token may follow")
            except RuntimeError as error:
                self.failed[row] = str(error)
                return
            scores.masked_fill_(~allowed.to(scores.device), -torch.inf)

    def heard(self, row: int, token: int) -> Likelihood | None:
        """Take in the token that a row goes on with; how likely it was, where that is told."""
        own = self._rows[row]
        if own.constraint is not None:
            try:
                own.constraint.take(token)
            except RuntimeError as error:
                self.failed[row] = str(error)
        if own.top is None:
            return None
        return self.names.likelihood(self._logprobs[row], token, own.top)

    def is_over(self, row: int) -> bool:
        """Whether nothing may follow in a row."""
        constraint = self._rows[row].constraint
        return constraint is not None and constraint.is_over

    def leave(self, row: int) -> None:
        """A row has ended: what follows in it is padding."""
        self._over.add(row)


class TokenNames:
    """What tokens stand for, alone."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        self._special = set(tokenizer.all_special_ids)

    @functools.cached_property
    def _bytes_of_characters(self) -> dict[str, int] | None:
        """Character of a token's name -> its byte; None where names are not of bytes."""
        if not is_byte_level(json.loads(self._tokenizer.backend_tokenizer.to_str())):
            return None
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in shown]
        characters = [*shown, *(256 + i for i in range(len(others)))]
        return dict(zip(map(chr, characters), [*shown, *others], strict=True))

    def content(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        if token in self._added:
            return self._added[token].encode()
        name: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:  # the model has room for more tokens than there are
            return b""
        if self._bytes_of_characters is not None:
            return bytes(self._bytes_of_characters[character] for character in name)
        if len(name) == 6 and name.startswith("<0x"):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()

    def is_shown(self, token: int) -> bool:
        """Whether answers show it."""
        return token not in self._special

    def likelihood(self, logprobs: Tensor, token: int, top: int) -> Likelihood:
        """How likely a token was by `logprobs`, [vocabulary], and the `top` likeliest."""
        values, tokens = logprobs.topk(top) if top else (logprobs[:0], logprobs[:0])
        others = zip(tokens.tolist(), values.tolist(), strict=True)
        return {
            **self.named(token, float(logprobs[token])),
            "top_logprobs": [self.named(int(other), value) for other, value in others],
        }

    def named(self, token: int, logprob: float) -> Likelihood:
        """A token and its log-probability, as they are told."""
        content = self.content(token)
        return {
            "token": content.decode(errors="backslashreplace"),
            "bytes": list(content),
            "logprob": logprob,
        }
