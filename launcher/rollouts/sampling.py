"""Draws answers from the model in training, with the log-probability of each token as it is drawn.

The ids that were drawn are what is learned: nothing is tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launcher.evals import generation
from launcher.evals.decoding import Decoding, SeededChoice
from launcher.evals.runner import poll
from launcher.rollouts.answer import Question


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of an answer, the one that ends it too, and their log-probabilities."""

    tokens: list[int]
    log_probs: list[float]
    ended: bool
    """Whether a token has ended it."""


class RecordedChoice(SeededChoice):
    """Draws tokens, and notes the log-probability of each by the logits that it is drawn by: those
    at the temperature, before `top_p` leaves some out."""

    def __init__(self, rows: Sequence[tuple[Decoding, tuple[int, ...]]], width: int) -> None:
        super().__init__(rows, width)
        self._draws_of_all = all(decoding.top_p >= 1 for decoding, _ in rows)
        self.log_probs: list[Tensor] = []
        """Of each token so far, fp32 [rows]."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores`, [rows, vocabulary], with -inf for all tokens but the drawn."""
        if self._draws_of_all:
            chosen, tokens = self._of_all(input_ids, scores)
        else:
            chosen = super().__call__(input_ids, scores)
            tokens = chosen.argmax(-1, keepdim=True)
        heated = scores.float() / self._temperatures.to(scores.device, torch.float32)
        picked = heated.gather(1, tokens) - heated.logsumexp(-1, keepdim=True)
        self.log_probs.append(picked.squeeze(1))
        return chosen

    def _of_all(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """As `SeededChoice` draws among all tokens, without putting them in order."""
        draw = self._draws[:, input_ids.shape[1] - self._width].to(scores.device)
        sums = torch.softmax(scores.double() / self._temperatures.to(scores.device), -1).cumsum(-1)
        target = draw.unsqueeze(1) * sums[:, -1:]
        # A token of probability 0 has the sum of the one before it, and is never the first above.
        tokens = torch.searchsorted(sums, target, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0), tokens


def draw(
    questions: Sequence[Question],
    model: Any,
    tokenizer: Any,
    decoding: Decoding,
    rollout: int,
    *,
    stops: Sequence[int],
    batch_tokens: int,
    rank: int,
    world_size: int,
    lockstep: bool,
    should_stop: Callable[[], bool],
) -> dict[int, Drawn]:
    """This rank's share of the answers, by place among `questions`, which all ranks pass alike.

    `should_stop` is asked before each batch, equally often on every rank; raises
    `launcher.evals.runner.EvaluationStopped`.
    """
    contexts = [list(question.tokens) for question in questions]
    found: dict[int, Drawn] = {}
    with generation.inference(model):
        for batch in generation.batches_of(
            contexts, model, decoding.max_new_tokens, batch_tokens, rank, world_size, lockstep
        ):
            poll(should_stop)
            if not batch.positions:
                continue
            asked = [questions[position] for position in batch.positions]
            synced = lockstep and world_size > 1
            answers = _drawn(asked, model, tokenizer, decoding, rollout, list(stops), synced)
            if batch.counted:
                found.update(zip(batch.positions, answers, strict=True))
    return found


def _drawn(
    asked: Sequence[Question],
    model: Any,
    tokenizer: Any,
    decoding: Decoding,
    rollout: int,
    stops: list[int],
    synced: bool,
) -> list[Drawn]:
    pad = generation.padding_of(tokenizer, stops)
    tokens, mask = generation.pad_left([question.tokens for question in asked], pad)
    width = tokens.shape[1]
    names = [(decoding, (rollout, q.draw, q.place, q.number)) for q in asked]
    choice = RecordedChoice(names, width)
    device = next(model.parameters()).device
    output: Tensor = model.generate(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=decoding.max_new_tokens,
        **generation.PLAIN,
        pad_token_id=pad,
        eos_token_id=stops or None,
        synced_gpus=synced,
        logits_processor=[choice],
    )
    log_probs = torch.stack(choice.log_probs, 1).tolist()
    return [
        _cut(answer, own, stops)
        for answer, own in zip(output[:, width:].tolist(), log_probs, strict=True)
    ]


def _cut(tokens: list[int], log_probs: list[float], stops: Sequence[int]) -> Drawn:
    """The answer up to the token that ends it."""
    length = len(generation.until(tokens, stops))
    ended = length < len(tokens)
    length += ended
    return Drawn(tokens[:length], log_probs[:length], ended)
